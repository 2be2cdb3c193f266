"""Brings runs and pods together: every few seconds it looks at both and does what is missing.

It acts on no event and keeps nothing that it can't do without: a daemon that was killed between taking a run
from the queue and making its Job, an answer that was lost, a run that was ended while nobody looked, all are
the same to the next look. Everything that is said to the cluster for runs is said here, in one thread.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import dagster as dg

from resources.errors import TransientError, UserError
from resources.pods.catalogue import CPU, Catalogue
from resources.pods.cluster import Cluster, ClusterSilentError
from resources.pods.diagnosis import Finding, Seen, State, diagnose, explained
from resources.pods.queueing import Waiting, admit
from resources.pods.tags import AS_IT_IS, CLASS_TAG, COUNT_TAG, ENDED_TAG, Kind, is_planned

LOOK_SECONDS = 5.0
BUSY_SECONDS = 1.0
"""Between two looks where runs wait for devices that others have: they would be idle until the next."""
SAY_SECONDS = 300.0
"""How often a run says anew what it waits for, where only the numbers in it have changed."""
LEAVE_SECONDS = 20.0
"""What a pod whose run is over has for ending by itself, and a run whose pod is over for saying so."""
BEGIN_SECONDS = 300.0
"""What a process has for saying that its run has begun: it imports torch, from a disk that many share."""

_SAME_NEXT_TIME = {UserError.__name__, ImportError.__name__, ModuleNotFoundError.__name__}
"""What a process that could not load its job meets again; anything else may be the weather."""
_ACTIVE = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_log = logging.getLogger("dagster.evaluation.pods")


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: for how long a cluster may be silent before runs are given up, a run wait for capacity."""

    silent: float
    queue: float


class PodWatch:
    """One look after the other, in a thread of its own from `start` to `stop`."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        cluster: Cluster,
        catalogue: Callable[[], Catalogue],
        plan: Callable[[dg.DagsterRun], None],
        create: Callable[[dg.DagsterRun], None],
        patience: Patience,
    ) -> None:
        self._instance, self._cluster, self._catalogue = instance, cluster, catalogue
        self._plan, self._create, self._patience = plan, create, patience
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._heard_at = time.monotonic()
        self._told_silence: set[str] = set()
        self._said: dict[str, tuple[str, float]] = {}
        self._over_since: dict[str, float] = {}
        self._launched: dict[str, float] = {}
        self._troubled: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._known_catalogue = Catalogue()
        self._queue = False

    def start(self) -> None:
        """Look from now on; once is enough."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pod-watch", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def stop(self) -> None:
        """Look no more; returns when the last look is over."""
        self._stopped.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.look()
            except Exception:  # the next look may succeed, and without one every run would stand still
                _log.exception("a look at the pods failed")
            self._wake.wait(BUSY_SECONDS if self._queue else LOOK_SECONDS)
            self._wake.clear()

    @property
    def silence(self) -> float:
        """Seconds since the cluster last answered."""
        return time.monotonic() - self._heard_at

    def look(self) -> None:
        """One look: what is there, what should be, and what is done about the difference."""
        runs = {run.run_id: run for run in self._instance.get_runs(dg.RunsFilter(statuses=_ACTIVE))}
        try:
            seen, now = self._cluster.runs()
            self.heard(runs)
            self._act(runs, seen, now)
        except ClusterSilentError as error:
            self.not_heard(runs, str(error))

    def heard(self, runs: Mapping[str, dg.DagsterRun]) -> None:
        """The cluster has answered."""
        for run_id in self._told_silence & set(runs):
            self._say(runs[run_id], f"the cluster answers again, after {self.silence:.0f} s")
        self._told_silence.clear()
        self._heard_at = time.monotonic()

    def not_heard(self, runs: Mapping[str, dg.DagsterRun], reason: str) -> None:
        """The cluster has not answered; each run is told once."""
        for run_id, run in runs.items():
            if run_id not in self._told_silence:
                self._told_silence.add(run_id)
                self._say(
                    run, f"{reason}; the run goes on, and it is asked again for {self._patience.silent:.0f} s"
                )

    def _act(self, runs: Mapping[str, dg.DagsterRun], seen: Mapping[str, Seen], now: datetime) -> None:
        catalogue, wrong = self._read_catalogue()
        waiting: list[dg.DagsterRun] = []
        busy: dict[str, int] = {}
        for run_id, run in runs.items():
            found = diagnose(seen.get(run_id, Seen()), now, autoscaled=_autoscaled(run, catalogue))
            if found.state is State.ABSENT and run.status is dg.DagsterRunStatus.STARTING:
                waiting.append(run)
                continue
            if found.state in (State.WAITING, State.RUNNING):
                name, count = _devices(run)
                busy[name] = busy.get(name, 0) + count
            self._try(partial(self._settle, seen=seen.get(run_id, Seen()), found=found), run)
        if wrong:
            for run in waiting:
                self._wait(run, wrong)
        else:
            self._start_waiting(waiting, busy, catalogue)
        self._clean(set(runs), seen, now)
        for memory in (self._said, self._over_since, self._launched, self._troubled, self._ended):
            for gone in set(memory) - set(runs) - set(seen):
                del memory[gone]

    def _read_catalogue(self) -> tuple[Catalogue, str]:
        """The catalogue, or the last one and what is wrong with its file now: pods that are there stay."""
        try:
            self._known_catalogue = self._catalogue()
        except UserError as error:
            return self._known_catalogue, str(error)
        return self._known_catalogue, ""

    def _start_waiting(
        self, waiting: list[dg.DagsterRun], busy: Mapping[str, int], catalogue: Catalogue
    ) -> None:
        for run in waiting:
            if not is_planned(run):
                self._try(self._plan, run)
        planned = {run.run_id: run for run in waiting if is_planned(run)}
        queued = [
            Waiting(run.run_id, *_devices(run), _priority(run), self._waited(run)) for run in planned.values()
        ]
        admitted, reasons = admit(queued, busy, catalogue)
        self._queue = bool(reasons)
        for run_id in admitted:
            self._try(self._create, planned[run_id])
        for run_id, reason in reasons.items():
            self._wait(planned[run_id], reason)

    def _try(self, step: Callable[[dg.DagsterRun], None], run: dg.DagsterRun) -> None:
        """Take a step for one run, whose trouble is not the others': a failure for now leaves it waiting."""
        try:
            step(run)
            self._troubled.pop(run.run_id, None)
        except ClusterSilentError:
            raise
        except TransientError as error:
            self._wait(run, str(error))
        except UserError as error:
            self._fail(run, Finding(State.UNABLE, str(error), Kind.UNABLE))
        except Exception as error:  # the database for a moment, or what dagster-k8s refuses for good
            _log.warning("run %s", run.run_id, exc_info=True)
            if time.monotonic() - self._troubled.setdefault(run.run_id, time.monotonic()) >= LEAVE_SECONDS:
                text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self._fail(run, Finding(State.UNABLE, text, Kind.UNABLE))

    def _settle(self, run: dg.DagsterRun, seen: Seen, found: Finding) -> None:
        if run.status is dg.DagsterRunStatus.CANCELING:
            self._cancel(run, seen, found)
        elif found.state is State.WAITING:
            if run.status is dg.DagsterRunStatus.STARTING:
                self._wait(run, found.reason)
        elif found.state is State.UNABLE or found.state is State.FAILED:
            if found.kind is Kind.CRASHED and run.status is dg.DagsterRunStatus.STARTING and seen.pods:
                pod = seen.pods[0]
                found = explained(found, self._cluster.log(pod["metadata"]["name"]), pod)
            self._fail(run, found, seen)
        elif found.state is State.ABSENT:
            self._fail_if_lasting(
                run,
                Finding(State.FAILED, "its Job was removed from the cluster", Kind.EVICTED),
                seen,
                LEAVE_SECONDS,
            )
        elif found.state is State.ENDED:
            self._fail_if_lasting(
                run,
                Finding(State.FAILED, "its pod has ended and left the run unfinished", Kind.CRASHED),
                seen,
                LEAVE_SECONDS,
            )
        elif run.status is dg.DagsterRunStatus.STARTING:
            text = (
                "its pod runs, but the run has not begun: can it reach Dagster's database? its log says more"
            )
            self._fail_if_lasting(run, Finding(State.UNABLE, text, Kind.UNABLE), seen, BEGIN_SECONDS)
        else:
            self._over_since.pop(run.run_id, None)

    def _fail_if_lasting(self, run: dg.DagsterRun, found: Finding, seen: Seen, seconds: float) -> None:
        """A run's first and last word may come a little later than its pod's."""
        since = self._over_since.setdefault(run.run_id, time.monotonic())
        if time.monotonic() - since >= seconds:
            self._fail(run, found, seen)

    def _fail(self, run: dg.DagsterRun, found: Finding, seen: Seen | None = None) -> None:
        if not fail_run(self._instance, run, found.kind, found.reason, found.memory):
            return
        if seen is not None:
            self._remove(seen, lost=found.kind is Kind.NODE_LOST)

    def _cancel(self, run: dg.DagsterRun, seen: Seen, found: Finding) -> None:
        if seen.job is None and not seen.pods:
            now = self._instance.get_run_by_id(run.run_id)
            if now is not None and not now.is_finished:
                self._instance.report_run_canceled(now)
            return
        self._remove(seen, lost=found.kind is Kind.NODE_LOST)

    def _clean(self, active: set[str], seen: Mapping[str, Seen], now: datetime) -> None:
        """Remove the Jobs of runs that are over, whoever ended them, where a pod is still at work."""
        for run_id, there in seen.items():
            if run_id not in active and run_id not in self._ended:
                self._ended[run_id] = time.monotonic()
                self._explain(run_id, there)
            alive = [
                pod for pod in there.pods if pod.get("status", {}).get("phase") in ("Pending", "Running")
            ]
            if run_id in active or not (alive or (there.job is not None and not _is_over(there.job))):
                continue
            run = self._instance.get_run_by_id(run_id)
            if run is not None and not run.is_finished:
                continue
            since = self._over_since.setdefault(run_id, time.monotonic())
            if time.monotonic() - since >= LEAVE_SECONDS:
                self._remove(there, lost=diagnose(there, now).kind is Kind.NODE_LOST)

    def _explain(self, run_id: str, seen: Seen) -> None:
        """Say of a run that its own process failed before it began what kept it from that.

        The process reports only that it could not load the job; the reason is a traceback's last line.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.status is not dg.DagsterRunStatus.FAILURE or ENDED_TAG in run.tags:
            return
        if self._instance.get_run_stats(run_id).start_time is not None:
            return
        errors = [
            entry.dagster_event.engine_event_data.error
            for entry in self._instance.all_logs(run_id, dg.DagsterEventType.ENGINE_EVENT)
            if entry.dagster_event is not None
        ]
        error = next((error for error in reversed(errors) if error is not None), None)
        if error is None:
            return
        while error.cause is not None:
            error = error.cause
        kind = Kind.UNABLE if error.cls_name in _SAME_NEXT_TIME else Kind.CRASHED
        crash = Finding(State.FAILED, "its process could not load the job", kind)
        is_line = error.cls_name == UserError.__name__  # then its class says nothing to a person
        said = error.message.partition(": ")[2] if is_line else error.message
        found = explained(crash, said, seen.pods[0] if seen.pods else {})
        tags = _ended(run_id, found)
        if found.kind in AS_IT_IS:
            # Where Dagster is quicker, it tries the run once more, with these tags, and then no more.
            tags |= {"dagster/max_retries": "0", "dagster/will_retry": "false"}
        self._instance.add_run_tags(run_id, tags)
        self._say(run, f"{found.kind}: {found.reason}")

    def _remove(self, seen: Seen, *, lost: bool) -> None:
        if seen.job is not None:
            self._cluster.remove(seen.job["metadata"]["name"])
        for pod in seen.pods:
            if lost or (seen.job is None and "deletionTimestamp" not in pod["metadata"]):
                self._cluster.end(pod["metadata"]["name"], at_once=lost)

    def _wait(self, run: dg.DagsterRun, reason: str) -> None:
        waited = self._waited(run)
        if waited > self._patience.queue:
            text = f"it has waited for {waited / 3600:.1f} hours (EVAL_QUEUE_TIMEOUT): {reason}"
            self._fail(run, Finding(State.UNABLE, text, Kind.UNABLE))
            return
        gist = "".join(character for character in reason if not character.isdigit())
        said, at = self._said.get(run.run_id, ("", 0.0))
        if gist != said or time.monotonic() - at >= SAY_SECONDS:
            self._said[run.run_id] = (gist, time.monotonic())
            self._say(run, reason)

    def _waited(self, run: dg.DagsterRun) -> float:
        """Seconds since it left Dagster's queue."""
        if run.run_id not in self._launched:
            self._launched[run.run_id] = self._instance.get_run_stats(run.run_id).launch_time or time.time()
        return max(time.time() - self._launched[run.run_id], 0.0)

    def _say(self, run: dg.DagsterRun, text: str) -> None:
        self._instance.report_engine_event(text, run)


def fail_run(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    kind: Kind | None,
    reason: str,
    memory: int | None = None,
) -> bool:
    """Fail a run that isn't over, with its reason for people and for those who try again; whether it did."""
    now = instance.get_run_by_id(run.run_id)
    if now is None or now.is_finished:
        return False
    tags = _ended(run.run_id, Finding(State.FAILED, reason, kind, memory))
    if kind in AS_IT_IS:
        tags["dagster/max_retries"] = "0"
    instance.add_run_tags(run.run_id, tags)
    instance.report_run_failed(now, f"{kind}: {reason}" if kind is not None else reason)
    return True


def _ended(run_id: str, found: Finding) -> dict[str, str]:
    ended: dict[str, Any] = {"run": run_id, "kind": found.kind, "reason": found.reason}
    if found.memory is not None:
        ended["memory"] = found.memory
    return {ENDED_TAG: json.dumps(ended)}


def _devices(run: dg.DagsterRun) -> tuple[str, int]:
    return run.tags.get(CLASS_TAG, CPU), int(run.tags.get(COUNT_TAG, "0"))


def _priority(run: dg.DagsterRun) -> int:
    try:
        return int(run.tags.get("dagster/priority", "0"))
    except ValueError:
        return 0


def _autoscaled(run: dg.DagsterRun, catalogue: Catalogue) -> bool:
    offer = catalogue.accelerators.get(_devices(run)[0], catalogue.cpu)
    return offer.autoscaled


def _is_over(job: Mapping[str, Any]) -> bool:
    return any(
        condition.get("type") in ("Complete", "Failed") and condition.get("status") == "True"
        for condition in job.get("status", {}).get("conditions") or []
    )
