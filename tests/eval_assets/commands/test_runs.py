import os
import socket
import subprocess
import sys

import dagster as dg
import pytest

from eval_assets.definitions import definitions
from eval_assets.grid.attempts import PROCESS_TAG
from eval_assets.partitions import row_tags
from resources import interrupts
from resources.settings import Settings
from tests.committed import committed_in
from tests.conftest import ROOT
from tests.eval_assets.conftest import Project


def started_run(instance: dg.DagsterInstance, process: str) -> str:
    """A run that is marked as started by a process; returns its id."""
    job = definitions(Settings.from_environment()).resolve_job_def("evaluate_models")
    run = instance.create_run_for_job(
        job,
        tags=row_tags("tiny@1", ["capitals"]),
        status=dg.DagsterRunStatus.STARTED,
    )
    instance.add_run_tags(run.run_id, {PROCESS_TAG: f"{process}:{run.run_id}"})
    return run.run_id


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("alive", [True, False])
def test_a_run_whose_terminal_was_killed_does_not_stay_running_for_ever(
    project: Project, instance: dg.DagsterInstance, alive: bool
) -> None:
    """Its cells would count as in flight, and never be evaluated again."""
    pid = os.getpid() if alive else ended_process()
    project.registered("tiny@1")
    run_id = started_run(instance, f"{socket.gethostname()}:{pid}")
    runs = project.runs()
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status == (dg.DagsterRunStatus.STARTED if alive else dg.DagsterRunStatus.FAILURE)
    missing = runs.missing(runs.cells(["tiny@1"], ["capitals", "sentences"]))
    assert [request.datasets for request in missing] == [
        ("sentences",) if alive else ("capitals", "sentences"),
    ]


def test_a_run_of_another_machine_is_left_alone(project: Project, instance: dg.DagsterInstance) -> None:
    project.registered("tiny@1")
    run_id = started_run(instance, f"another-machine:{ended_process()}")
    project.runs()
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.STARTED


def test_cells_that_another_run_is_evaluating_are_left_to_it_and_said(
    project: Project, instance: dg.DagsterInstance
) -> None:
    project.registered("tiny@1")
    started_run(instance, f"{socket.gethostname()}:{os.getpid()}")
    result = subprocess.run(
        [sys.executable, "-m", "eval_assets", "evaluate", "--models", "tiny@1", "--benchmarks",
         "capitals,sentences"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "1 of 2 cells are being evaluated by other runs." in result.stdout
    assert "1 of 2 cells to evaluate" in result.stdout
    assert {record["dataset"] for record in committed_in(project.runs().store)} == {"sentences"}


def test_a_signal_that_dagster_took_and_forgot_still_ends_the_command(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that goes on with the next model after Ctrl-C has to be killed; what is done stays done."""
    runs = project.runs()
    monkeypatch.setattr(interrupts, "asked_to_end", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        runs.register(["tiny@1"])
    assert instance.get_runs(limit=1)[0].status == dg.DagsterRunStatus.SUCCESS
