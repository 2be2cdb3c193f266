"""The demo's grid, and the documented ways to a first result, through the same commands that people type."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resources.catalog import Catalog
from resources.results import ResultsStore
from tests.committed import committed_in
from tests.conftest import ROOT
from tests.eval_assets.conftest import Project
from tests.eval_assets.suite.test_adding_a_benchmark import titled_blocks

BENCHMARKS = "arc_easy,hellaswag,mmlu_0shot,squad"


def evaluate(*arguments: str, **environment: str) -> str:
    """`python -m eval_assets evaluate` in a process of its own; returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-m", "eval_assets", "evaluate", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_demo_grid_of_real_models_and_rows(
    project: Project, models: Path, data: Path, tmp_path: Path
) -> None:
    """A few items a cell: all are committed, a re-save changes nothing, pruning does, again is no work."""
    arguments = ["--models", "smollm2-135m@*", "--benchmarks", BENCHMARKS]
    # A registry of its own: the demo's has an alias once somebody has run it.
    registry = tmp_path / "registry"
    (registry / "smollm2-135m").mkdir(parents=True)
    for version in (models / "smollm2-135m").iterdir():
        if version.is_dir():
            (registry / "smollm2-135m" / version.name).symlink_to(version)
    environment = {
        "EVAL_REGISTRY": str(registry),
        "EVAL_DATA_MIRROR": str(data),
        "EVAL_LIMIT": "4",
        "EVAL_THREADS": "2",
    }
    printed = evaluate(*arguments, **environment)
    assert "12 of 12 cells to evaluate, 48 samples." in printed
    assert "4 of 10,042" in printed
    store = ResultsStore(str(tmp_path / "store"))
    records = {(r["model"], r["dataset"]): r for r in committed_in(store)}
    assert len(records) == 12
    assert {r["status"] for r in records.values()} == {"valid"}
    assert {r["samples"] for r in records.values()} == {4}

    def likelihoods(version: int) -> list[float]:
        samples = store.samples(records[f"smollm2-135m@{version}", "hellaswag"])
        return [value for sample in samples for value in sample.loglikelihoods]

    published, resaved, pruned = likelihoods(1), likelihoods(2), likelihoods(3)
    assert resaved == pytest.approx(published, rel=0.02)
    assert pruned != pytest.approx(published, rel=0.02)
    assert sum(pruned) < sum(published)
    with Catalog(store).connect() as connection:
        (rows,) = connection.execute("SELECT count(*) FROM comparisons").fetchall()
        assert rows == (4 * 2,)
        ((text,),) = connection.execute(
            "SELECT prompt FROM samples WHERE dataset = 'squad' ORDER BY model LIMIT 1"
        ).fetchall()
        assert text.startswith("Title: ")
    assert "All 12 cells are evaluated already: nothing to do." in evaluate(*arguments, **environment)


def test_the_page_on_adding_a_benchmark_leads_to_a_result(project: Project, tmp_path: Path) -> None:
    """The page's own files and command, on a tiny model instead of the demo's."""
    folder = tmp_path / "my-benchmarks"
    folder.mkdir()
    for name, body in titled_blocks().items():
        if name.endswith((".yaml", ".csv")):
            (folder / name).write_text(body, encoding="utf-8")
    page = (ROOT / "docs" / "adding-a-benchmark.md").read_text()
    assert "make evaluate MODELS=smollm2-135m@1 BENCHMARKS=capitals" in page
    printed = evaluate("--models", "tiny@1", "--benchmarks", "capitals", EVAL_BENCHMARKS=str(folder))
    assert re.search(r"capitals +│ tiny@1 +│ acc", printed), printed


def test_a_persons_own_model_takes_the_readmes_three_steps(project: Project) -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make register" in readme
    assert "make evaluate MODELS=my-model@7" in readme
    shutil.copytree(project.registry / "tiny" / "1", project.registry / "my-model" / "7")
    registered = subprocess.run(
        [sys.executable, "-m", "eval_assets", "register", "my-model@7"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert registered.returncode == 0, registered.stderr
    assert "my-model@7" in registered.stdout
    printed = evaluate("--models", "my-model@7", "--benchmarks", "capitals,sentences")
    assert len(re.findall(r"│ my-model@7 ", printed)) == 2
