"""Text that would be SQL, a path or markup is what it is: text that nothing is found by."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from eval_assets.__main__ import main
from resources.catalog import Catalog
from resources.results import ResultsStore
from tests.conftest import ROOT
from tests.resources.catalog.relations import relations
from tests.resources.catalog.test_old_store import OLD

HARNESS = ROOT / "tests" / "eval_assets" / "exchange" / "harness" / "part"
HOSTILE = [
    "x'; DROP TABLE damaged; --",
    "' OR '1'='1",
    '") UNION SELECT record FROM evaluations --',
    "%' OR true --",
    "../../../etc/passwd",
    "..%2F..%2Fetc",
    "$1",
    "\x1b[31m<script>alert(1)</script>",
]
COMMANDS = [
    ["samples", "{}", "capitals"],
    ["samples", "tiny@1", "{}"],
    ["samples", "tiny@1", "capitals", "{}"],
    ["samples", "tiny@1", "capitals", "--group", "{}"],
    ["samples", "tiny@1", "capitals", "--metric", "{}"],
    ["samples", "tiny@1", "capitals", "--find", "{}"],
    ["leaderboard", "--models", "{}"],
    ["leaderboard", "--benchmarks", "{}"],
    ["models", "--models", "{}"],
    ["compare", "{}", "tiny@1"],
    ["compare", "tiny@2", "{}"],
    ["compare", "tiny@2", "tiny@1", "--benchmarks", "{}"],
    ["export", "table", "{}", "out.csv"],
    ["export", "table", "metrics", "out.csv", "--models", "{}"],
    ["export", "table", "metrics", "out.csv", "--benchmarks", "{}"],
    ["export", "table", "metrics", "out.csv", "--columns", "{}"],
    ["export", "table", "metrics", "out.csv", "--metrics", "{}"],
    ["export", "table", "metrics", "out.csv", "--since", "{}"],
    ["export", "table", "metrics", "out.csv", "--until", "{}"],
    ["export", "lm-eval", "out", "--models", "{}"],
    ["export", "lm-eval", "out", "--benchmarks", "{}"],
    ["import", str(HARNESS), "--model", "{}"],
    ["evaluate", "{}"],
    ["evaluate", "store", "--key", "{}"],
    ["benchmarks", "preview", "{}"],
    ["gate", "{}"],
]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResultsStore:
    """A store of three versions, in a folder that is otherwise empty."""
    shutil.copytree(OLD, tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVAL_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    store = ResultsStore(str(tmp_path / "store"))
    Catalog(store).refresh()
    return store


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words).replace(str(ROOT), ""))
def test_no_argument_is_ever_part_of_a_query(store: ResultsStore, command: list[str]) -> None:
    """Whoever may name a model could otherwise read, or change, everything."""
    whole = relations(Catalog(store))
    for text in HOSTILE:
        done = run(*[part.replace("{}", text) for part in command])
        assert done.exception is None or isinstance(done.exception, SystemExit), (text, done.exc_info)
        told = done.stdout + done.stderr
        assert "\x1b" not in told
        assert not any(
            error in told for error in ("Parser Error", "Binder Error", "Catalog Error", "Traceback")
        )
    assert relations(Catalog(store)) == whole
    written = {path.name for path in Path.cwd().iterdir()}
    assert written <= {"store", "out.csv", "out"}
