"""What runs say of their tasks: Dagster's tags are the only memory that the automation has."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping

import dagster as dg
import pytest

from eval_assets.definitions import definitions
from eval_assets.grid import attempts
from eval_assets.grid.reconciling import Decision, Failures, Task, Work
from eval_assets.operations.notifications import report_given_up
from eval_assets.partitions import cell_key
from resources.errors import BusyError, TransientError, UserError
from resources.results import ResultsStore
from resources.settings import Settings
from tests.eval_assets.conftest import Project

ARC, SQUAD = Task(Work.EVALUATE, "a@1", "arc", "1"), Task(Work.EVALUATE, "b@1", "squad", "2")


def run_of(
    instance: dg.DagsterInstance,
    tags: Mapping[str, str],
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED,
) -> dg.DagsterRun:
    job = definitions(Settings.from_environment()).resolve_job_def("evaluate_models")
    return instance.create_run_for_job(job, tags=tags, status=status)


def say(instance: dg.DagsterInstance, run: dg.DagsterRun, failed: Mapping[Task, Exception]) -> None:
    """What a run of another machine says at its start and end."""

    class Context:
        def __init__(self) -> None:
            self.run, self.instance = run, instance

    attempts.begin(Context())  # type: ignore[arg-type]  # all that it uses of a context
    if failed:
        attempts.confess(Context(), failed)  # type: ignore[arg-type]
    instance.report_run_failed(run)


def test_a_run_over_several_models_keeps_their_cells_apart() -> None:
    """One model's failure would otherwise give up the other's cell."""
    assert attempts.tasks_in(attempts.tags_of([ARC, SQUAD])) == [ARC, SQUAD]


@pytest.mark.parametrize(
    ("error", "times", "permanent"),
    [
        (BusyError("at it"), 1, False),
        (TransientError("disk full"), 5, False),
        (OSError("gone"), 5, False),
        (UserError("mend it"), 5, True),
        (ValueError("a bug"), 5, True),
    ],
)
def test_failures_are_counted_but_for_waiting_on_another_process(
    project: Project, instance: dg.DagsterInstance, error: Exception, times: int, permanent: bool
) -> None:
    """A cell that somebody else evaluates for hours must neither be asked for all the time nor given up."""
    for _ in range(5):
        say(instance, run_of(instance, attempts.tags_of([ARC, SQUAD])), {ARC: error})
    found = attempts.failures(instance)
    assert set(found) == {ARC}
    assert (found[ARC].times, found[ARC].permanent) == (times, permanent)


def test_what_was_done_since_it_failed_begins_anew(project: Project, instance: dg.DagsterInstance) -> None:
    """Three Sundays that failed, each with a success after it, and the next lost result would be given up."""
    done = dg.AssetMaterialization("evaluation", partition=str(cell_key(ARC.dataset, ARC.model)))
    for error in (TransientError("x"), TransientError("x"), UserError("mend it")):
        say(instance, run_of(instance, attempts.tags_of([ARC, SQUAD])), {ARC: error, SQUAD: error})
        assert attempts.failures(instance)[ARC].permanent is not isinstance(error, TransientError)
        instance.report_runless_asset_event(done)
    found = attempts.failures(instance)
    assert {task: failed.times for task, failed in found.items()} == {SQUAD: 3}
    say(instance, run_of(instance, attempts.tags_of([ARC])), {ARC: TransientError("x")})
    again = attempts.failures(instance)[ARC]
    assert (again.times, again.permanent) == (1, False)


def test_what_is_cleared_on_one_benchmark_stays_given_up_on_the_others(
    project: Project, instance: dg.DagsterInstance
) -> None:
    """A person who mended one benchmark would start hours of what fails on another, and of another model."""
    other = Task(Work.EVALUATE, "a@1", "squad", "3")
    run = run_of(instance, attempts.tags_of([ARC, other, SQUAD]))
    say(instance, run, dict.fromkeys([ARC, other, SQUAD], UserError("mend it")))
    assert attempts.clear(instance, "a@1", ["arc"]) == 1
    assert set(attempts.failures(instance)) == {other, SQUAD}
    assert attempts.clear(instance, "a@1", ["arc"]) == 0
    assert attempts.clear(instance, "a@1") == 1
    assert set(attempts.failures(instance)) == {SQUAD}
    instance.add_run_tags(run.run_id, {attempts.CLEARED_TAG: run.run_id})  # of all its tasks, as once
    assert attempts.failures(instance) == {}
    assert attempts.clear(instance, "b@1") == 0


def test_a_run_that_is_executed_again_does_not_inherit_what_the_first_one_said(
    project: Project, instance: dg.DagsterInstance
) -> None:
    """Dagster copies a run's tags: the new run would be ended as an orphan while it is still queued."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    first = run_of(instance, attempts.tags_of([ARC]))
    gone = f"{socket.gethostname()}:{process.pid}:{first.run_id}"
    instance.add_run_tags(
        first.run_id,
        {attempts.PROCESS_TAG: gone, attempts.FAILED_TAG: "{}", attempts.CLEARED_TAG: first.run_id},
    )
    copied = instance.get_run_by_id(first.run_id)
    assert copied is not None
    again = run_of(instance, copied.tags, dg.DagsterRunStatus.NOT_STARTED)
    attempts.end_orphans(instance)
    statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses[first.run_id] == dg.DagsterRunStatus.FAILURE
    assert statuses[again.run_id] == dg.DagsterRunStatus.NOT_STARTED
    say(instance, again, {})
    assert attempts.failures(instance)[ARC].times == 1
    assert "ended without a word" in attempts.failures(instance)[ARC].reason


def test_what_a_run_says_of_its_failure_keeps_dagster_from_trying_it_again_and_no_run_inherits_that(
    project: Project, instance: dg.DagsterInstance
) -> None:
    retry = "dagster/retry_on_asset_or_op_failure"
    first = run_of(instance, attempts.tags_of([ARC]))
    say(instance, first, {ARC: UserError("mend it")})
    failed = instance.get_run_by_id(first.run_id)
    assert failed is not None
    assert failed.tags[retry] == "false"
    again = run_of(instance, failed.tags)
    say(instance, again, {})
    executed = instance.get_run_by_id(again.run_id)
    assert executed is not None
    assert executed.tags[retry] == "true"


def test_a_run_of_a_living_process_is_no_orphan(project: Project, instance: dg.DagsterInstance) -> None:
    run = run_of(instance, attempts.tags_of([ARC]))
    mine = f"{socket.gethostname()}:{os.getpid()}:{run.run_id}"
    instance.add_run_tags(run.run_id, {attempts.PROCESS_TAG: mine})
    attempts.end_orphans(instance)
    assert instance.get_runs()[0].status == dg.DagsterRunStatus.STARTED


def test_a_cell_that_is_given_up_a_second_time_is_told_again(
    project: Project, instance: dg.DagsterInstance
) -> None:
    """As an event that Dagster can store: it holds one runless check of a partition, ever."""
    store = ResultsStore(Settings.from_environment().store)
    for fingerprint, expected in (("1", 1), ("1", 0), ("2", 1)):
        task = Task(Work.EVALUATE, "tiny@1", "capitals", fingerprint)
        decision = Decision((), {}, {task: Failures(3, 0.0, "it broke")}, 0)
        events = report_given_up(Settings.from_environment(), store, decision, print)
        assert len(events) == expected
        for event in events:
            instance.report_runless_asset_event(event)


def test_a_run_launched_by_another_version_of_dagster_says_so(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an upgrade is hard to see in what fails later because of it."""
    said: list[str] = []

    class Context:
        run = run_of(instance, {})
        log = logging.getLogger("skew")

        def __init__(self) -> None:
            self.instance = instance

    monkeypatch.setattr(Context.log, "warning", said.append)
    for version in (dg.__version__, "1.2.3"):
        monkeypatch.setenv("EVAL_POD", json.dumps({"dagster": version}))
        attempts.begin(Context())  # type: ignore[arg-type]  # all that it uses of a context
    assert said == [
        f"a daemon with dagster 1.2.3 launched this run, whose image has {dg.__version__}: "
        "deploy webserver, daemon and runs from one image"
    ]
