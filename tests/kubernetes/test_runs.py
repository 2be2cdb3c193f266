"""The whole way: a backfill in the UI, the queue, our launcher, HTTP, Jobs, processes, results."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.lab import DATASETS, NAMESPACE, Lab, cell, laboratory

SECRETS = {
    "HF_TOKEN": "hf_SecretOfThisTest",
    "MLFLOW_TRACKING_TOKEN": "mlflow-SecretOfThisTest",
    "EVAL_WEBHOOK": "http://127.0.0.1:1/SecretOfThisTest",
    "EVAL_SMTP": "smtp://someone:SecretOfThisTest@127.0.0.1:1",
}
"""What Dagster's own processes have in their environment."""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with laboratory(tmp_path, monkeypatch.setenv) as lab:
        yield lab


def test_a_backfill_over_three_models_lands_on_three_sizes_of_pod(lab: Lab) -> None:
    """Nobody could have it before: a backfill in the UI, and each cell's pod as large as its model needs."""
    cells = [cell(dataset, model) for dataset in DATASETS for model in ("tiny@1", "tiny@2", "tiny@3")]
    with lab.daemon():
        lab.backfill(cells)
        runs = lab.until_over(6, 100)
        assert {run.status.value for run in runs} == {"SUCCESS"}, lab.describe(runs)
        pods: dict[str, set[tuple[str, str]]] = {}
        for run in runs:
            assert "dagster-k8s/config" in run.tags
            model = run.tags["dagster/partition"].partition("|")[2]
            selector = lab.jobs[run.run_id]["spec"]["template"]["spec"]["nodeSelector"]
            gpus = lab.resources(run.run_id).get("nvidia.com/gpu", "0")
            pods.setdefault(model, set()).add((gpus, json.dumps(selector)))
    assert pods == {
        "tiny@1": {("0", '{"pool": "cpu"}')},
        "tiny@2": {("1", '{"gpu": "small"}')},
        "tiny@3": {("3", '{"gpu": "large"}')},
    }
    evaluated = lab.evaluated()
    assert [(dataset, model) for dataset, model, _ in evaluated] == sorted(
        tuple(text.split("|")) for text in cells
    )
    assert lab.cluster.use_report().by_node["large-1"] <= 8
    assert lab.is_clean()
    # Nothing secret is anywhere that people or the cluster can see.
    told = [text for run in runs for text in (*lab.messages(run.run_id), *run.tags.values())]
    logs = [path.read_text() for path in lab.folder.glob("dagster-*.log")]
    events = lab.cluster.list("events")
    printed = [lab.cluster.logs(pod) for pod in lab.cluster.list("pods", NAMESPACE)]
    assert logs
    assert "SecretOfThisTest" not in json.dumps([told, logs, lab.jobs, events, printed], default=str)
