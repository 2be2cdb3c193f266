"""What the Job says: valid for Kubernetes whatever the names are, and a person's word before ours."""

import json
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.errors import UserError
from resources.keys import ModelKey
from resources.pods.catalogue import Catalogue
from resources.pods.config import label_value, merged, pod_config
from resources.pods.planning import Plan, Purpose, plan_pod
from resources.pods.preview import job_yaml
from resources.pods.sizing import size_of_evaluating
from resources.results import ResultsStore
from tests.resources.pods.catalogues import catalogue, model, shipped


def config(parameters: float = 70e9, offers: Catalogue | None = None, priority: int = 0) -> dict[str, Any]:
    offers = offers or catalogue()
    size = size_of_evaluating(model(parameters, layers=80), offers)
    return pod_config(size, offers, labels={"model": "m@1", "team": "search"}, priority=priority)


def job(plan: Plan) -> dict[str, Any]:
    """The Job of a plan, checked as an API server would."""
    content: dict[str, Any] = yaml.safe_load(
        job_yaml(plan, {"job_namespace": "evaluation", "job_image": "e:1"})
    )
    kubernetes_validate.validate(content, "1.36", strict=True)
    return content


def planned(person: list[dict[str, Any]], store: ResultsStore) -> Plan:
    store.save_model_version("m70b@1", model(70e9, layers=80).as_dict())
    return plan_pod(Purpose(("m70b@1",)), catalogue(), store, None, person)


def test_a_pod_asks_for_its_devices_and_goes_where_they_are(store: ResultsStore) -> None:
    spec = job(planned([], store))["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "3"
    assert "nvidia.com/gpu" not in container["resources"]["requests"]
    assert spec["nodeSelector"] == {"gpu": "large"}
    assert {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    assert {"name": "EVAL_DEVICE_MAP", "value": "yes"} in container["env"]
    assert spec["volumes"] == [
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}
    ]
    lost = [t["tolerationSeconds"] for t in spec["tolerations"] if t["key"].startswith("node.kubernetes.io/")]
    assert lost == [30, 30]


def test_priority_queue_spread_and_claims_are_asked_for_where_the_catalogue_says_so() -> None:
    offers = shipped().model_copy(update={"kueue_queue": "evaluation", "spread": "zone"})
    found = [
        config(offers=offers, priority=p)["pod_spec_config"]["priority_class_name"] for p in (10, 0, -10)
    ]
    assert found == ["evaluation-interactive", "evaluation-new-version", "evaluation-nightly"]
    made = config(offers=offers)
    assert made["job_metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "evaluation"
    assert "kueue.x-k8s.io/queue-name" not in made["pod_template_spec_metadata"]["labels"]
    assert made["job_spec_config"]["suspend"] is True
    assert made["pod_spec_config"]["topology_spread_constraints"][0]["topologyKey"] == "zone"
    h200 = {"claim_template": "h200-{count}", "memory_gib": 140, "per_pod": 8, "host_memory_gib": 200}
    claims = catalogue(accelerators={"h200": h200})
    made = config(offers=claims)
    assert made["pod_spec_config"]["resource_claims"][0]["resourceClaimTemplateName"] == "h200-2"
    assert made["container_config"]["resources"]["claims"] == [{"name": "accelerator"}]


def test_the_pod_knows_what_it_is_for_the_record_of_its_evaluations() -> None:
    variables = {entry["name"]: entry["value"] for entry in config()["container_config"]["env"]}
    record = json.loads(variables["EVAL_POD"])
    assert (record["class"], record["count"], record["price"], record["team"]) == ("large", 3, 12.0, "search")


keys = st.from_regex(r"[A-Za-z0-9._/-]{1,150}@[A-Za-z0-9._-]{1,40}", fullmatch=True)


def _legal(text: str) -> bool:
    try:
        return str(ModelKey.parse(text)) == text
    except UserError:
        return False


@given(
    keys.filter(_legal), st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,100}", fullmatch=True), st.text(max_size=80)
)
@settings(max_examples=60, deadline=None)
def test_every_name_makes_a_valid_job(key: str, dataset: str, team: str) -> None:
    """A model's name comes from outside: it must never become an object that the API refuses."""
    size = size_of_evaluating(model(8e9), catalogue())
    purpose = Purpose((key,), (dataset,), team=team)
    made = pod_config(size, catalogue(), labels={"model": key, "dataset": dataset, "team": team})
    content = job(Plan(purpose, size, merged(made, {}), {}))
    for labels in (content["metadata"]["labels"], content["spec"]["template"]["metadata"]["labels"]):
        for value in labels.values():
            assert re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?", value)
            assert len(value) <= 63
    assert content["metadata"]["annotations"]["evaluation/model"] == key


@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
def test_different_names_have_different_labels(one: str, other: str) -> None:
    assert (label_value(one) == label_value(other)) == (one == other)
    assert label_value(label_value(one)) == label_value(one)


def test_what_a_person_says_wins_field_by_field(store: ResultsStore) -> None:
    """A person knows something that we don't; and keeps everything that they did not speak of."""
    person = {
        "container_config": {
            "resources": {"limits": {"memory": "300Gi"}},
            "env": [{"name": "EVAL_THREADS", "value": "3"}],
        },
        "pod_spec_config": {"nodeSelector": {"zone": "b"}, "priorityClassName": "mine"},
    }
    content = job(planned([person], store))
    spec = content["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert (
        container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"] == "300Gi"
    )
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "3"
    assert [e["value"] for e in container["env"] if e["name"] == "EVAL_THREADS"] == ["3"]
    assert spec["nodeSelector"] == {"gpu": "large", "zone": "b"}
    assert spec["priorityClassName"] == "mine"


def test_another_accelerator_replaces_ours(store: ResultsStore) -> None:
    """Two makers' devices in one pod fit on no node."""
    person = {"container_config": {"resources": {"limits": {"amd.com/gpu": "2"}}}}
    container = job(planned([person], store))["spec"]["template"]["spec"]["containers"][0]
    assert {name for name in container["resources"]["limits"] if "/" in name} == {"amd.com/gpu"}


def test_the_later_of_two_people_wins(store: ResultsStore) -> None:
    job_tag = {"pod_spec_config": {"priority_class_name": "of-the-job", "scheduler_name": "mine"}}
    run_tag = {"pod_spec_config": {"priorityClassName": "of-the-run"}}
    spec = job(planned([job_tag, run_tag], store))["spec"]["template"]["spec"]
    assert (spec["priorityClassName"], spec["schedulerName"]) == ("of-the-run", "mine")


@pytest.mark.parametrize(
    "person", [{"container_config": {"resorces": {}}}, {"pod_spec": {}}, {"container_config": []}]
)
def test_a_wrong_field_in_a_tag_is_one_line(store: ResultsStore, person: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^tag dagster-k8s/config: ") as error:
        planned([person], store)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("person", "line"),
    [
        (
            {
                "container_config": {
                    "env": [{"name": "EVAL_THREADS", "valueFrom": {"secretKeyRef": {"name": "s"}}}]
                }
            },
            "not take them from Secrets",
        ),
        ({"container_config": {"env_from": [{"secret_ref": {"name": "s"}}]}}, "not take them from Secrets"),
        (
            {"pod_spec_config": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}},
            "of the kind secret",
        ),
        (
            {"pod_spec_config": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}},
            "of the kind host_path",
        ),
        (
            {"job_metadata": {"labels": {"dagster/run-id": "another"}}},
            "label dagster/run-id is the launcher's",
        ),
        ({"pod_template_spec_metadata": {"labels": {"evaluation/role": "x"}}}, "label evaluation/role"),
    ],
)
def test_a_tag_gives_nobody_more_than_a_size(store: ResultsStore, person: dict[str, Any], line: str) -> None:
    """Whoever may launch runs could else read every Secret of the namespace, or pass for another run."""
    with pytest.raises(UserError, match=line):
        planned([person], store)


def test_merging_twice_changes_nothing(store: ResultsStore) -> None:
    """A run that is tried again is merged again."""
    person = {"pod_spec_config": {"tolerations": [{"key": "own", "operator": "Exists"}]}}
    once = planned([person], store)
    assert merged(once.config, once.person) == once.config
