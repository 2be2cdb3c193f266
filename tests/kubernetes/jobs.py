"""Controllers that keep objects in step: Jobs and pods, owners and what they own, namespaces, quotas."""

from tests.kubernetes.admission import FINISHED, quota_use
from tests.kubernetes.api import FOREGROUND, Api
from tests.kubernetes.store import (
    KINDS,
    ApiError,
    Object,
    Stopwatch,
    condition,
    owners,
    set_condition,
    timestamp,
    uid,
)

RETRY_SECONDS = 10.0
LONGEST_RETRY_SECONDS = 600.0
REFUSAL_SECONDS = 1.0
COMPONENT = "job-controller"


class JobController:
    """Makes the pods of Jobs and counts how they end; a second of its waits takes `scale` seconds."""

    def __init__(self, api: Api, scale: float) -> None:
        self._api, self._store, self._scale = api, api.store, scale
        self._stopwatch = Stopwatch()
        # How each pod ended ("" while it hasn't), by Job: pods that are gone must still be counted.
        self._ends: dict[str, dict[str, str]] = {}
        self._refusals: dict[str, int] = {}
        self._fatal: dict[str, str] = {}

    def step(self) -> None:
        """Look at every Job."""
        pods: dict[str, list[Object]] = {}
        for pod in self._store.select("pods"):
            for owner in owners(pod):
                pods.setdefault(owner, []).append(pod)
        for job in self._store.select("jobs"):
            if any(condition(job, kind).get("status") == "True" for kind in ("Complete", "Failed")):
                self._expire(job)
            elif "deletionTimestamp" not in job["metadata"]:
                self._sync(job, pods.get(uid(job), []))

    def _expire(self, job: Object) -> None:
        limit = job["spec"].get("ttlSecondsAfterFinished")
        finished = self._stopwatch.elapsed(uid(job), "finished")
        if limit is not None and finished >= limit * self._scale:
            self._api.delete(job, {"propagationPolicy": "Background"})

    def _sync(self, job: Object, pods: list[Object]) -> None:
        spec = job["spec"]
        ends = self._count(job, pods)
        succeeded, failed = (list(ends.values()).count(end) for end in ("Succeeded", "Failed"))
        alive = [pod for pod in pods if pod["status"]["phase"] not in FINISHED]
        active = [pod for pod in alive if "deletionTimestamp" not in pod["metadata"]]
        failure = self._failure(job, failed)
        done = succeeded >= spec["completions"]
        if failure or done or spec["suspend"]:
            for pod in active:
                self._api.delete(pod, {})
        elif not self._waits(job, failed):
            missing = min(spec["parallelism"], spec["completions"] - succeeded) - len(active)
            for _ in range(missing):
                self._create_pod(job)

        def report(job: Object) -> None:
            status = job.setdefault("status", {})
            counts = {"active": len(active), "succeeded": succeeded, "failed": failed}
            counts["ready"] = sum(condition(pod, "Ready").get("status") == "True" for pod in active)
            counts["terminating"] = len(alive) - len(active)
            for field, count in counts.items():
                if count or field in ("ready", "terminating"):
                    status[field] = count
                else:
                    status.pop(field, None)
            _report_suspension(job)
            if failure:
                set_condition(job, "FailureTarget", "True", *failure)
                if not alive:
                    set_condition(job, "Failed", "True", *failure)
            elif done:
                text = "Reached expected number of succeeded pods"
                set_condition(job, "SuccessCriteriaMet", "True", "CompletionsReached", text)
                if not alive:
                    set_condition(job, "Complete", "True", "CompletionsReached", text)
                    status.setdefault("completionTime", timestamp())

        before = job.get("status", {}).get("conditions") or []
        after = self._store.edit(job, report)
        for entry in (after or {}).get("status", {}).get("conditions") or []:
            if entry["type"] in ("Complete", "Failed") and entry not in before:
                if entry["type"] == "Complete":
                    self._api.event(job, "Normal", "Completed", "Job completed", COMPONENT)
                else:
                    self._api.event(job, "Warning", entry["reason"], entry["message"], COMPONENT)

    def _count(self, job: Object, pods: list[Object]) -> dict[str, str]:
        ends = self._ends.setdefault(uid(job), {})
        present = {uid(pod) for pod in pods}
        ends |= {gone: "Failed" for gone, end in ends.items() if not end and gone not in present}
        for pod in pods:
            if not ends.get(uid(pod)):
                ends[uid(pod)] = self._end(job, pod)
        return ends

    def _end(self, job: Object, pod: Object) -> str:
        phase, terminating = pod["status"]["phase"], "deletionTimestamp" in pod["metadata"]
        if phase not in FINISHED:
            lost = terminating and job["spec"]["podReplacementPolicy"] != "Failed"
            return "Failed" if lost else ""
        rules = (job["spec"].get("podFailurePolicy") or {}).get("rules") or []
        for index, rule in enumerate(rules) if phase == "Failed" else ():
            if _applies(rule, pod):
                name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                if rule["action"] == "FailJob":
                    self._fatal[uid(job)] = f"Pod {name} matches FailJob rule at index {index}"
                return "Ignored" if rule["action"] == "Ignore" else "Failed"
        return str(phase)

    def _failure(self, job: Object, failed: int) -> tuple[str, str] | None:
        if target := condition(job, "FailureTarget"):
            return target["reason"], target["message"]
        spec = job["spec"]
        if text := self._fatal.get(uid(job)):
            return "PodFailurePolicy", text
        if failed > spec["backoffLimit"]:
            return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        deadline = spec.get("activeDeadlineSeconds")
        started = job.get("status", {}).get("startTime")
        if deadline is not None and started and self._stopwatch.elapsed(uid(job), started) >= deadline:
            return "DeadlineExceeded", "Job was active longer than specified deadline"
        return None

    def _waits(self, job: Object, failed: int) -> bool:
        waits = failed and min(RETRY_SECONDS * 2 ** (failed - 1), LONGEST_RETRY_SECONDS)
        refusals = self._refusals.get(uid(job), 0)
        refused = refusals and min(REFUSAL_SECONDS * 2 ** (refusals - 1), LONGEST_RETRY_SECONDS)
        return (
            self._stopwatch.elapsed(uid(job), "failed", failed) < waits * self._scale
            or self._stopwatch.elapsed(uid(job), "refused", refusals) < refused * self._scale
        )

    def _create_pod(self, job: Object) -> None:
        metadata, template = job["metadata"], job["spec"]["template"]
        given = template.get("metadata") or {}
        reference = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": metadata["name"],
            "uid": uid(job),
            "controller": True,
            "blockOwnerDeletion": True,
        }
        pod = {
            "metadata": {
                "generateName": f"{metadata['name'][:57]}-",
                "labels": given.get("labels") or {},
                "annotations": given.get("annotations") or {},
                "ownerReferences": [reference],
            },
            "spec": template["spec"],
        }
        try:
            created = self._api.create("pods", metadata["namespace"], pod)
        except ApiError as error:
            self._refusals[uid(job)] = self._refusals.get(uid(job), 0) + 1
            self._api.event(job, "Warning", "FailedCreate", f"Error creating: {error}", COMPONENT)
        else:
            self._ends[uid(job)][uid(created)] = ""
            self._refusals.pop(uid(job), None)
            text = f"Created pod: {created['metadata']['name']}"
            self._api.event(job, "Normal", "SuccessfulCreate", text, COMPONENT)


def _applies(rule: Object, pod: Object) -> bool:
    for pattern in rule.get("onPodConditions") or []:
        if condition(pod, pattern["type"]).get("status") == pattern.get("status", "True"):
            return True
    codes = rule.get("onExitCodes")
    if codes is None:
        return False
    for status in pod["status"].get("containerStatuses") or []:
        code = status["state"].get("terminated", {}).get("exitCode", 0)
        named = codes.get("containerName", status["name"]) == status["name"]
        if named and code and (code in codes["values"]) is (codes["operator"] == "In"):
            return True
    return False


def _report_suspension(job: Object) -> None:
    status, suspended = job["status"], condition(job, "Suspended").get("status") == "True"
    if job["spec"]["suspend"]:
        status.pop("startTime", None)
        set_condition(job, "Suspended", "True", "JobSuspended", "Job suspended")
    else:
        status.setdefault("startTime", timestamp())
        if suspended:
            set_condition(job, "Suspended", "False", "JobResumed", "Job resumed")


class Upkeep:
    """Collects what has no owner or no namespace any more, and writes down what quotas have used."""

    def __init__(self, api: Api) -> None:
        self._api, self._store = api, api.store
        self._seen = 0

    def step(self) -> None:
        """Look at everything, if anything changed."""
        if self._store.version == self._seen:
            return
        self._seen = self._store.version
        everything = [obj for plural in KINDS for obj in self._store.select(plural)]
        present = {uid(obj) for obj in everything}
        namespaces = {obj["metadata"]["name"]: obj for obj in everything if obj["kind"] == "Namespace"}
        ending = {name for name, obj in namespaces.items() if "deletionTimestamp" in obj["metadata"]}
        for obj in everything:
            metadata = obj["metadata"]
            gone = owners(obj) and not owners(obj) & present
            within = metadata.get("namespace")  # an event may still come after its namespace has gone
            homeless = within is not None and (within in ending or within not in namespaces)
            if (gone or homeless) and "deletionTimestamp" not in metadata:
                self._api.delete(obj, {"propagationPolicy": "Background"})
            if FOREGROUND in (metadata.get("finalizers") or []):
                self._collect(obj)
            if obj["kind"] == "ResourceQuota":
                self._store.edit(obj, self._write_use)
        for name in ending - {obj["metadata"].get("namespace") for obj in everything}:
            self._store.remove(namespaces[name])

    def _write_use(self, quota: Object) -> None:
        quota["status"] = {"hard": quota["spec"]["hard"], "used": quota_use(self._store, quota)}

    def _collect(self, owner: Object) -> None:
        dependents = [obj for obj in self._store.owned() if uid(owner) in owners(obj)]
        for obj in dependents:
            if "deletionTimestamp" not in obj["metadata"]:
                self._api.delete(obj, {"propagationPolicy": "Background"})
        if not dependents:
            self._store.remove(owner)
