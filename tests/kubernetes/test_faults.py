"""What happens in clusters to runs. After each: no run stuck, no Job left, every sample there, and once."""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from resources.pods.cluster import Cluster as PodCluster
from resources.pods.cluster import ClusterSilentError
from tests.committed import committed_in
from tests.kubernetes.clients import connect
from tests.kubernetes.clients import job as job_manifest
from tests.kubernetes.clients import pod as pod_manifest
from tests.kubernetes.lab import DATASETS, LONG, NAMESPACE, Lab, cell, laboratory

SMALL = {"nodeSelector": {"gpu": "small"}}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One laboratory for all: what a test breaks, it mends."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("faults")
        with laboratory(folder, patch.setenv, items=8000) as lab, lab.daemon():
            yield lab


@pytest.fixture
def lab(running: Lab) -> Iterator[Lab]:
    """With nothing evaluated and no runs of before; at the end nothing may be left in the cluster."""
    running.forget()
    yield running
    running.cluster.clear_faults()
    running.cluster.until(running.is_clean, 60)


def statuses(runs: list[dg.DagsterRun]) -> Counter[str]:
    return Counter(run.status.value for run in runs)


def retried(runs: list[dg.DagsterRun]) -> dict[str, list[dg.DagsterRun]]:
    """The runs of each cell, the first one first."""
    found: dict[str, list[dg.DagsterRun]] = {}
    for run in reversed(runs):
        found.setdefault(run.tags["dagster/partition"], []).append(run)
    return found


def all_succeed(lab: Lab, cells: list[str], seconds: float = 240.0) -> list[dg.DagsterRun]:
    """Wait until the last run of each cell has succeeded."""
    runs = lab.until(
        lambda runs: (
            len(retried(runs)) == len(cells)
            and all(tries[-1].status is dg.DagsterRunStatus.SUCCESS for tries in retried(runs).values())
        ),
        seconds,
    )
    evaluated = [(dataset, model) for dataset, model, _ in lab.evaluated()]
    assert sorted(evaluated) == sorted(tuple(key.split("|")) for key in cells)
    for record in committed_in(lab.store):
        samples = [sample.sample_id for sample in lab.store.samples(record)]
        assert len(samples) == len(set(samples)) == record["items_available"]
    return runs


def test_pods_killed_at_ten_random_moments_cost_no_cell_and_no_sample(lab: Lab) -> None:
    cells = [cell(dataset, f"tiny@{n}") for dataset in (LONG, "capitals") for n in (1, 2, 3)]
    kills = {key: 2 if n < 4 else 1 for n, key in enumerate(cells)}
    """How many tries of each lose their pod."""
    lab.launch(cells)
    moments = random.Random(20261128)
    due: dict[str, float] = {}
    killed: set[str] = set()

    def step(runs: list[dg.DagsterRun]) -> bool:
        for key, tries in retried(runs).items():
            for run in tries[: kills[key]]:
                pods = lab.cluster.list("pods", NAMESPACE, f"dagster/run-id={run.run_id}")
                if run.run_id in killed or not pods or pods[0]["status"].get("phase") != "Running":
                    continue
                longest = 2.0 if key.startswith("capitals|") else 8.0
                due.setdefault(run.run_id, time.monotonic() + moments.uniform(0.0, longest))
                if time.monotonic() >= due[run.run_id]:
                    lab.cluster.kill(pods[0], signal.SIGKILL)
                    killed.add(run.run_id)
        done = [tries[-1].status is dg.DagsterRunStatus.SUCCESS for tries in retried(runs).values()]
        return len(done) == len(cells) and all(done)

    lab.until(step, 420)
    assert len(killed) == sum(kills.values()) == 10
    all_succeed(lab, cells)


def test_a_run_whose_node_is_lost_goes_on_elsewhere_within_two_minutes(lab: Lab) -> None:
    key = cell(LONG, "tiny@2")
    lab.launch([key])
    first = lab.until(lambda runs: runs and runs[0].status is dg.DagsterRunStatus.STARTED)[0]
    node = lab.pod(first.run_id)["spec"]["nodeName"]
    lab.cluster.lose_node(node)
    lost = time.monotonic()
    try:
        second = lab.until(lambda runs: len(runs) > 1 and runs[0].status is dg.DagsterRunStatus.STARTED, 120)[
            0
        ]
        print(f"running elsewhere {time.monotonic() - lost:.0f} s after its node was lost")
        assert lab.pod(second.run_id)["spec"]["nodeName"] != node
        assert any("node lost: its node" in text for text in lab.messages(first.run_id))
        all_succeed(lab, [key])
    finally:
        lab.cluster.return_node(node)


def test_an_evicted_run_keeps_what_it_has_and_is_tried_again(lab: Lab) -> None:
    key = cell(LONG, "tiny@1")
    lab.launch([key])
    run = lab.until(lambda runs: runs and runs[0].status is dg.DagsterRunStatus.STARTED)[0]
    lab.cluster.until(lambda: lab.progress(LONG, "tiny@1"), 60)
    lab.cluster.evict(lab.pod(run.run_id))
    runs = all_succeed(lab, [key])
    assert statuses(runs) == {"SUCCESS": 1, "FAILURE": 1}
    (record,) = committed_in(lab.store)
    assert record["samples_resumed"] > 0


def test_a_run_killed_for_want_of_memory_gets_a_larger_pod(lab: Lab) -> None:
    """The first estimate comes from an evaluation that took very little."""
    took = {"model": "tiny@1", "engine": {"device": "cpu"}, "peak_memory_bytes": 250 * 2**20, "seconds": {}}
    lab.store.put_json("evaluations/other/tiny@1/0/evaluation.json", took)
    key = cell("capitals", "tiny@1")
    lab.launch([key])
    runs = lab.until(lambda runs: runs and runs[0].status is dg.DagsterRunStatus.SUCCESS, 240)
    limits = [lab.resources(run.run_id)["memory"] for run in retried(runs)[key]]
    assert limits[:2] == ["300Mi", "450Mi"]
    first = retried(runs)[key][0]
    assert "out of memory: killed for want of memory at its limit of 0.29 GiB" in lab.messages(first.run_id)


def test_an_image_that_cannot_be_pulled_fails_its_run_within_a_minute_and_for_good(lab: Lab) -> None:
    lab.cluster.broken_images.add("evaluation:test")
    began = time.monotonic()
    try:
        lab.launch([cell("capitals", "tiny@1")])
        runs = lab.until_over(1, 90)
        print(f"failed {time.monotonic() - began:.0f} s after it was launched")
        assert time.monotonic() - began < 75
    finally:
        lab.cluster.broken_images.clear()
    assert statuses(runs) == {"FAILURE": 1}
    assert any(
        text.startswith("unable to start: ") and "Pull" in text for text in lab.messages(runs[0].run_id)
    )


NOT_INSTALLED = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name == "eval_assets":
            raise ModuleNotFoundError("No module named 'eval_assets'", name=name)

sys.meta_path.insert(0, Nothing())
"""


def test_an_image_without_our_package_fails_its_run_and_says_what_is_missing(
    lab: Lab, tmp_path: Path
) -> None:
    """A traceback in a pod's log, which is gone with the pod, helps nobody who mistyped an image's name."""
    (tmp_path / "sitecustomize.py").write_text(NOT_INSTALLED)
    person = {"container_config": {"env": [{"name": "PYTHONPATH", "value": str(tmp_path)}]}}
    # Dagster may decide on a retry before the reason is known; here it must not reach into the next test.
    tags = {"dagster-k8s/config": json.dumps(person), "dagster/max_retries": "0"}
    lab.launch([cell("capitals", "tiny@1")], tags)
    runs = lab.until_over(1, 90)
    assert statuses(runs) == {"FAILURE": 1}
    wanted = "unable to start: image evaluation:test has no package eval_assets: build it"
    lab.until(lambda runs: any(text.startswith(wanted) for text in lab.messages(runs[0].run_id)), 30)


def test_a_run_that_knows_why_it_failed_is_not_tried_again(lab: Lab) -> None:
    """Dagster tries failed steps again: those that lost its database. A mistake would fail three times."""
    lab.launch([cell("hellaswag", "tiny@1")])
    (run,) = lab.until_over(1, 90)
    assert "benchmark hellaswag is not prepared yet" in run.tags["eval/failed"]
    told = "Not retrying run since it failed due to an asset or op failure"
    lab.until(lambda _: any(text.startswith(told) for text in lab.messages(run.run_id)), 30)
    assert statuses(lab.until_over(1, 0)) == {"FAILURE": 1}


def test_a_run_without_a_free_gpu_waits_and_says_so(lab: Lab) -> None:
    """The stock launcher fails it, and leaves a Job that starts for nothing later."""
    for n in (1, 2):
        lab.cluster.apply(
            pod_manifest(f"other-{n}", "sleep 600", spec=SMALL, resources={"limits": {"nvidia.com/gpu": 2}})
        )
    try:
        lab.launch([cell("capitals", "tiny@2")])
        run = lab.until(
            lambda runs: runs and "Insufficient nvidia.com/gpu" in str(lab.messages(runs[0].run_id))
        )[0]
        assert run.status is dg.DagsterRunStatus.STARTING
    finally:
        for n in (1, 2):
            lab.remove("pods", f"other-{n}")
    all_succeed(lab, [cell("capitals", "tiny@2")])


def test_more_devices_than_there_are_are_never_asked_for(lab: Lab) -> None:
    """Three pods of three devices on eight: the third waits in Dagster, and says for what."""
    cells = [cell(dataset, "tiny@3") for dataset in (*DATASETS, LONG)]
    lab.launch(cells)
    lab.until(
        lambda runs: any(
            "waits for 3 of class large: 2 of 8 free, 0 runs ahead" in lab.messages(run.run_id)
            for run in runs
        )
    )
    runs = all_succeed(lab, cells)
    assert statuses(runs) == {"SUCCESS": 3}
    assert lab.cluster.use_report().by_node["large-1"] == 6


@pytest.mark.parametrize("answer", [500, 429, 403, "hang", "cut"])
def test_an_api_server_that_fails_for_a_while_costs_no_run(lab: Lab, answer: Any) -> None:
    """Thirty seconds without it kill healthy runs of the stock launcher."""
    cells = [cell("capitals", "tiny@1"), cell("sentences", "tiny@1")]
    lab.cluster.fault(("*", "/"), answer)
    lab.launch(cells)

    def told(run: dg.DagsterRun) -> list[str]:
        return [text for text in lab.messages(run.run_id) if text.startswith("the cluster ")]

    lab.until(lambda runs: len(runs) == 2 and all(told(run) for run in runs))
    later = time.monotonic() + 12
    lab.until(lambda _: time.monotonic() > later)
    lab.cluster.clear_faults()
    runs = all_succeed(lab, cells)
    assert statuses(runs) == {"SUCCESS": 2}
    for run in runs:
        first, second = told(run)  # once each, however often it was asked meanwhile
        assert "the run goes on, and it is asked again for 600 s" in first
        assert second.startswith("the cluster answers again, after ")


def test_an_api_server_that_is_gone_while_runs_are_at_work_costs_no_run(lab: Lab) -> None:
    key = cell(LONG, "tiny@1")
    lab.launch([key, cell("capitals", "tiny@2")])
    lab.until(lambda runs: any(run.status is dg.DagsterRunStatus.STARTED for run in runs))
    lab.cluster.stop_answering(20)
    runs = all_succeed(lab, [key, cell("capitals", "tiny@2")])
    assert statuses(runs) == {"SUCCESS": 2}


def test_a_job_whose_answer_never_came_is_not_made_twice(lab: Lab) -> None:
    before = len(lab.cluster.requests)
    lab.cluster.fault(("POST", "/jobs"), "lost", times=1)
    lab.launch([cell("capitals", "tiny@1")])
    runs = all_succeed(lab, [cell("capitals", "tiny@1")])
    assert statuses(runs) == {"SUCCESS": 1}
    made = [r for r in lab.cluster.requests[before:] if (r.method, r.path[-5:]) == ("POST", "/jobs")]
    assert [request.status for request in made].count(201) <= 1
    assert len(lab.cluster.list("pods", NAMESPACE, f"dagster/run-id={runs[0].run_id}")) == 1


def test_a_run_that_is_cancelled_in_the_ui_leaves_nothing(lab: Lab) -> None:
    lab.launch([cell(LONG, "tiny@1")])
    run = lab.until(lambda runs: runs and runs[0].status is dg.DagsterRunStatus.STARTED)[0]
    lab.cancel(run.run_id)
    runs = lab.until_over(1, 60)
    assert statuses(runs) == {"CANCELED": 1}
    lab.cluster.until(lambda: not lab.cluster.list("jobs", NAMESPACE, f"dagster/run-id={run.run_id}"), 60)


def test_a_run_whose_job_cannot_be_made_fails_alone(lab: Lab) -> None:
    """The library that makes it raises something of its own; the runs behind must not wait for that."""
    wrong = '{"pod_spec_config": {"tolerations": "all of them"}}'
    lab.launch([cell("capitals", "tiny@1")], {"dagster-k8s/config": wrong})
    lab.launch([cell("sentences", "tiny@1")])
    runs = lab.until_over(2, 120)
    assert {run.tags["dagster/partition"]: run.status.value for run in runs} == {
        cell("capitals", "tiny@1"): "FAILURE",
        cell("sentences", "tiny@1"): "SUCCESS",
    }


def test_the_webserver_may_end_a_run_with_what_its_account_may_do_and_nothing_else(lab: Lab) -> None:
    clients = connect(lab.cluster, "webserver")
    cluster = PodCluster(clients.batch, clients.core, NAMESPACE)
    lab.cluster.apply(job_manifest("one", "sleep 600"))
    lab.cluster.until(lambda: lab.cluster.list("pods", NAMESPACE, "job-name=one"))
    cluster.remove("one")
    lab.cluster.until(lambda: not lab.cluster.list("pods", NAMESPACE, "job-name=one"))
    with pytest.raises(ClusterSilentError, match="the cluster answers 403"):
        cluster.runs()


def test_a_quota_that_is_used_up_is_waited_for_and_told(lab: Lab) -> None:
    quota = {
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": NAMESPACE},
        "spec": {"hard": {"requests.nvidia.com/gpu": "1"}},
    }  # fmt: skip
    lab.cluster.apply(quota)
    cells = [cell(LONG, "tiny@2"), cell("capitals", "tiny@2")]
    try:
        lab.launch(cells)
        lab.until(lambda runs: any("exceeded quota" in str(lab.messages(run.run_id)) for run in runs))
        runs = all_succeed(lab, cells)
        assert statuses(runs) == {"SUCCESS": 2}
    finally:
        lab.remove("resourcequotas", "q")
