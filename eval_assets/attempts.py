"""What runs say of the tasks that they are for: which are in flight, which failed, how often and why.

All of it is in tags of Dagster's own runs, so there is no second book to keep in step: a run says from its
start on what it is for, and at its end which of its tasks failed. A run that was killed says nothing more;
that is a failure, too.
"""

import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from eval_assets.partitions import DATASETS_TAG, SUITE, grid
from eval_assets.reconciling import Failures, Task, Work
from resources.errors import BusyError, TransientError, UserError
from resources.lease import process_exists

WORK_TAG = "eval/work"
MODEL_TAG = "eval/model"
FINGERPRINTS_TAG = "eval/fingerprints"
FAILED_TAG = "eval/failed"
CLEARED_TAG = "eval/cleared"
INTERRUPTED_TAG = "eval/interrupted"
"""On a run that was told to end before it was done: by which signal."""

PROCESS_TAG = "eval/process"
"""On a run: the host and the process that executes it."""
FORCE_TAG = "eval/force"
"""On a run: evaluate its cells again although they are committed."""

REMEMBERED = timedelta(days=90)
_REASON_CHARACTERS = 300

ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_OVER = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def tags_of(tasks: Sequence[Task]) -> dict[str, str]:
    """The tags of a run for these tasks, all of one kind and model."""
    return {
        WORK_TAG: tasks[0].work.value,
        MODEL_TAG: tasks[0].model,
        FINGERPRINTS_TAG: ",".join(f"{task.dataset}={task.fingerprint}" for task in tasks),
    }


def tasks_of(run: dg.DagsterRun) -> list[Task]:
    """What a run is for; of one that nobody tagged, the cells of its partitions, without fingerprints."""
    work = run.tags.get(WORK_TAG)
    if work in list(Work):
        pairs = (pair.partition("=") for pair in run.tags.get(FINGERPRINTS_TAG, "").split(","))
        return [
            Task(Work(work), run.tags.get(MODEL_TAG, ""), dataset, fingerprint)
            for dataset, _, fingerprint in pairs
        ]
    selected = run.asset_selection or set()
    if run.job_name == "evaluate_models" or dg.AssetKey("evaluation") in selected:
        return [Task(Work.EVALUATE, model, dataset) for dataset, model in _cells_of_tags(run.tags)]
    return []


def in_flight(instance: dg.DagsterInstance) -> set[tuple[Work, str, str]]:
    """`Task.place` of everything that is queued or running."""
    return {task.place for run in instance.get_runs(dg.RunsFilter(statuses=ACTIVE)) for task in tasks_of(run)}


def failures(instance: dg.DagsterInstance) -> dict[Task, Failures]:
    """The tasks that failed in the last 90 days and how, but for what a person has cleared.

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
    found: dict[Task, Failures] = {}
    for record in records:
        run = record.dagster_run
        if CLEARED_TAG in run.tags:
            continue
        ended = record.end_time or record.update_timestamp.timestamp()
        for failed, (permanent, reason) in _failed(run).items():
            before = found[failed].times if failed in found else 0
            found[failed] = Failures(before + 1, ended, reason, permanent)
    return found


def _failed(run: dg.DagsterRun) -> dict[Task, tuple[bool, str]]:
    tasks = tasks_of(run)
    if run.status is dg.DagsterRunStatus.CANCELED:
        return dict.fromkeys(tasks, (True, f"run {run.run_id[:8]} was cancelled"))
    if FAILED_TAG in run.tags:
        said: Mapping[str, tuple[bool, str]] = json.loads(run.tags[FAILED_TAG])
        return {task: (bool(said[task.dataset][0]), said[task.dataset][1])
                for task in tasks if task.dataset in said}  # fmt: skip
    if INTERRUPTED_TAG in run.tags:
        return {}
    return dict.fromkeys(tasks, (False, f"run {run.run_id[:8]} ended without a word (killed?)"))


def begin(context: dg.AssetExecutionContext | dg.OpExecutionContext) -> None:
    """Tag the run with the process that executes it, so that `end_orphans` can tell when it is gone."""
    context.instance.add_run_tags(context.run.run_id, {PROCESS_TAG: this_process()})


def this_process() -> str:
    """Host and id of this process, as `PROCESS_TAG` has them."""
    return f"{socket.gethostname()}:{os.getpid()}"


def end_orphans(instance: dg.DagsterInstance) -> None:
    """Mark runs of this machine whose process is gone as failed.

    Dagster watches pods, but no process on a laptop: such a run would show as running for ever and hold its
    place in the queue.
    """
    for run in instance.get_runs(dg.RunsFilter(statuses=ACTIVE)):
        owner, _, pid = run.tags.get(PROCESS_TAG, "").rpartition(":")
        if owner == socket.gethostname() and not process_exists(int(pid)):
            instance.report_run_failed(run, f"its process ({owner}:{pid}) was ended")


def announce(context: dg.AssetExecutionContext | dg.OpExecutionContext, tasks: Sequence[Task]) -> None:
    """Tag the run with what it is for, where whoever requested it has not."""
    if tasks and context.run.tags.get(WORK_TAG) is None:
        context.instance.add_run_tags(context.run.run_id, tags_of(tasks))


def confess(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, failed: Mapping[str, Exception]
) -> None:
    """Tag the run with the tasks of it that failed, by dataset, and why."""
    said = {
        dataset: (_is_permanent(error), one_line(error))
        for dataset, error in failed.items()
        if not isinstance(error, BusyError)
    }
    context.instance.add_run_tags(context.run.run_id, {FAILED_TAG: json.dumps(said)})


def clear(instance: dg.DagsterInstance, key: str, datasets: Iterable[str] = ()) -> int:
    """Forget the failures of a model version (on these datasets, if any) or of a benchmark; how many runs."""
    wanted = set(datasets)
    count = 0
    for run in instance.get_runs(
        dg.RunsFilter(statuses=_OVER, tags={WORK_TAG: [work.value for work in Work]})
    ):
        of_key = [task for task in tasks_of(run) if key == (task.model or task.dataset)]
        concerned = any(not wanted or task.dataset in wanted for task in of_key)
        if concerned and CLEARED_TAG not in run.tags:
            instance.add_run_tags(run.run_id, {CLEARED_TAG: "true"})
            count += 1
    return count


def _is_permanent(error: Exception) -> bool:
    """What a user has to put right, or a bug: trying again gives the same. The rest may be weather."""
    return not isinstance(error, TransientError | OSError | MemoryError)


def one_line(error: Exception) -> str:
    """An error as one line, cut to what a tag holds."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    line = " ".join(text.split())
    return line if len(line) <= _REASON_CHARACTERS else line[: _REASON_CHARACTERS - 1] + "…"


def _cells_of_tags(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    start = tags.get("dagster/asset_partition_range_start") or tags.get("dagster/partition")
    end = tags.get("dagster/asset_partition_range_end") or start
    if start is None or end is None:
        return []
    first = grid.get_partition_key_from_str(start).keys_by_dimension
    last = grid.get_partition_key_from_str(end).keys_by_dimension
    order = list(SUITE)
    if first["dataset"] not in SUITE or last["dataset"] not in SUITE:
        return []
    between = order[order.index(first["dataset"]) : order.index(last["dataset"]) + 1]
    meant = tags.get(DATASETS_TAG)
    return [(key, first["model"]) for key in between if not meant or key in meant.split(",")]
