"""What answers of a Kubernetes API mean, and whose clock counts."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import kubernetes.client
import pytest
import urllib3.exceptions

from resources.errors import TransientError, UserError
from resources.pods.cluster import Cluster, ClusterSilentError, FullError, RefusedError


def answer(items: list[Any], date: str = "") -> Any:
    headers = {"Date": date} if date else {}
    return SimpleNamespace(data=json.dumps({"items": items}).encode(), headers=headers)


def cluster(call: Any) -> Cluster:
    api = SimpleNamespace(
        list_namespaced_job=call, list_namespaced_pod=call, list_namespaced_event=call,
        delete_namespaced_job=call, delete_namespaced_pod=call, read_namespaced_job=call,
    )  # fmt: skip
    return Cluster(api, api, "evaluation")


def failing(error: Exception) -> Any:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def refusal(status: int, message: str = "why", reason: str = "") -> kubernetes.client.ApiException:
    error = kubernetes.client.ApiException(status=status, reason="short")
    error.body = json.dumps({"message": message, "reason": reason})
    return error


def test_the_clusters_own_clock_is_compared_with_its_objects_times() -> None:
    """A daemon whose clock is an hour wrong would fail pods that were just made, or wait too long."""
    _, now = cluster(lambda *_, **__: answer([], "Sat, 28 Nov 2026 12:00:00 GMT")).runs()
    assert now == datetime(2026, 11, 28, 12, tzinfo=UTC)
    _, now = cluster(lambda *_, **__: answer([])).runs()
    assert abs((datetime.now(UTC) - now).total_seconds()) < 60


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((refusal(status), ClusterSilentError) for status in (401, 403, 429, 500, 503)),
        (refusal(422), RefusedError), (refusal(403, "exceeded quota: q, requested: x=1"), FullError),
        (urllib3.exceptions.HTTPError("slow"), ClusterSilentError),
        (ConnectionResetError(), ClusterSilentError), (AttributeError("getheaders"), ClusterSilentError),
        (ValueError("no JSON"), ClusterSilentError),
    ],
)  # fmt: skip
def test_a_failure_passes_or_is_for_good(error: Exception, kind: type[UserError]) -> None:
    """What may pass must never fail a run; what is for good must not be waited for."""
    with pytest.raises(kind) as raised:
        cluster(failing(error)).runs()
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, TransientError) == (kind is not RefusedError)


def test_what_is_gone_already_is_removed() -> None:
    gone = cluster(failing(refusal(404)))
    gone.remove("job")
    gone.end("pod", at_once=True)


def test_a_job_that_is_there_is_ours_or_somebody_elses() -> None:
    def there(run_id: str) -> Cluster:
        labels = {"dagster/run-id": run_id}
        found = SimpleNamespace(data=json.dumps({"metadata": {"labels": labels}}).encode())
        return cluster(lambda *_, **__: found)

    exists = failing(refusal(409, "there", "AlreadyExists"))
    there("mine").create(exists, "mine", "dagster-run-mine")
    with pytest.raises(RefusedError, match="a Job dagster-run-mine is there already and not of this run"):
        there("other").create(exists, "mine", "dagster-run-mine")


def test_pods_are_found_by_their_run_also_without_their_job_and_events_by_their_object() -> None:
    label = {"dagster/run-id": "r1"}
    job = {"metadata": {"name": "j", "labels": label}}
    pod = {"metadata": {"name": "p", "labels": label}}
    orphan = {"metadata": {"name": "o", "labels": {"dagster/run-id": "r2"}}}
    event = {"involvedObject": {"name": "p"}, "reason": "FailedMount"}
    lists: Iterator[list[Any]] = iter([[job], [pod, orphan], [event, {"involvedObject": {"name": "x"}}]])
    seen, _ = cluster(lambda *_, **__: answer(next(lists))).runs()
    assert (seen["r1"].job, seen["r1"].pods, seen["r1"].warnings) == (job, [pod], [event])
    assert (seen["r2"].job, seen["r2"].pods) == (None, [orphan])
