"""What runs say of the tasks that they are for: which are in flight, which failed, how often and why.

All of it is in tags of Dagster's own runs, so there is no second book to keep in step: a run says from its
start on what it is for, and at its end which of its tasks failed. A run that was killed says nothing more;
that is a failure, too. Dagster copies tags to a run that is executed again: what a run says of itself counts
only where its own `begin` stands beside it.
"""

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import dagster as dg
from sqlalchemy.exc import DBAPIError

from eval_assets.grid.reconciling import Failures, Task, Work
from eval_assets.partitions import SUITE, cell_key, grid
from resources.errors import BusyError, TransientError, UserError
from resources.lease import process_exists
from resources.pods.tags import (
    AS_IT_IS,
    DATASETS_TAG,
    EVALUATION,
    IN_FLIGHT,
    TAKEN_AWAY,
    TASKS_TAG,
    ending_of,
    ends_of,
    evaluates,
)
from resources.settings import Settings

WORK_TAG = "eval/work"
PRIORITY_TAG = "dagster/priority"
FORCE_TAG = "eval/force"
"""On a run: evaluate its cells again although they are committed."""
PROCESS_TAG = "eval/process"
"""``host:process:run``: who executes the run. The run's id tells it from a copy."""
FAILED_TAG = "eval/failed"
CLEARED_TAG = "eval/cleared"
"""Where a person said to forget failures of the run: its id and, after a ``:``, which tasks, as
``dataset|model``, comma-separated; without them all."""
INTERRUPTED_TAG = "eval/interrupted"
"""On a run that was told to end before it was done: by which signal."""

_RETRY_TAG = "dagster/retry_on_asset_or_op_failure"
"""Where Dagster tries runs again, it does so with a step that failed, until the run itself says "false": what
was interrupted, or lost Dagster's own database, could say nothing."""

Context: TypeAlias = dg.AssetExecutionContext | dg.OpExecutionContext

REMEMBERED = timedelta(days=90)
_REASON_CHARACTERS = 300
_AT_ONCE = 500
"""Events that are asked for at a time: Dagster refuses to give more than a thousand."""

_OVER = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def tags_of(tasks: Sequence[Task]) -> dict[str, str]:
    """The tags of a run for these tasks, all of one kind."""
    return {
        WORK_TAG: tasks[0].work.value,
        TASKS_TAG: ",".join(f"{_place(task)}={task.fingerprint}" for task in tasks),
    }


def tasks_in(tags: Mapping[str, str]) -> list[Task]:
    """The inverse of `tags_of`; none where the tags name no work."""
    if tags.get(WORK_TAG) not in list(Work):
        return []
    tasks = []
    for text in tags.get(TASKS_TAG, "").split(","):
        place, _, fingerprint = text.partition("=")
        dataset, _, model = place.partition("|")
        tasks.append(Task(Work(tags[WORK_TAG]), model, dataset, fingerprint))
    return tasks


def tasks_of(run: dg.DagsterRun) -> list[Task]:
    """What a run is for; of one that nobody tagged, the cells of its partitions, without fingerprints."""
    if evaluates(run):
        cells = [Task(Work.EVALUATE, model, dataset) for dataset, model in _cells_of_tags(run.tags)]
        return tasks_in(run.tags) or cells
    return tasks_in(run.tags)


def in_flight(instance: dg.DagsterInstance) -> set[tuple[Work, str, str]]:
    """`Task.place` of everything that is queued or running."""
    return {
        task.place for run in instance.get_runs(dg.RunsFilter(statuses=IN_FLIGHT)) for task in tasks_of(run)
    }


def failures(instance: dg.DagsterInstance) -> dict[Task, Failures]:
    """The tasks that failed in the last 90 days since they were last done, but for what a person cleared.

    A run that was interrupted (a pod that was evicted) doesn't count; one that a person cancelled is not
    tried again.
    """
    records = instance.get_run_records(
        dg.RunsFilter(
            statuses=_OVER,
            tags={WORK_TAG: [work.value for work in Work]},
            updated_after=datetime.now(UTC) - REMEMBERED,
        ),
        ascending=True,
    )
    failed: dict[Task, list[tuple[float, Ending]]] = {}
    for record in records:
        run = record.dagster_run
        if run.tags.get("dagster/will_retry") == "true":
            continue  # Dagster tries it again by itself: what becomes of that run counts
        ended = record.end_time or record.update_timestamp.timestamp()
        for task, ending in endings(run).items():
            if ending.how is not None and not is_cleared(run, task):
                failed.setdefault(task, []).append((ended, ending))
    # A task that failed once waits for a minute, done since or not: most of them need not be looked up.
    done = _last_done(
        instance, [task for task, ends in failed.items() if len(ends) > 1 or ends[0][1].is_permanent]
    )
    found: dict[Task, Failures] = {}
    for task, ends in failed.items():
        times = 0
        for ended, ending in ends:
            if ended <= done.get(partition_of(task), 0.0):
                continue
            times = max(times, 1) if ending.how == _BUSY else times + 1
            found[task] = Failures(times, ended, ending.reason, permanent=ending.is_permanent)
    return found


def partition_of(task: Task) -> tuple[str, str]:
    """The asset and its partition that the task materializes."""
    return {
        Work.REGISTER: ("model_version", task.model),
        Work.PREPARE: ("benchmark", task.dataset),
        Work.EVALUATE: (EVALUATION, str(cell_key(task.dataset, task.model))),
        Work.JUDGE: ("promotion", task.model),
    }[task.work]


def _last_done(instance: dg.DagsterInstance, tasks: Iterable[Task]) -> dict[tuple[str, str], float]:
    """When each of these was last done, if ever, by `partition_of`; a few queries, however many runs."""
    partitions: dict[str, set[str]] = {}
    for task in tasks:
        asset, partition = partition_of(task)
        partitions.setdefault(asset, set()).add(partition)
    done = {}
    for asset, wanted in partitions.items():
        latest = instance.event_log_storage.get_latest_storage_id_by_partition(
            dg.AssetKey(asset), dg.DagsterEventType.ASSET_MATERIALIZATION, wanted
        )
        ids = sorted(latest.values())
        for some in (ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE)):
            chosen = dg.AssetRecordsFilter(dg.AssetKey(asset), storage_ids=some)
            for record in instance.fetch_materializations(chosen, limit=_AT_ONCE).records:
                if record.partition_key is not None:
                    done[asset, record.partition_key] = record.timestamp
    return done


_BUSY, _TRANSIENT, _PERMANENT = "busy", "transient", "permanent"
"""Another process is at it: wait, but never give up. It may pass by itself. It is the same next time."""
CANCELLED, INTERRUPTED, KILLED = "cancelled", "interrupted", "killed"


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a run that is over did not get a task done.

    `kind` is one of a few words: busy, transient, permanent, cancelled, interrupted, killed, or a pod's
    `Kind`. `how` it counts as a failure is one of the first three, or None where it is none.
    """

    kind: str
    how: str | None
    reason: str

    @property
    def is_permanent(self) -> bool:
        return self.how == _PERMANENT

    @property
    def counts(self) -> bool:
        """Whether it is a failure of the task: not a busy cell, a lost node or a person's cancelling."""
        return self.how in (_TRANSIENT, _PERMANENT) and self.kind != CANCELLED


def endings(run: dg.DagsterRun) -> dict[Task, Ending]:
    """The tasks that a run did not get done, of one that failed or was canceled; the others were done."""
    tasks = tasks_of(run)
    if run.status not in _OVER:
        return {}
    if run.status is dg.DagsterRunStatus.CANCELED:
        why = f"run {run.run_id[:8]} was cancelled"
        return dict.fromkeys(tasks, Ending(CANCELLED, _PERMANENT, why))
    if _has_begun(run):
        if said := run.tags.get(FAILED_TAG):
            reasons: Mapping[str, tuple[str, str]] = json.loads(said)
            named = [(task, reasons[_place(task)]) for task in tasks if _place(task) in reasons]
            return {task: Ending(how, how, reason) for task, (how, reason) in named}
        if signal := run.tags.get(INTERRUPTED_TAG):
            return dict.fromkeys(tasks, Ending(INTERRUPTED, None, signal))
    ended = ending_of(run)
    if ended:
        how = _PERMANENT if ended["kind"] in AS_IT_IS else _TRANSIENT
        counts = None if ended["kind"] in TAKEN_AWAY else how
        return dict.fromkeys(tasks, Ending(ended["kind"], counts, f"{ended['kind']}: {ended['reason']}"))
    why = f"run {run.run_id[:8]} ended without a word (killed?)"
    return dict.fromkeys(tasks, Ending(KILLED, _TRANSIENT, why))


def _place(task: Task) -> str:
    return f"{task.dataset}|{task.model}"


def begin(context: Context) -> None:
    """Tag the run with the process that executes it, and take back what it may have copied from another."""
    run = context.run
    copied = {tag: "" for tag in (FAILED_TAG, INTERRUPTED_TAG) if run.tags.get(tag)}
    if FAILED_TAG in copied:
        copied[_RETRY_TAG] = "true"
    process = f"{socket.gethostname()}:{os.getpid()}:{run.run_id}"
    context.instance.add_run_tags(run.run_id, {PROCESS_TAG: process, **copied})
    launched_by = (Settings.from_environment().pod or {}).get("dagster", dg.__version__)
    if launched_by != dg.__version__:
        context.log.warning(
            f"a daemon with dagster {launched_by} launched this run, whose image has {dg.__version__}: "
            "deploy webserver, daemon and runs from one image"
        )


def _has_begun(run: dg.DagsterRun) -> bool:
    return run.tags.get(PROCESS_TAG, "").endswith(f":{run.run_id}")


def end_orphans(instance: dg.DagsterInstance) -> None:
    """Mark runs of this machine whose process is gone as failed.

    Dagster watches pods, but no process on a laptop: such a run would show as running for ever and hold its
    place in the queue.
    """
    for run in instance.get_runs(dg.RunsFilter(statuses=IN_FLIGHT)):
        host, _, pid = run.tags.get(PROCESS_TAG, "").rpartition(":")[0].rpartition(":")
        if _has_begun(run) and host == socket.gethostname() and not process_exists(int(pid)):
            instance.report_run_failed(run, f"its process ({host}:{pid}) was ended")


def announce(context: Context, tasks: Sequence[Task]) -> None:
    """Tag the run with what it is for, where whoever requested it has not."""
    if tasks and WORK_TAG not in context.run.tags:
        context.instance.add_run_tags(context.run.run_id, tags_of(tasks))


def confess(context: Context, failed: Mapping[Task, Exception]) -> None:
    """Tag the run with the tasks of it that failed, and why; their fingerprints don't matter."""
    said = {_place(task): (_kind(error), one_line(error)) for task, error in failed.items()}
    context.instance.add_run_tags(context.run.run_id, {FAILED_TAG: json.dumps(said), _RETRY_TAG: "false"})


@contextmanager
def confessing(context: Context, task: Task | None = None) -> Iterator[None]:
    """Turn a UserError into the failure of the run, for Dagster and, of its one `task`, for `failures`."""
    try:
        yield
    except UserError as error:
        confess(context, {task: error} if task is not None else {})
        raise dg.Failure(str(error), allow_retries=False) from error


def lost_database(error: BaseException | None) -> bool:
    """Whether Dagster's own database did not answer: no task's failure, and no other would fare better."""
    while error is not None:
        if isinstance(error, DBAPIError):
            return True
        error = error.__cause__
    return False


def clear(instance: dg.DagsterInstance, key: str, datasets: Iterable[str] = ()) -> int:
    """Forget the failures of a model version (on these datasets, if any) or of a benchmark; how many runs."""
    wanted = set(datasets)
    count = 0
    for run in instance.get_runs(
        dg.RunsFilter(statuses=_OVER, tags={WORK_TAG: [work.value for work in Work]})
    ):
        failed = [task for task in endings(run) if not is_cleared(run, task)]
        meant = [task for task in failed if key == (task.model or task.dataset)]
        meant = [task for task in meant if not wanted or task.dataset in wanted]
        if meant:
            places = [*filter(None, _cleared(run)), *map(_place, meant)]
            instance.add_run_tags(run.run_id, {CLEARED_TAG: f"{run.run_id}:{','.join(places)}"})
            count += 1
    return count


def is_cleared(run: dg.DagsterRun, task: Task) -> bool:
    """Whether a person said to forget that the run failed at the task."""
    return not {"", _place(task)}.isdisjoint(_cleared(run))


def _cleared(run: dg.DagsterRun) -> list[str]:
    """Which tasks a person said to forget, by place; an empty one stands for all."""
    run_id, _, places = run.tags.get(CLEARED_TAG, "").partition(":")
    return places.split(",") if run_id == run.run_id else []  # or it is of the run that this one tries again


def _kind(error: Exception) -> str:
    """What a user has to put right, or a bug, is permanent; the rest may be weather."""
    if isinstance(error, BusyError):
        return _BUSY
    return _TRANSIENT if isinstance(error, TransientError | OSError | MemoryError) else _PERMANENT


def one_line(error: Exception) -> str:
    """An error as one line, cut to what a tag holds."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    line = " ".join(text.split())
    return line if len(line) <= _REASON_CHARACTERS else line[: _REASON_CHARACTERS - 1] + "…"


def _cells_of_tags(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    start, end = ends_of(tags)
    if not start:
        return []
    first = grid.get_partition_key_from_str(start).keys_by_dimension
    last = grid.get_partition_key_from_str(end).keys_by_dimension
    order = list(SUITE)
    if first["dataset"] not in SUITE or last["dataset"] not in SUITE:
        return []
    between = order[order.index(first["dataset"]) : order.index(last["dataset"]) + 1]
    meant = tags.get(DATASETS_TAG)
    return [(key, first["model"]) for key in between if not meant or key in meant.split(",")]
