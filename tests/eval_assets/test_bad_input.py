"""What a person at the keyboard gets wrong: one line that says what, where and what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.committed import committed_in
from tests.conftest import ROOT
from tests.eval_assets.conftest import Project


def cli(*arguments: str, prelude: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, after `prelude`."""
    program = f"{prelude}\nimport runpy, sys\nsys.argv = ['eval_assets', *{list(arguments)!r}]\n"
    program += "runpy.run_module('eval_assets', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def only_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command wrote."""
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (
            ["evaluate", "--benchmarks", "capitols"],
            {},
            "unknown benchmark 'capitols': did you mean 'capitals'?",
        ),
        (["evaluate", "--models", "tyni@1"], {}, "(closest: tiny@1"),
        (["evaluate", "--models", "nothing*"], {}, "no model version in"),
        (["evaluate", "--models", "a|b@1"], {}, "model key 'a|b@1': expected name@version"),
        (["evaluate", "--models", "../x@1"], {}, "'..' and empty or dot-only segments"),
        (["register", "x" * 300 + "@1"], {}, "302 characters; at most 200"),
        (["register", "a\x01b@1"], {}, "expected name@version"),
        (["evaluate"], {"EVAL_LIMIT": "few"}, "EVAL_LIMIT='few': expected a positive whole number"),
        (["evaluate"], {"DAGSTER_HOME": ""}, "DAGSTER_HOME is not set"),
        (["evaluate"], {"EVAL_REGISTRY": "/nonexistent"}, "/nonexistent"),
        (["evaluate", "--models", "tiny@1"], {"EVAL_DEVICE": "abacus"}, "'abacus' does not exist"),
        (["evaluate"], {"DAGSTER_HOME": "/nonexistent"}, "DAGSTER_HOME is no folder: /nonexistent"),
        (["leaderboard"], {}, "no evaluations in"),
        (["sql", "select * from leaderbord"], {}, "leaderbord does not exist"),
        (["sql", "drop table evaluations"], {}, "read-only"),
    ],
)
def test_a_mistake_is_answered_with_one_line(
    project: Project, arguments: list[str], environment: dict[str, str], expected: str
) -> None:
    assert expected in only_line(cli(*arguments, **environment))


def test_a_read_only_store_is_one_line(project: Project) -> None:
    """Run as another user where the tests run as root, whom no permission stops."""
    runs = project.registered("tiny@1")
    arguments = ["evaluate", "--models", "tiny@1", "--benchmarks", "capitals"]
    for path in Path(runs.store.root).rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    Path(runs.store.root).chmod(0o555)
    prelude = ""
    if os.geteuid() == 0:
        # Reading the project is all that this user needs; the store stays read-only for it.
        prelude = (
            "import resources.results as r\n"
            "put = r.ResultsStore.put\n"
            "import os\n"
            "def as_nobody(self, *a):\n"
            "    os.seteuid(65534)\n"
            "    try: put(self, *a)\n"
            "    finally: os.seteuid(0)\n"
            "r.ResultsStore.put = as_nobody\n"
        )
    result = cli(*arguments, prelude=prelude)
    assert result.returncode == 4
    assert "results store: can't write" in result.stderr
    assert "Permission denied" in result.stderr
    assert "Traceback" not in result.stderr


def test_inputs_longer_than_the_context_are_cut_and_counted(project: Project) -> None:
    """Silent truncation is how a long-context benchmark comes to measure nothing."""
    rows = (project.benchmarks / "capitals.csv").read_text().splitlines()
    rows[1] = rows[1].replace("France", "France " * 300, 1)
    (project.benchmarks / "capitals.csv").write_text("\n".join(rows) + "\n")
    runs = project.registered("tiny@1")
    for request in runs.missing(runs.cells(["tiny@1"], ["capitals"])):
        runs.evaluate(request)
    (record,) = committed_in(runs.store)
    assert record["samples_truncated"] == 1
    assert record["status"] == "valid"
    cut = [s for s in runs.store.samples(record) if s.truncated_tokens]
    assert [s.index for s in cut] == [0]
    assert cut[0].truncated_tokens > 100
