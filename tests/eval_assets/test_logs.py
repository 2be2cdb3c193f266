"""With EVAL_LOG_FORMAT=json every line of a real run, the daemon and the code server is a JSON object."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from tests.committed import committed_in
from tests.conftest import ROOT
from tests.deployments.manifests import KUBERNETES, build, named
from tests.eval_assets.conftest import Project
from tests.servers import free_port

RUN = """
import os, sys
import dagster as dg
from eval_assets.definitions import definitions
from eval_assets.partitions import row_tags
from resources.settings import Settings
job = definitions(Settings.from_environment(), 0.0).resolve_job_def("evaluate_models")
with dg.DagsterInstance.get() as instance:
    result = job.execute_in_process(
        instance=instance, tags=row_tags("tiny@1", ["capitals", "sentences"]), raise_on_error=False)
sys.stderr.flush()
os._exit(not result.success)  # DuckDB's binding would write a page of its own
"""


def lines_of(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"event", "level", "logger", "timestamp"} <= set(line) for line in found)
    return found


def test_the_lines_of_a_real_run_name_run_cell_and_version(
    project: Project, instance: dg.DagsterInstance
) -> None:
    """Where many pods log into one place, a line without its run is a line of nobody's."""
    runs = project.registered("tiny@1")
    environment = {**os.environ, "EVAL_LOG_FORMAT": "json"}
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = lines_of(done.stderr)
    [run] = instance.get_runs(dg.RunsFilter(job_name="evaluate_models"))
    evaluations = {record["dataset"]: record["evaluation_id"] for record in committed_in(runs.store)}
    told = {
        (line["run_id"], line["model"], line["dataset"], line["evaluation_id"])
        for line in lines
        if "samples" in line["event"] or "n=" in line["event"]
    }
    assert told == {(run.run_id, "tiny@1", key, id_) for key, id_ in evaluations.items()}
    assert done.stdout == ""


def command_of(service: str, folder: Path) -> list[str]:
    """How components/json-logs starts a service, on loopback and without a cluster's files."""
    (folder / "overlay").mkdir()
    kustomization = {
        "resources": [os.path.relpath(KUBERNETES / "base", folder / "overlay")],
        "components": [os.path.relpath(KUBERNETES / "components" / "json-logs", folder / "overlay")],
    }
    (folder / "overlay" / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    deployment = named(build(folder / "overlay"), f"Deployment/evaluation-{service}")
    program, *arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    here = {"0.0.0.0": "127.0.0.1", "4000": str(free_port()), "3000": str(free_port())}
    here |= {"/opt/dagster/dagster_home/workspace.yaml": str(ROOT / "workspace.yaml")}
    return [str(Path(sys.executable).with_name(program)), *(here.get(part, part) for part in arguments)]


@pytest.mark.parametrize(
    ("service", "until"), [("code", "Started Dagster code server"), ("daemon", "Instance is configured")]
)
def test_the_lines_of_the_services_are_of_the_same_kind(
    project: Project, instance: dg.DagsterInstance, tmp_path: Path, service: str, until: str
) -> None:
    """Pipelines that parse lines drop, or choke on, the one that is no object."""
    with subprocess.Popen(
        command_of(service, tmp_path),
        cwd=ROOT,
        env={**os.environ, "EVAL_LOG_FORMAT": "json"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        read: list[str] = []
        try:
            for line in process.stdout:
                read.append(line)
                if until in line:
                    break
        finally:
            process.terminate()
            rest, _ = process.communicate(timeout=60)
    assert until in "".join(read), "".join(read) + rest
    assert lines_of("".join(read))
