"""What the webserver, the daemon and the ecosystem's tools see."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.eval_assets.conftest import Project


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ)


def test_the_definitions_load_without_torch(project: Project) -> None:
    """Every process of Dagster loads them: torch there would cost seconds and a gigabyte each."""
    program = (
        "import sys, eval_assets.definitions\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'scipy.stats', 'sacrebleu', 'bert_score'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = run(sys.executable, "-c", program)
    assert result.stdout.strip() == "[]", result.stderr


def test_the_definitions_take_little_processor_time_to_load(project: Project) -> None:
    """At most 3 s, counted as processor time so that a busy machine doesn't matter."""
    before = os.times()
    assert run(sys.executable, "-c", "import eval_assets.definitions").returncode == 0
    after = os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    assert used < 3.0


@pytest.mark.parametrize("command", [["check", "defs"], ["list", "defs"]])
def test_dg_knows_the_project(project: Project, command: list[str]) -> None:
    dg = str(Path(sys.executable).parent / "dg")
    result = run(dg, *command)
    assert result.returncode == 0, result.stdout + result.stderr
    if command[0] == "list":
        for name in ("evaluation", "model_version", "benchmark", "leaderboard", "register_models"):
            assert name in result.stdout


def test_help_starts_quickly_and_imports_no_dagster(project: Project) -> None:
    before = os.times()
    program = (
        "import sys; sys.argv = ['eval_assets', '--help']\n"
        "from eval_assets.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print('dagster' in sys.modules, 'torch' in sys.modules)"
    )
    result = run(sys.executable, "-c", program)
    assert result.stdout.splitlines()[-1] == "False False"
    after = os.times()
    assert after.children_user - before.children_user < 0.5


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("title: x\n", "bad.yaml"),
        (
            "version: 1\ntitle: x\ntask: multiple_choise\nsource: {path: x.csv}\nmetrics: [acc]\n"
            "primary_metric: acc\n",
            "task",
        ),
    ],
)
def test_a_wrong_benchmark_file_stops_the_code_location_with_one_line(
    project: Project, yaml: str, message: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "bad.yaml").write_text(yaml)
    result = subprocess.run(
        [sys.executable, "-m", "eval_assets", "benchmarks", "list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "EVAL_BENCHMARKS": str(folder)},
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
