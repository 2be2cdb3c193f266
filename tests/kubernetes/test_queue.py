"""A hundred runs at once on eight devices."""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from resources.pods.catalogue import Catalogue
from resources.pods.queueing import Waiting, admit
from tests.kubernetes.lab import CATALOGUE, SIZES, Lab, cell, laboratory
from tests.small_location import DATASETS

MODELS = {f"model@{n}": 3 if n % 5 == 0 else 1 for n in range(50)}
"""How many devices each asks for."""
ONE = {"parameters": 20 * 10**9, "weight_bytes": 40 * 10**9, "layers": 48, "kv_bytes_per_token": 196_608}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with laboratory(tmp_path, monkeypatch.setenv) as lab:
        measured = lab.store.model_version("tiny@1")
        assert measured is not None
        for key, count in MODELS.items():
            facts = SIZES["tiny@3"] if count == 3 else ONE
            lab.store.save_model_version(key, {**measured, **facts, "key": key})
        with lab.instance as instance:
            instance.add_dynamic_partitions("model", list(MODELS))
        yield lab


def test_a_hundred_runs_share_eight_devices_and_none_is_lost_or_doubled(lab: Lab) -> None:
    workspace = lab.folder / "workspace.yaml"
    location = {"module_name": "tests.small_location", "location_name": "evaluation"}
    workspace.write_text(yaml.safe_dump({"load_from": [{"python_module": location}]}))
    cells = [cell(dataset, model) for dataset in DATASETS for model in MODELS]
    with lab.daemon(workspace=str(workspace)):
        lab.backfill(cells)
        runs = lab.until_over(len(cells), 540)
        lab.until(lambda _: all("completionTime" in lab.jobs[run.run_id]["status"] for run in runs), 30)
    assert Counter(run.status.value for run in runs) == {"SUCCESS": len(cells)}
    assert sorted(run.tags["dagster/partition"] for run in runs) == sorted(cells)
    assert {run.tags["eval/accelerators"] for run in runs} == {"1", "3"}
    assert lab.cluster.use_report().by_node["large-1"] == 8  # all at times, never more
    took, least = spans(lab.jobs), {run.run_id: int(run.tags["eval/accelerators"]) for run in runs}
    makespan = max(end for _, end in took.values()) - min(start for start, _ in took.values())
    listed = list_schedule({run_id: (least[run_id], end - start) for run_id, (start, end) in took.items()})
    print(f"{makespan:.0f} s; with the same pods and no time between them {listed:.0f} s")
    assert makespan < 1.25 * listed
    lab.cluster.until(lab.is_clean, 60)


def spans(jobs: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """When each Job had its devices."""
    return {
        run_id: (_time(job["status"]["startTime"]), _time(job["status"]["completionTime"]))
        for run_id, job in jobs.items()
    }


def list_schedule(jobs: Mapping[str, tuple[int, float]]) -> float:
    """The makespan of list scheduling: whenever something ends, what waits is admitted at once."""
    offers, left, now = Catalogue.model_validate(dict(CATALOGUE)), dict(jobs), 0.0
    ends: dict[str, float] = {}
    while left or ends:
        busy = sum(jobs[run_id][0] for run_id in ends)
        waiting = [Waiting(run_id, "large", count, 0, now) for run_id, (count, _) in left.items()]
        for run_id in admit(waiting, {"large": busy}, offers)[0]:
            ends[run_id] = now + left.pop(run_id)[1]
        first = min(ends, key=lambda run_id: ends[run_id])
        now = ends.pop(first)
    return now


def _time(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
