"""What depends on nodes: binding pods to them, and taking pods off a node that fell silent or was tainted."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal

from tests.kubernetes.admission import FINISHED, Amounts, amounts
from tests.kubernetes.api import Api
from tests.kubernetes.selectors import meets
from tests.kubernetes.store import Object, Stopwatch, condition, set_condition, timestamp, uid
from tests.kubernetes.validation import quantity

UNREACHABLE = "node.kubernetes.io/unreachable"


def tolerates(toleration: Object, taint: Object) -> bool:
    """Whether a toleration matches a taint."""
    if toleration.get("effect", taint["effect"]) != taint["effect"]:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return (toleration.get("key"), toleration.get("value", "")) == (taint["key"], taint.get("value", ""))


class Scheduler:
    """Binds each waiting pod to the first node that takes it, the pods of a higher priority first."""

    def __init__(self, api: Api) -> None:
        self._api, self._store = api, api.store

    def step(self) -> None:
        """Bind what can be bound now."""
        free: dict[str, Amounts] = {}
        for node in self._store.select("nodes"):
            allocatable = node["status"]["allocatable"]
            free[node["metadata"]["name"]] = {name: quantity(value) for name, value in allocatable.items()}
        waiting = []
        for pod in self._store.select("pods"):
            if pod["status"]["phase"] in FINISHED:
                continue
            if pod["spec"].get("nodeName"):
                _take(free, pod)
            elif not pod["spec"].get("schedulingGates"):
                waiting.append(pod)
        for pod in sorted(waiting, key=lambda pod: -int(pod["spec"].get("priority", 0))):
            self._schedule(pod, free)

    def _schedule(self, pod: Object, free: dict[str, Amounts]) -> None:
        nodes, reasons = self._store.select("nodes"), Counter[str]()
        if missing := self._missing_claim(pod):
            self._report(pod, f"0/{len(nodes)} nodes are available: {missing}. {_preemption(len(nodes), 0)}")
            return
        hopeless = 0
        for node in nodes:
            name = node["metadata"]["name"]
            if not (obstacles := list(_obstacles(pod, node, free[name]))):
                self._bind(pod, name)
                _take(free, pod | {"spec": pod["spec"] | {"nodeName": name}})
                return
            reasons.update(obstacles)
            hopeless += any("node(s)" in obstacle for obstacle in obstacles)
        found = ", ".join(sorted(f"{count} {reason}" for reason, count in reasons.items()))
        text = f"0/{len(nodes)} nodes are available: {found}. {_preemption(hopeless, len(nodes) - hopeless)}"
        self._report(pod, text if nodes else "no nodes available to schedule pods")

    def _missing_claim(self, pod: Object) -> str:
        for volume in pod["spec"].get("volumes") or []:
            claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if claim and not self._store.find("persistentvolumeclaims", pod["metadata"]["namespace"], claim):
                return f'persistentvolumeclaim "{claim}" not found'
        return ""

    def _bind(self, pod: Object, node: str) -> None:
        def bind(pod: Object) -> None:
            pod["spec"]["nodeName"] = node
            set_condition(pod, "PodScheduled", "True")

        metadata = pod["metadata"]
        if self._store.edit(pod, bind):
            text = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {node}"
            self._api.event(pod, "Normal", "Scheduled", text, "default-scheduler")

    def _report(self, pod: Object, text: str) -> None:
        if condition(pod, "PodScheduled").get("message") != text:
            self._store.edit(
                pod, lambda entry: set_condition(entry, "PodScheduled", "False", "Unschedulable", text)
            )
            self._api.event(pod, "Warning", "FailedScheduling", text, "default-scheduler")


def _take(free: dict[str, Amounts], pod: Object) -> None:
    room = free.get(pod["spec"].get("nodeName", ""), {})
    for resource, amount in (amounts(pod) | {"pods": Decimal(1)}).items():
        room[resource] = room.get(resource, Decimal(0)) - amount


def _preemption(hopeless: int, victimless: int) -> str:
    parts = [f"{victimless} No preemption victims found for incoming pod"] if victimless else []
    parts += [f"{hopeless} Preemption is not helpful for scheduling"] if hopeless else []
    return f"preemption: 0/{hopeless + victimless} nodes are available: {', '.join(sorted(parts))}."


def _obstacles(pod: Object, node: Object, free: Amounts) -> Iterator[str]:
    spec, metadata = pod["spec"], node["metadata"]
    if node["spec"].get("unschedulable"):
        yield "node(s) were unschedulable"
        return
    for taint in node["spec"].get("taints") or []:
        tolerated = any(tolerates(entry, taint) for entry in spec.get("tolerations") or [])
        if taint["effect"] != "PreferNoSchedule" and not tolerated:
            yield f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
            return
    labels = metadata.get("labels") or {}
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms") or []
    if not (spec.get("nodeSelector") or {}).items() <= labels.items() or (
        terms and not any(_matches(term, labels, metadata["name"]) for term in terms)
    ):
        yield "node(s) didn't match Pod's node affinity/selector"
        return
    for resource, amount in (amounts(pod) | {"pods": Decimal(1)}).items():
        if amount > free.get(resource, Decimal(0)):
            yield "Too many pods" if resource == "pods" else f"Insufficient {resource}"


def _matches(term: Object, labels: dict[str, str], name: str) -> bool:
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    return (
        bool(expressions or fields) and meets(labels, expressions) and meets({"metadata.name": name}, fields)
    )


class NodeLifecycle:
    """Marks silent nodes unreachable after `grace` seconds, and deletes pods that don't tolerate their node.

    `silence` tells for how many seconds a node has been silent; a second of a toleration takes `scale`.
    """

    def __init__(self, api: Api, silence: Callable[[str], float], grace: float, scale: float) -> None:
        self._api, self._store = api, api.store
        self._silence, self._grace, self._scale = silence, grace, scale
        self._stopwatch = Stopwatch()

    def step(self) -> None:
        """Look at every node and at the pods on it."""
        pods = defaultdict(list)
        for pod in self._store.select("pods"):
            pods[pod["spec"].get("nodeName", "")].append(pod)
        for node in self._store.select("nodes"):
            name = node["metadata"]["name"]
            lost = self._silence(name) > self._grace
            node = self._store.edit(node, _lose if lost else _find) or node
            for pod in pods[name]:
                if pod["status"]["phase"] not in FINISHED and "deletionTimestamp" not in pod["metadata"]:
                    if lost and condition(pod, "Ready").get("status") != "False":
                        self._store.edit(pod, _make_unready)
                        self._api.event(
                            pod, "Warning", "NodeNotReady", "Node is not ready", "node-controller"
                        )
                    self._judge(pod, node)

    def _judge(self, pod: Object, node: Object) -> None:
        for taint in node["spec"].get("taints") or []:
            if taint["effect"] != "NoExecute":
                continue
            matching = [entry for entry in pod["spec"].get("tolerations") or [] if tolerates(entry, taint)]
            limits = [entry["tolerationSeconds"] for entry in matching if "tolerationSeconds" in entry]
            patience = min(limits) if limits else None if matching else 0
            since = self._stopwatch.elapsed(uid(pod), taint["key"], taint.get("timeAdded"))
            if patience is not None and since >= patience * self._scale:
                text = "Taint manager: deleting due to NoExecute taint"
                self._api.disrupt(pod, "DeletionByTaintManager", text)
                metadata = pod["metadata"]
                text = f"Marking for deletion Pod {metadata['namespace']}/{metadata['name']}"
                self._api.event(pod, "Normal", "TaintManagerEviction", text, "taint-eviction-controller")
                self._api.delete(pod, {})
                return


def _make_unready(pod: Object) -> None:
    set_condition(pod, "Ready", "False")


def _lose(node: Object) -> None:
    if condition(node, "Ready").get("status") != "Unknown":
        text = "Kubelet stopped posting node status."
        set_condition(node, "Ready", "Unknown", "NodeStatusUnknown", text)
        taints = node["spec"].setdefault("taints", [])
        for effect in ("NoSchedule", "NoExecute"):
            taints.append({"key": UNREACHABLE, "effect": effect, "timeAdded": timestamp()})


def _find(node: Object) -> None:
    set_condition(node, "Ready", "True", "KubeletReady", "kubelet is posting ready status")
    node["spec"]["taints"] = [
        taint for taint in node["spec"].get("taints") or [] if taint["key"] != UNREACHABLE
    ]
