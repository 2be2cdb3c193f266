"""Dagster's own daemon and database ended and started again, with runs in every state."""

import signal
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.kubernetes.lab import DATASETS, LONG, Lab, cell, laboratory
from tests.kubernetes.test_faults import all_succeed, statuses


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with laboratory(tmp_path, monkeypatch.setenv, items=8000) as lab:
        yield lab


def test_a_daemon_that_is_killed_between_queue_and_launch_loses_and_doubles_nothing(lab: Lab) -> None:
    """Dagster itself leaves such a run in STARTING until it times out."""
    cells = [cell(dataset, f"tiny@{n}") for dataset in DATASETS for n in (1, 2)]
    with lab.daemon(stops=(signal.SIGKILL,)):
        lab.cluster.fault(("POST", "/jobs"), 500)  # so that they get as far as STARTING, and no further
        lab.launch(cells)
        lab.until(lambda runs: sum(r.status is dg.DagsterRunStatus.STARTING for r in runs) >= 2)
    lab.cluster.clear_faults()
    with lab.daemon():
        runs = all_succeed(lab, cells)
    assert statuses(runs) == {"SUCCESS": 4}
    lab.cluster.until(lab.is_clean, 60)


def test_a_database_that_restarts_costs_no_cell(lab: Lab) -> None:
    cells = [cell(LONG, "tiny@1"), cell("capitals", "tiny@2")]
    with lab.daemon():
        lab.launch(cells)
        lab.until(lambda runs: any(run.status is dg.DagsterRunStatus.STARTED for run in runs))
        lab.restart_postgres()
        all_succeed(lab, cells)
    lab.cluster.until(lab.is_clean, 60)
