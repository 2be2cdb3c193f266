"""The watch's decisions, look by look, on a real instance and a cluster that shows what it is told to."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._utils.error import serializable_error_info_from_exc_info

from resources.errors import TransientError, UserError
from resources.pods import watch as module
from resources.pods.catalogue import Catalogue
from resources.pods.cluster import ClusterSilentError
from resources.pods.diagnosis import Seen
from resources.pods.tags import POD_TAG, Kind, ending_of
from resources.pods.watch import Patience, PodWatch

JOB = {"metadata": {"name": "j"}, "status": {}}


class Shown:
    """Stands for the cluster: `seen` is what it shows, `done` what it was asked to do."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}
        self.done: list[str] = []
        self.logs: dict[str, str] = {}
        self.silent = False

    def runs(self) -> tuple[dict[str, Seen], datetime]:
        if self.silent:
            raise ClusterSilentError("the cluster does not answer")
        return self.seen, datetime.now(UTC)

    def log(self, pod: str) -> str:
        return self.logs[pod]

    def remove(self, name: str) -> None:
        self.done.append(f"remove {name}")

    def end(self, pod: str, *, at_once: bool = False) -> None:
        self.done.append(f"end {pod}{' at once' if at_once else ''}")


class Bench:
    """A watch with everything around it, and no thread."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.cluster = instance, Shown()
        self.created: list[str] = []
        self.trouble: dict[str, Exception] = {}
        self.catalogue: Any = Catalogue
        cluster: Any = self.cluster
        self.watch = PodWatch(
            instance, cluster, lambda: self.catalogue(), self._plan, self._create, Patience(600, 3600)
        )

    def _plan(self, run: dg.DagsterRun) -> None:
        if run.run_id in self.trouble:
            raise self.trouble[run.run_id]
        self.instance.add_run_tags(run.run_id, {POD_TAG: f'{{"run": "{run.run_id}"}}'})

    def _create(self, run: dg.DagsterRun) -> None:
        self.created.append(run.run_id)

    def run(self, status: dg.DagsterRunStatus) -> str:
        job = dg.job(name="nothing")(lambda: None)
        return self.instance.create_run_for_job(job, status=status).run_id

    def of(self, run_id: str) -> dg.DagsterRun:
        found = self.instance.get_run_by_id(run_id)
        assert found is not None
        return found

    def said(self, run_id: str) -> list[str]:
        return [entry.message for entry in self.instance.all_logs(run_id)]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(module, "LEAVE_SECONDS", 0.0)
    with dg.DagsterInstance.ephemeral() as instance:
        yield Bench(instance)


STARTING, STARTED = dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED


def pod(phase: str, **metadata: Any) -> dict[str, Any]:
    made = {"name": "p", "creationTimestamp": datetime.now(UTC).isoformat(), **metadata}
    return {"metadata": made, "spec": {}, "status": {"phase": phase}}


def test_a_run_without_a_job_gets_one_also_where_nobody_planned_it(bench: Bench) -> None:
    run = bench.run(STARTING)
    bench.watch.look()
    bench.watch.look()
    assert set(bench.created) == {run}


def test_trouble_with_one_run_is_not_the_others(bench: Bench) -> None:
    weather, wrong, odd, fine = (bench.run(STARTING) for _ in range(4))
    bench.trouble = {
        weather: TransientError("the store is away"), wrong: UserError("too large"), odd: RuntimeError("odd"),
    }  # fmt: skip
    for _ in range(2):
        bench.watch.look()
    assert set(bench.created) == {fine}
    assert bench.of(weather).status is STARTING
    assert bench.said(weather).count("the store is away") == 1
    assert ending_of(bench.of(wrong))["reason"] == "too large"
    assert bench.of(wrong).tags["dagster/max_retries"] == "0"
    assert ending_of(bench.of(odd))["reason"] == "RuntimeError: odd"


def test_who_has_waited_for_longer_than_the_queue_allows_is_failed_with_what_for(bench: Bench) -> None:
    run = bench.run(STARTING)
    bench.cluster.seen = {run: Seen(JOB, [pod("Pending")])}
    bench.watch.look()
    assert bench.of(run).status is STARTING
    bench.watch._patience = Patience(600, -1.0)
    bench.watch.look()
    assert bench.of(run).is_finished
    assert "(EVAL_QUEUE_TIMEOUT): its pod is being started" in ending_of(bench.of(run))["reason"]
    bench.watch.look()
    assert bench.cluster.done == ["remove j"]


def test_a_silent_cluster_is_told_once_and_when_it_speaks_again(bench: Bench) -> None:
    run = bench.run(STARTED)
    bench.cluster.seen = {run: Seen(JOB, [pod("Running")])}
    bench.cluster.silent = True
    for _ in range(3):
        bench.watch.look()
    bench.cluster.silent = False
    for _ in range(2):
        bench.watch.look()
    told = [text for text in bench.said(run) if text.startswith("the cluster ")]
    assert [text[:27] for text in told] == ["the cluster does not answer", "the cluster answers again, "]
    assert bench.of(run).status is STARTED


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        (Seen(), Kind.EVICTED),
        (Seen(JOB, [pod("Succeeded")]), Kind.CRASHED),
        (Seen(JOB, [pod("Failed")]), Kind.CRASHED),
    ],
)
def test_a_run_whose_pod_is_over_is_over(bench: Bench, seen: Seen, kind: Kind) -> None:
    run = bench.run(STARTED)
    bench.cluster.seen = {run: seen} if seen.job else {}
    bench.watch.look()
    assert ending_of(bench.of(run))["kind"] == kind


def test_a_cancelled_run_is_over_when_nothing_of_it_is_left(bench: Bench) -> None:
    run = bench.run(dg.DagsterRunStatus.CANCELING)
    bench.cluster.seen = {run: Seen(JOB, [pod("Running")])}
    bench.watch.look()
    # The Job is gone at once, its pod has its grace period and is left alone.
    bench.cluster.seen = {run: Seen(None, [pod("Running", deletionTimestamp="2999-01-01T00:00:00Z")])}
    bench.watch.look()
    assert bench.cluster.done == ["remove j"]
    assert not bench.of(run).is_finished
    bench.cluster.seen = {}
    bench.watch.look()
    assert bench.of(run).status is dg.DagsterRunStatus.CANCELED


def test_what_a_finished_run_left_at_work_is_removed(bench: Bench) -> None:
    run = bench.run(dg.DagsterRunStatus.FAILURE)
    bench.cluster.seen = {run: Seen(JOB, [pod("Running")]), "unknown": Seen(None, [pod("Running")])}
    bench.watch.look()
    assert bench.cluster.done == ["remove j", "end p"]


def test_a_mistake_in_the_catalogue_keeps_runs_waiting_and_hurts_no_pod(bench: Bench) -> None:
    waits, works = bench.run(STARTING), bench.run(STARTED)
    bench.cluster.seen = {works: Seen(JOB, [pod("Running")])}

    def wrong() -> Catalogue:
        raise UserError("accelerators.yaml: unknown field")

    bench.catalogue = wrong
    bench.watch.look()
    assert (bench.of(waits).status, bench.of(works).status) == (STARTING, STARTED)
    assert "accelerators.yaml: unknown field" in bench.said(waits)
    bench.catalogue = Catalogue
    for _ in range(2):
        bench.watch.look()
    assert set(bench.created) == {waits}


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (
            ModuleNotFoundError("No module named 'eval_assets'"),
            Kind.UNABLE,
            "image e:1 has no package eval_assets: build it",
        ),
        (
            UserError("bad.yaml: task: unknown"),
            Kind.UNABLE,
            "its process could not load the job: bad.yaml: task: unknown",
        ),
        (OSError("the disk is away"), Kind.CRASHED, "its process could not load the job: OSError: the disk"),
    ],
)
def test_a_run_that_could_not_load_its_job_says_why_and_is_given_up_where_that_stays(
    bench: Bench, error: Exception, kind: Kind, reason: str
) -> None:
    """What may be the weather must not end a cell for good, and what is a mistake must."""
    run = bench.run(STARTING)
    try:
        raise RuntimeError("Error occurred during the loading of Dagster definitions") from error
    except RuntimeError:
        data = EngineEventData.engine_error(serializable_error_info_from_exc_info(sys.exc_info()))
    bench.instance.report_engine_event("Could not load job definition.", bench.of(run), data)
    bench.instance.report_run_failed(bench.of(run))
    failed = {**pod("Failed"), "spec": {"containers": [{"image": "e:1"}]}}
    bench.cluster.seen = {run: Seen(JOB, [failed])}
    for _ in range(2):
        bench.watch.look()
    ended = ending_of(bench.of(run))
    assert (ended["kind"], ended["reason"][: len(reason)]) == (kind, reason)
    told = [text for text in bench.said(run) if text.startswith(f"{kind}: {reason}")]
    assert len(told) == 1
    given_up = {"dagster/max_retries": "0", "dagster/will_retry": "false"}
    assert (given_up.items() <= bench.of(run).tags.items()) is (kind is Kind.UNABLE)


def test_a_process_that_died_before_its_run_began_is_explained_by_its_log(bench: Bench) -> None:
    run = bench.run(STARTING)
    failed = {**pod("Failed"), "spec": {"containers": [{"image": "e:1"}]}}
    bench.cluster.seen = {run: Seen(JOB, [failed])}
    bench.cluster.logs = {"p": "/usr/bin/python3: No module named dagster\n"}
    bench.watch.look()
    assert ending_of(bench.of(run))["reason"].startswith("image e:1 has no package dagster: ")
    assert bench.of(run).tags["dagster/max_retries"] == "0"
