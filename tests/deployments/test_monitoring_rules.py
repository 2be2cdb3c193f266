"""Rules, dashboard and manifests of deployments/monitoring fit each other, the exporter and the pages.

If one of these fails, an alert would never fire, or lead whoever is called at night nowhere.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from cloudcoil.models.prometheus_operator import v1

from resources.settings import VARIABLES
from resources.telemetry import FAMILIES
from tests.conftest import ROOT
from tests.deployments.manifests import DEPLOYMENTS, KUBERNETES, Object, build, named
from tests.prometheus import program
from tests.test_documentation import anchors

MONITORING = DEPLOYMENTS / "monitoring"
RULES: Object = yaml.safe_load((MONITORING / "rules.yaml").read_text())
TESTS = ("rules_test.yaml", "rules_days_test.yaml")
CASES: list[Object] = [
    case for name in TESTS for case in yaml.safe_load((MONITORING / name).read_text())["tests"]
]
DASHBOARD: Object = json.loads((MONITORING / "dashboard.json").read_text())
RECORDED = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
OWN_FIELDS = {"apiVersion", "kind", "metadata", "spec"}


def promtool(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [program("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """The base with the component."""
    folder = tmp_path_factory.mktemp("overlay")
    resources, components = ([os.path.relpath(place, folder)] for place in (KUBERNETES / "base", MONITORING))
    kustomization = {"resources": resources, "components": components}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return build(folder)


def test_the_rules_are_valid() -> None:
    checked = promtool("check", "rules", MONITORING / "rules.yaml")
    assert checked.returncode == 0, checked.stderr
    assert promtool("check", "config", MONITORING / "prometheus.yaml").returncode == 0


def test_each_alert_fires_when_it_should_and_only_then() -> None:
    done = promtool("test", "rules", *(MONITORING / name for name in TESTS))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_there_is_a_case_in_which_an_alert_fires_and_one_in_which_it_does_not(alert: str) -> None:
    """promtool is silent about an alert that no case names."""
    fires = [
        bool(case["exp_alerts"])
        for test in CASES
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == alert
    ]
    assert set(fires) == {True, False}


def test_promtool_notices_an_alert_that_does_not_fire(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(
        (MONITORING / "rules.yaml").read_text().replace('{verdict="worse"}', '{verdict="wrose"}')
    )
    (tmp_path / "rules_test.yaml").write_text((MONITORING / "rules_test.yaml").read_text())
    assert promtool("test", "rules", tmp_path / "rules_test.yaml").returncode != 0


@pytest.mark.parametrize("alert", ALERTS)
def test_the_runbook_of_an_alert_is_a_heading_of_our_pages(alert: str) -> None:
    url = ALERTS[alert]["annotations"]["runbook_url"]
    page, _, anchor = url.removeprefix("https://example.org/evaluation/").partition("#")
    assert anchor in anchors(ROOT / page)
    assert ALERTS[alert]["annotations"]["summary"]
    assert ALERTS[alert]["labels"]["severity"] in ("info", "warning", "critical")


def expressions() -> Iterator[tuple[str, str]]:
    """``(where, PromQL)`` of all rules, panels and variables."""
    for group in RULES["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["definition"]


def test_every_metric_that_is_asked_for_is_exported() -> None:
    """A query of a name that nobody exports is an empty panel, or an alert that never fires."""
    known = {*FAMILIES, *RECORDED}
    for where, expression in expressions():
        asked = re.findall(r"(?:[a-z_]+:)?llm_evaluation_\w+(?::\w+)?", expression)
        assert asked or "ALERTS" in expression, where
        assert set(asked) <= known, where


def test_every_label_that_is_selected_is_one_of_the_metric() -> None:
    for where, expression in expressions():
        for name, selectors in re.findall(r"(llm_evaluation_\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)\s*=~?", selectors))
            if name in FAMILIES:
                assert labels <= set(FAMILIES[name].labels), (where, name)


def test_the_operators_rule_is_the_rules_file() -> None:
    script = _wrap_rules()
    made = script.wrapped((MONITORING / "rules.yaml").read_text())
    assert (MONITORING / "prometheus-rule.yaml").read_text() == made, (
        "run deployments/monitoring/wrap_rules.py"
    )
    assert yaml.safe_load(made)["spec"] == RULES


def test_runbooks_lead_to_where_somebody_says_the_docs_are(tmp_path: Path) -> None:
    for name in ("rules.yaml", "rules_test.yaml", "prometheus-rule.yaml"):
        shutil.copy(MONITORING / name, tmp_path)
    _wrap_rules().main(tmp_path, ["--docs", "https://git.example.com/you/docs/"])
    for name, count in (("rules.yaml", 10), ("prometheus-rule.yaml", 10)):
        text = (tmp_path / name).read_text()
        assert text.count("https://git.example.com/you/docs/monitoring.md#evaluation") == count
        assert "example.org" not in text
    assert promtool("test", "rules", tmp_path / "rules_test.yaml").returncode == 0
    with pytest.raises(SystemExit):
        _wrap_rules().main(tmp_path, ["--docs", "git.example.com"])


def test_two_exporters_count_nothing_twice() -> None:
    """While one pod takes the place of another both are scraped; a sum takes the larger of the two first."""
    for where, expression in expressions():
        added = re.findall(r"sum[^()]*(?:\([^()]*\))?\s*\(\s*(llm_evaluation_\w+)", expression)
        assert added == [], where


def _wrap_rules() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wrap_rules", MONITORING / "wrap_rules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("file", "kind"),
    [("service-monitor.yaml", v1.ServiceMonitor), ("prometheus-rule.yaml", v1.PrometheusRule)],
)
def test_an_object_of_the_operator_has_no_field_that_it_does_not_know(file: str, kind: Any) -> None:
    document = yaml.safe_load((MONITORING / file).read_text())

    def known(written: Object) -> Object:
        model = kind.model_validate(written)
        found: Object = model.model_dump(by_alias=True, exclude_none=True, exclude_unset=True, mode="json")
        return found

    assert known(document) == document
    place = document["spec"].get("endpoints") or document["spec"]["groups"]
    place[0]["intervall"] = "3s"
    assert known(document) != document


def test_what_the_service_monitor_selects_is_there(objects: list[Object]) -> None:
    monitor = named(objects, "ServiceMonitor/evaluation-exporter")["spec"]
    service = named(objects, "Service/evaluation-exporter")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    others = [o for o in objects if o["kind"] == "Service" and o is not service]
    assert not any(
        monitor["selector"]["matchLabels"].items() <= other["metadata"].get("labels", {}).items()
        for other in others
    )


def test_prometheus_takes_all_that_the_cap_allows(objects: list[Object]) -> None:
    """Above `sampleLimit` the whole scrape is refused."""
    monitor = named(objects, "ServiceMonitor/evaluation-exporter")["spec"]
    assert monitor["sampleLimit"] >= int(VARIABLES["metrics_cells"].default) * 40
    assert monitor["labelValueLengthLimit"] >= 200


def test_grafana_finds_the_dashboard_by_its_label(objects: list[Object]) -> None:
    config = named(objects, "ConfigMap/evaluation-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["dashboard.json"]) == DASHBOARD


def test_the_exporter_has_the_narrowed_policies_of_an_air_gapped_cluster(tmp_path: Path) -> None:
    """Policies of its own would stay as wide as they are where an overlay narrows the others."""
    overlay = KUBERNETES / "overlays" / "airgapped"
    kustomization = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    for field in ("resources", "transformers"):
        kustomization[field] = [os.path.relpath(overlay / place, tmp_path) for place in kustomization[field]]
    kustomization["components"] = [os.path.relpath(MONITORING, tmp_path)]
    (tmp_path / "models.yaml").write_text((overlay / "models.yaml").read_text())
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    objects = build(tmp_path)
    policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
    of_exporter = {
        item["metadata"]["name"]
        for item in policies
        if "Egress" in item["spec"]["policyTypes"] and "exporter" in json.dumps(item["spec"]["podSelector"])
    }
    assert of_exporter == {"postgres", "in-house-443"}


def test_panels_have_a_title_an_id_of_their_own_and_room() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_variables_of_the_dashboard_are_those_that_its_queries_use() -> None:
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__all", "labels", "value"}
    assert used == names
