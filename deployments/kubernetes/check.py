"""Does everything that a run needs work in this cluster? Step by step, with one line for each.

    python deployments/kubernetes/check.py [--overlay kind] [--image IMAGE] [--namespace-suffix TEXT]

It asks the cluster of KUBECONFIG's current context. Everything that it makes is in one namespace,
``evaluation-check-<random>``, which is removed at the end, also when it is interrupted (after a SIGKILL:
``kubectl delete namespace -l evaluation/check``). It exits with 0 if all is well, 1 if something failed, 3 if
nothing failed but not everything could be checked.
"""

import argparse
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

import kubernetes.client
from check_access import NEEDED, Permission, missing, missing_in, permissions_of_check
from check_api import Api, Object, RefusedError, connect
from check_build import RUN_ID, Build, pod_templates
from check_nodes import is_there, lacks

from resources.errors import TransientError, UserError
from resources.pods.cluster import TIMEOUT, Cluster
from resources.pods.diagnosis import Finding, Seen, State, diagnose

HERE = Path(__file__).resolve().parent
PREFIX = "evaluation-check-"
LABEL = "evaluation/check"
"""On the check's namespace, with a value of this check alone: nobody else's is ever removed."""
LOOK_SECONDS = 1.0
REMOVAL_SECONDS = 180.0
LOG_LINES = 15
SETTLE_SECONDS = 10.0
"""What the API servers have for seeing that a role was bound."""
_MADE_AT_ONCE = ("ServiceAccount", "Role")
"""What other objects are refused without, pods and bindings."""
_MADE_LATER = ("RoleBinding", "LimitRange", "ResourceQuota", "NetworkPolicy")
"""What the evaluation has to meet."""
_NO_DRY_RUN = "does not support dry run"
"""Of an admission webhook: that says nothing about the object."""
_REMEDIES = (
    ("Image", "can its nodes pull it? `kind load docker-image`, or the registry's name, tag and pull secret"),
    ("exceeded quota", "raise the ResourceQuota, in the overlay or the cluster's own"),
    ("failed quota", "raise the ResourceQuota, in the overlay or the cluster's own"),
    ("PodSecurity", "correct run_k8s_config in dagster.yaml, or the namespace's labels"),
    ("Insufficient", "make room on the nodes, or lower the classes in accelerators.yaml"),
    ("node(s)", "correct node_selector and tolerations of the class cpu in accelerators.yaml"),
    ("want of memory", "give the class cpu more memory_gib in accelerators.yaml"),
)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Step: TypeAlias = Callable[[], None]


@dataclass(slots=True)
class Report:
    """What was found so far, printed line by line."""

    failed: bool = False
    unchecked: bool = False

    def ok(self, text: str) -> None:
        """Something works."""
        self._say(f"ok: {text}")

    def fail(self, text: str, details: str = "") -> None:
        """Something doesn't: what, where, what to do. `details` are shown below it."""
        self.failed = True
        self._say(f"FAILED: {text}")
        for line in details.splitlines():
            self._say(f"    {line}")

    def leave_out(self, text: str) -> None:
        """Something can't be told."""
        self.unchecked = True
        self._say(f"not checked: {text}")

    def _say(self, line: str) -> None:
        print(line, flush=True)

    @property
    def status(self) -> int:
        """The exit status."""
        return 1 if self.failed else 3 if self.unchecked else 0


class Check:
    """One check of one cluster, in a namespace of its own."""

    def __init__(
        self, api: Api, build: Build, options: argparse.Namespace, report: Report, interrupts: "Interrupts"
    ) -> None:
        self._api, self._build, self._options, self._report = api, build, options, report
        self._interrupts = interrupts
        self._namespace = f"{PREFIX}{options.namespace_suffix or secrets.token_hex(3)}"
        self._objects = build.moved(self._namespace)
        self._mark = secrets.token_hex(8)
        self._refused: set[tuple[str, str]] = set()

    def run(self) -> None:
        """All steps; one that fails leaves the others be, as far as they don't need it."""
        self._step("permissions", self._check_permissions)
        try:
            with self._own_namespace():
                self._step("objects", self._check_objects)
                self._step("pods", self._check_pods)
                self._step("accounts", self._check_accounts)
                self._check_rest()
                self._step("evaluation", self._evaluate)
        except _NoNamespaceError as error:
            self._report.fail(f"namespace {self._namespace}: {error}")
            self._report.leave_out("objects, pods, accounts and an evaluation: they need a namespace")
            self._check_rest()

    def _check_rest(self) -> None:
        self._step("storage", self._check_storage)
        self._step("nodes", self._check_nodes)

    def _step(self, name: str, step: Step) -> None:
        try:
            step()
        except UserError as error:
            self._report.fail(f"{name}: {error}")

    def _check_permissions(self) -> None:
        needed = permissions_of_check(self._api, self._objects, self._namespace)
        if lacking := missing(self._api, needed):
            names = "; ".join(map(str, lacking))
            self._report.fail(f"permissions: you may not: {names}; have them granted to you")
        else:
            self._report.ok(f"permissions: you have the {len(needed)} that are needed")

    @contextmanager
    def _own_namespace(self) -> Iterator[None]:
        labels = {**self._build.security_labels(), LABEL: self._mark}
        metadata = {"name": self._namespace, "labels": labels}
        # Also where the answer is lost, or a failure of the server: the namespace may be there all the same.
        perhaps_made = True
        try:
            # A signal in the middle would let the request and its removal race each other.
            with _undisturbed():
                try:
                    self._api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
                except RefusedError as error:
                    perhaps_made = error.status >= 500
                    raise _NoNamespaceError(str(error)) from error
            self._report.ok(f"namespace: {self._namespace}, for what follows")
            yield
        finally:
            if perhaps_made:
                self._step("removal", self._remove)

    def _remove(self) -> None:
        path = f"/api/v1/namespaces/{self._namespace}"
        by_hand = f"kubectl delete namespace {self._namespace}"
        began = time.monotonic()
        try:
            with _undisturbed():
                found = self._api.call("GET", path)
                if found["metadata"].get("labels", {}).get(LABEL) != self._mark:
                    raise UserError("a namespace of that name was there before")
                same = {"preconditions": {"uid": found["metadata"]["uid"]}}
                self._api.call("DELETE", path, {"propagationPolicy": "Background", **same})
            self._interrupts.allow()  # the cluster goes on by itself
            while time.monotonic() < began + REMOVAL_SECONDS:
                found = self._api.call("GET", path)
                time.sleep(LOOK_SECONDS / 4)
        except RefusedError as error:
            if error.status != 404:
                raise UserError(f"{self._namespace} is still there: {error}; {by_hand}") from error
            self._report.ok(f"removal: {self._namespace} is gone")
            return
        except UserError as error:
            raise UserError(f"{self._namespace} may still be there: {error}; {by_hand}") from error
        except KeyboardInterrupt:
            self._report.leave_out(f"removal: {self._namespace} is being removed by the cluster")
            raise
        stuck = [entry["message"] for entry in found["status"].get("conditions") or [] if "message" in entry]
        raise UserError(
            f"{self._namespace} is still there after {REMOVAL_SECONDS:.0f} s: "
            f"{' '.join(stuck) or 'no reason given'}; look at its finalizers"
        )

    def _check_objects(self) -> None:
        for item in self._objects:
            try:
                self._api.try_out(item)
                if item["kind"] in _MADE_AT_ONCE:
                    self._api.create(item)
            except UserError as error:
                self._refused.add(_key(item))
                if _NO_DRY_RUN in str(error):
                    self._report.leave_out(f"objects: {_name(item)}: {error}")
                    continue
                self._report.fail(f"objects: {_name(item)} is refused: {error}; correct it in the overlay")
        if not self._refused:
            self._report.ok(f"objects: all {len(self._objects)} of {self._options.overlay} would be accepted")

    def _check_pods(self) -> None:
        templates = [found for found in pod_templates(self._objects) if _key(found[0]) not in self._refused]
        failed = False
        for item, template in templates:
            # Accepting a Deployment says nothing about its pods.
            name = item["metadata"]["name"]
            metadata = {**template["metadata"], "name": name, "namespace": self._namespace}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
            try:
                self._api.create(pod, dryRun="All")
            except UserError as error:
                failed = True
                text = f"the pods of {_name(item)} are refused: {error}"
                self._report.fail(f"pods: {text}; {_remedy(str(error), 'correct them in the overlay')}")
        if not failed:
            self._report.ok(f"pods: those of {len(templates)} objects would be accepted")

    def _check_accounts(self) -> None:
        for item in self._objects:
            if item["kind"] in _MADE_LATER and _key(item) not in self._refused:
                self._api.create(item)
        for role, needs in NEEDED.items():
            account = self._build.account_of(role)
            if account is None:
                continue
            lacking, source = self._lacking(account, needs)
            if lacking:
                names = "; ".join(str(replace(need, namespace=self._build.namespace)) for need in lacking)
                self._report.fail(f"accounts: {account} may not: {names}; add it to its Role ({source})")
            else:
                self._report.ok(f"accounts: {account} may do what it must ({source})")

    def _lacking(self, account: str, needs: Sequence[Permission]) -> tuple[list[Permission], str]:
        api = self._api.as_account(self._namespace, account)
        if api is None:
            return missing_in(self._build.rules_of(account), needs), "by the Roles in the build"
        lacking = [replace(need, namespace=self._namespace) for need in needs]
        ends = time.monotonic() + SETTLE_SECONDS
        while (lacking := missing(api, lacking)) and time.monotonic() < ends:
            time.sleep(LOOK_SECONDS)
        return lacking, "asked with its token"

    def _check_storage(self) -> None:
        wanted = self._build.storage_classes()
        if not wanted:
            self._report.ok("storage: the overlay claims none")
            return
        found = self._list("/apis/storage.k8s.io/v1/storageclasses", "storage", "storage classes")
        if found is None:
            return
        there = ", ".join(item["metadata"]["name"] for item in found) or "none"
        for name, claims in wanted.items():
            title = "a default class" if name is None else f"class {name}" if name else "no class"
            if is_there(name, found):
                self._report.ok(f"storage: {title}, for {', '.join(claims)}")
            else:
                self._report.fail(
                    f"storage: {title}, for {', '.join(claims)}, is not there (there are: {there}); "
                    "set storageClassName in the overlay"
                )

    def _check_nodes(self) -> None:
        catalogue = self._build.catalogue()
        nodes = self._list("/api/v1/nodes", "nodes", "nodes")
        for name, found, wrong in lacks(catalogue, nodes) if nodes is not None else ():
            offer = catalogue.accelerators.get(name)
            if offer is not None and offer.claim_template is not None:
                self._report.leave_out(f"class {name}: its devices are claimed ({offer.claim_template})")
            elif wrong:
                self._report.fail(
                    f"class {name}: {wrong}; or say autoscaled: true, or take it out of accelerators.yaml"
                )
            else:
                self._report.ok(f"class {name}: {found}")

    def _list(self, path: str, step: str, what: str) -> list[Object] | None:
        try:
            items: list[Object] = self._api.call("GET", path)["items"]
        except RefusedError as error:
            if error.status != 403:
                raise
            self._report.leave_out(f"{step}: may not list {what}")
            return None
        return items

    def _evaluate(self) -> None:
        seconds = self._options.timeout
        script = (HERE / "check_pod.py").read_text(encoding="utf-8")
        job = self._build.job(self._namespace, self._options.image, script, seconds)
        image = job["spec"]["template"]["spec"]["containers"][0]["image"]
        client: Any = self._api.client
        batch, core = kubernetes.client.BatchV1Api(client), kubernetes.client.CoreV1Api(client)
        cluster = Cluster(batch, core, self._namespace)
        if self._options.pull_secret:
            self._copy_pull_secret(self._options.pull_secret, job)
        began = time.monotonic()
        name = job["metadata"]["name"]
        cluster.create(
            lambda: batch.create_namespaced_job(self._namespace, job, _request_timeout=TIMEOUT), RUN_ID, name
        )
        autoscaled = self._build.catalogue().cpu.autoscaled
        found, seen = self._outcome(cluster, began + seconds, autoscaled=autoscaled)
        if found.state is State.ENDED:
            node = seen.pods[0]["spec"].get("nodeName") if seen.pods else "?"
            took = time.monotonic() - began
            self._report.ok(f"evaluation: a random model, in {took:.0f} s, on {node}, from {image}")
            return
        kind = f"{found.kind}: " if found.kind is not None else ""
        text = f"evaluation: {kind}{found.reason} (image {image})"
        remedy = _remedy(found.reason, "its last lines:")
        self._report.fail(f"{text}; {remedy}", "".join(map(self._log, seen.pods)))

    def _copy_pull_secret(self, name: str, job: Object) -> None:
        found = self._api.call("GET", f"/api/v1/namespaces/{self._build.namespace}/secrets/{name}")
        copied: Object = {
            field: found[field] for field in ("apiVersion", "kind", "type", "data") if field in found
        }
        self._api.create({**copied, "metadata": {"name": name, "namespace": self._namespace}})
        job["spec"]["template"]["spec"]["imagePullSecrets"] = [{"name": name}]

    def _outcome(self, cluster: Cluster, ends: float, *, autoscaled: bool) -> tuple[Finding, Seen]:
        seen, found = Seen(), Finding(State.ABSENT)
        while True:
            try:
                runs, now = cluster.runs()
                seen = runs.get(RUN_ID, Seen())
                found = diagnose(seen, now, autoscaled=autoscaled)
                if found.state not in (State.WAITING, State.RUNNING):
                    return found, seen
                reason = found.reason or "it runs"
            except TransientError as error:
                reason = str(error)
            if time.monotonic() > ends:
                text = f"not over within {self._options.timeout} s (--timeout): {reason}"
                return Finding(State.UNABLE, text), seen
            time.sleep(LOOK_SECONDS)

    def _log(self, pod: Any) -> str:
        path = f"/api/v1/namespaces/{self._namespace}/pods/{pod['metadata']['name']}/log"
        try:
            return self._api.text("GET", path, tailLines=str(LOG_LINES))
        except UserError:
            return ""  # it has never started


class Interrupts:
    """SIGINT and SIGTERM, while it is entered: the first raises KeyboardInterrupt.

    Further ones do nothing: whoever is in a hurry presses twice, and the removal must still begin.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._allowed = True

    def allow(self) -> None:
        """Let one more raise."""
        self._allowed = True

    def _receive(self, number: int, _: object) -> None:
        self.received = signal.Signals(number)
        if self._allowed:
            self._allowed = False
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class _NoNamespaceError(UserError):
    """The check's namespace is refused, so there is nothing to remove."""


def _key(item: Object) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


def _name(item: Object) -> str:
    return "/".join(_key(item))


def _remedy(reason: str, otherwise: str) -> str:
    return next((remedy for part, remedy in _REMEDIES if part in reason), otherwise)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals that end the process wait for the end of the block."""
    told = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, told)


def check(options: argparse.Namespace, report: Report, interrupts: Interrupts) -> None:
    """Find out everything. Raises UserError where there is no cluster, or nothing to check in it."""
    try:
        api = connect()
        version = api.call("GET", "/version").get("gitVersion", "of an unknown version")
    except UserError as error:
        raise UserError(f"cluster: {error}") from error
    report.ok(f"cluster: {api.host} answers, Kubernetes {version}")
    folder = HERE / "overlays" / options.overlay
    try:
        build = Build.of(folder if folder.is_dir() else Path(options.overlay))
        build.launcher()
    except UserError as error:
        raise UserError(f"build: {error}") from error
    Check(api, build, options, report, interrupts).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, and return the exit status."""
    parser = argparse.ArgumentParser(
        description="Check that evaluations can run in the cluster of KUBECONFIG."
    )
    parser.add_argument("--overlay", default="kind", help="a folder of overlays/, or the path of your own")
    parser.add_argument("--image", help="what to evaluate with; by default the overlay's")
    parser.add_argument("--namespace-suffix", help=f"the end of {PREFIX}<suffix>; by default random")
    parser.add_argument("--pull-secret", help="copy this image pull secret from the overlay's namespace")
    parser.add_argument("--timeout", type=int, default=900, help="seconds for the evaluation, pull included")
    options = parser.parse_args(arguments)
    report = Report()
    with Interrupts() as interrupts:
        try:
            check(options, report, interrupts)
        except UserError as error:
            report.fail(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + (interrupts.received or signal.SIGINT)
    return report.status


if __name__ == "__main__":
    sys.exit(main())
