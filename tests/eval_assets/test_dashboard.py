"""Each query of the dashboard and each rule, run by a real Prometheus that scrapes the real exporter."""

import json
import os
import shutil
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._daemon.types import DaemonHeartbeat

from eval_assets.grid import attempts
from resources.errors import UserError
from tests.conftest import ROOT
from tests.deployments.test_monitoring_rules import DASHBOARD, RECORDED
from tests.eval_assets.conftest import Automation, Project, make_worse
from tests.eval_assets.grid.test_attempts import run_of, say
from tests.eval_assets.operations.test_monitoring import CAPITALS, exporter
from tests.prometheus import program
from tests.servers import free_port, serving

MONITORING = ROOT / "deployments" / "monitoring"
PATIENCE_SECONDS = 60.0
POD = {"class": "l4-24", "count": 1, "price": 0.8, "spot": False, "team": "research"}


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query. Raises AssertionError where it is wrong."""
        asked = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self._url}/api/v1/query?{asked}", timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    def until_there(self, expression: str, deadline: float) -> list[dict[str, Any]]:
        """The series of a query, once there are any; none where the deadline passes."""
        pause = threading.Event()
        while not (found := self.query(expression)) and time.monotonic() < deadline:
            pause.wait(0.2)
        return found


@contextmanager
def prometheus(folder: Path, target_port: int) -> Iterator[Prometheus]:
    """Prometheus with the laptop's own configuration, but scraping each second."""
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{target_port}"]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(MONITORING / "rules.yaml", folder)
    address = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus"), f"--config.file={folder}/prometheus.yaml", f"--web.listen-address={address}",
        f"--storage.tsdb.path={folder}/data",
    ]  # fmt: skip
    with serving(command, f"http://{address}/-/ready", folder / "log", folder=folder):
        yield Prometheus(f"http://{address}")


@pytest.fixture
def lived_in(
    automation: Automation, project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Mapping[str, str]:
    """A project with promotions, a version that is worse, failures, costs and a daemon; its environment."""
    monkeypatch.setenv("EVAL_POD", json.dumps(POD))
    automation = Automation(project, instance)  # with the variable that is set now
    automation.until_at_rest()
    make_worse(project.registry / "tiny" / "1", project.registry / "tiny" / "3")
    automation.until_at_rest()
    for _ in range(3):
        say(instance, run_of(instance, attempts.tags_of([CAPITALS])), {CAPITALS: UserError("mend it")})
    instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", "id"))
    return {**os.environ, "EVAL_BUDGET": "250"}


def with_all_of_each_variable(expression: str) -> str:
    for variable in ("model_name", "dataset", "metric"):
        expression = expression.replace(f"${variable}", ".*")
    return expression


def queries(wanted: Callable[[Mapping[str, Any]], bool] = lambda _: True) -> list[tuple[str, str]]:
    return [
        (panel["title"], with_all_of_each_variable(target["expr"]))
        for panel in DASHBOARD["panels"]
        if wanted(panel)
        for target in panel.get("targets", [])
    ]


def test_every_panel_shows_something_of_a_project_that_has_it(
    lived_in: Mapping[str, str], tmp_path: Path
) -> None:
    """No panel is empty here; which are in a project without costs, say, their descriptions tell."""
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with exporter(lived_in, interval=1.0) as (port, _), prometheus(folder, port) as server:
        deadline = time.monotonic() + PATIENCE_SECONDS
        empty = [title for title, query in queries() if not server.until_there(query, deadline)]
        assert empty == []
        for variable in DASHBOARD["templating"]["list"]:
            if variable["type"] == "query":
                metric, _, label = variable["definition"].partition("label_values(")[2].rpartition(",")
                found = server.query(with_all_of_each_variable(metric))
                assert {series["metric"][label.strip(" )")] for series in found}
        assert all(server.query(record) for record in RECORDED)
        firing = {series["metric"]["alertname"] for series in server.query('ALERTS{alertstate="firing"}')}
        assert {"EvaluationRegression", "EvaluationFailsRepeatedly"} <= firing
        assert not firing & {"EvaluationExporterDown", "EvaluationBudget", "EvaluationResultsDamaged"}
        [champion] = server.query(
            'model_dataset_metric:llm_evaluation_score:champion{dataset="capitals",metric="acc"}'
        )
        assert champion["metric"]["model_name"] == "tiny"
        roles = {
            (series["metric"]["model_version"], series["metric"]["role"])
            for series in server.query("llm_evaluation_version_info")
        }
        assert roles == {("2", "champion"), ("3", "latest")}


def test_panels_that_a_small_project_leaves_empty_say_when_they_are(
    project: Project, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """An empty panel without a word looks like a broken one."""
    runs = project.registered("tiny@1")
    runs.evaluate_cells("tiny@1", ["capitals"])
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with exporter(os.environ, interval=1.0) as (port, _), prometheus(folder, port) as server:
        assert server.until_there("llm_evaluation_samples", time.monotonic() + PATIENCE_SECONDS)
        empty = {title for title, query in queries() if not server.query(query)}
    described = {panel["title"] for panel in DASHBOARD["panels"] if "mpty" in panel.get("description", "")}
    assert empty - {"Latest version", "Errors in the hour before"} <= described
