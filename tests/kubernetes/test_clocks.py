"""Times that the cluster says are its own clock's, and waiting for a pod has an end."""

import time
from collections.abc import Iterator

import dagster as dg
import pytest

from tests.kubernetes import store
from tests.kubernetes.clients import pod as pod_manifest
from tests.kubernetes.lab import Lab, cell, laboratory
from tests.kubernetes.test_faults import SMALL, retried

QUEUE_SECONDS = 45
PERSISTENT = 25
"""A little less than what makes a trouble a lasting one: the API's times are whole seconds."""


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Runs may wait for `QUEUE_SECONDS`."""
    monkeypatch.setenv("EVAL_QUEUE_TIMEOUT", str(QUEUE_SECONDS))
    with laboratory(tmp_path_factory.mktemp("clock"), monkeypatch.setenv) as lab, lab.daemon():
        yield lab
        lab.cluster.until(lab.is_clean, 60)


def test_a_clock_an_hour_off_hurries_nothing_and_a_run_waits_no_longer_than_it_may(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with our own clock, a pod that is being started would be long overdue, or never be."""
    monkeypatch.setattr(store, "AHEAD", 3600.0)
    for n in (1, 2):
        lab.cluster.apply(
            pod_manifest(f"other-{n}", "sleep 600", spec=SMALL, resources={"limits": {"nvidia.com/gpu": 2}})
        )
    evaluated, waits, ahead, behind = (
        cell("capitals", "tiny@1"), cell("capitals", "tiny@2"), cell("capitals", "tiny@3"),
        cell("sentences", "tiny@3"),
    )  # fmt: skip
    lab.launch([waits, evaluated])
    began = time.monotonic()
    lab.until(lambda runs: _status(runs, evaluated) is dg.DagsterRunStatus.SUCCESS, 120)
    lab.cluster.broken_images.add("evaluation:test")
    _fails_after_its_time(lab, ahead)
    runs = lab.until(lambda runs: _status(runs, waits) is dg.DagsterRunStatus.FAILURE, 120)
    assert time.monotonic() - began >= QUEUE_SECONDS
    assert any(
        text.startswith("unable to start: it has waited for ") and "Insufficient nvidia.com/gpu" in text
        for text in lab.messages(retried(runs)[waits][0].run_id)
    )
    monkeypatch.setattr(store, "AHEAD", -3600.0)
    _fails_after_its_time(lab, behind)
    for n in (1, 2):
        lab.remove("pods", f"other-{n}")


def _fails_after_its_time(lab: Lab, key: str) -> None:
    """A run whose image can't be pulled, which looks like a registry's moment of weakness at first."""
    lab.launch([key])
    began = time.monotonic()
    runs = lab.until(lambda runs: _status(runs, key) is dg.DagsterRunStatus.FAILURE, 90)
    assert time.monotonic() - began >= PERSISTENT
    assert "Pull" in str(lab.messages(retried(runs)[key][0].run_id))


def _status(runs: list[dg.DagsterRun], key: str) -> dg.DagsterRunStatus | None:
    tries = retried(runs).get(key)
    return tries[-1].status if tries else None
