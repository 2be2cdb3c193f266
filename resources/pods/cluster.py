"""The few calls to the Kubernetes API that runs need, each bounded, and what their failures mean."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import kubernetes.client
import urllib3.exceptions
from dagster_k8s.client import DagsterK8sAPIRetryLimitExceeded, DagsterK8sUnrecoverableAPIError

from resources.errors import TransientError, UserError
from resources.pods.diagnosis import Seen

TIMEOUT = (5.0, 10.0)
"""Seconds for connecting and for an answer."""
_RUN_WORKERS = "app.kubernetes.io/component=run_worker"
RUN_LABEL = "dagster/run-id"
_TRANSIENT = {401, 403, 408, 409, 429}


class ClusterSilentError(TransientError):
    """The cluster does not answer, or not sensibly: refused, timed out, 401, 403, 429, 5xx. It may pass."""


class FullError(TransientError):
    """A quota is used up; when something ends, there is room again."""


class RefusedError(UserError):
    """The cluster refuses an object as it is, and will do so the next time."""


class Cluster:
    """The namespace of the runs, through dagster-k8s's own API clients."""

    def __init__(self, batch: Any, core: Any, namespace: str) -> None:
        self._batch, self._core, self.namespace = batch, core, namespace

    def runs(self) -> tuple[dict[str, Seen], datetime]:
        """What there is of each run, by its id, and the cluster's time: in three calls, however many runs."""
        jobs, now = self._list(self._batch.list_namespaced_job, label_selector=_RUN_WORKERS)
        pods, _ = self._list(self._core.list_namespaced_pod, label_selector=_RUN_WORKERS)
        warnings, _ = self._list(self._core.list_namespaced_event, field_selector="type=Warning")
        return _by_run(jobs, pods, warnings), now

    def create(self, create: Callable[[], None], run_id: str, name: str) -> None:
        """Make a Job by calling `create`; one that is there already for the same run is as good.

        Raises ClusterSilentError or RefusedError.
        """
        try:
            self._call(create)
        except _ConflictError as conflict:
            there = self._call(lambda: self._batch.read_namespaced_job(name, self.namespace, **_RAW))
            labels = json.loads(there.data)["metadata"].get("labels", {})
            if labels.get(RUN_LABEL) != run_id:
                raise RefusedError(
                    f"a Job {name} is there already and not of this run: remove it"
                ) from conflict

    def remove(self, name: str) -> None:
        """Delete a Job with its pods; they get their grace period. One that is gone is fine."""
        self._gone_is_fine(
            lambda: self._batch.delete_namespaced_job(
                name, self.namespace, propagation_policy="Background", **_RAW
            )
        )

    def end(self, pod: str, *, at_once: bool = False) -> None:
        """Delete a pod, with its grace period, or without waiting for the word of its node, which is gone."""
        grace = {"grace_period_seconds": 0} if at_once else {}
        self._gone_is_fine(lambda: self._core.delete_namespaced_pod(pod, self.namespace, **grace, **_RAW))

    def log(self, pod: str, lines: int = 50) -> str:
        """The end of a pod's log; empty where there is none to be had any more."""
        try:
            answer = self._call(
                lambda: self._core.read_namespaced_pod_log(
                    pod, self.namespace, tail_lines=lines, limit_bytes=100_000, **_RAW
                )
            )
        except UserError:
            return ""
        return bytes(answer.data).decode(errors="replace")

    def _list(self, call: Callable[..., Any], **selectors: str) -> tuple[list[dict[str, Any]], datetime]:
        answer = self._call(lambda: call(self.namespace, **selectors, **_RAW))
        # Its objects' times are its own clock's, so they are compared with that and not with ours.
        date = answer.headers.get("Date")
        now = parsedate_to_datetime(date) if date else datetime.now(UTC)
        return json.loads(answer.data)["items"], now

    def _gone_is_fine(self, call: Callable[[], Any]) -> None:
        try:
            self._call(call)
        except _NotThereError:
            return

    def _call(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (DagsterK8sAPIRetryLimitExceeded, DagsterK8sUnrecoverableAPIError) as error:
            raise _meaning(error.k8s_api_exception) from error
        except _FAILURES as error:
            raise _meaning(error) from error


_FAILURES = (
    kubernetes.client.ApiException,
    urllib3.exceptions.HTTPError,
    OSError,
    ValueError,
    AttributeError,  # what the client makes of a TLS failure where it is to return the answer as it is
)


class _ConflictError(ClusterSilentError):
    """There is an object of that name."""


class _NotThereError(RefusedError):
    """There is no object of that name."""


_RAW: dict[str, Any] = {"_preload_content": False, "_request_timeout": TIMEOUT}


def _meaning(error: Exception) -> UserError:
    if not isinstance(error, kubernetes.client.ApiException):
        return ClusterSilentError(f"the cluster does not answer ({type(error).__name__})")
    message = _message(error)
    if error.status == 404:
        return _NotThereError(message)
    if error.status == 409 and "AlreadyExists" in str(error.body):
        return _ConflictError(message)
    if error.status == 403 and "exceeded quota" in message:
        return FullError(message)
    if error.status in _TRANSIENT or (error.status or 0) >= 500:
        return ClusterSilentError(f"the cluster answers {error.status} ({message})")
    return RefusedError(f"the cluster refuses it ({error.status}): {message}")


def _message(error: kubernetes.client.ApiException) -> str:
    try:
        text = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        text = str(error.reason)
    return " ".join(text.split())[:400]


def _by_run(
    jobs: list[dict[str, Any]], pods: list[dict[str, Any]], warnings: list[dict[str, Any]]
) -> dict[str, Seen]:
    about: dict[str, list[dict[str, Any]]] = {}
    for event in warnings:
        about.setdefault(str(event.get("involvedObject", {}).get("name")), []).append(event)
    found: dict[str, Seen] = {}
    of_run: dict[str, list[dict[str, Any]]] = {}
    for pod in pods:
        of_run.setdefault(pod["metadata"].get("labels", {}).get(RUN_LABEL, ""), []).append(pod)
    for job in jobs:
        run_id = job["metadata"].get("labels", {}).get(RUN_LABEL)
        if run_id:
            mine = of_run.pop(run_id, [])
            names = [job["metadata"]["name"], *(pod["metadata"]["name"] for pod in mine)]
            found[run_id] = Seen(job, mine, [event for name in names for event in about.get(name, [])])
    for run_id, left in of_run.items():  # pods whose Job was deleted without them
        if run_id:
            found[run_id] = Seen(None, left)
    return found
