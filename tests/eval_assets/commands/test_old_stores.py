"""What people do with results is done with those of earlier versions, too, and changes no file of them."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from eval_assets.__main__ import main
from tests.resources.catalog.test_old_store import STORES

COMMANDS = [
    ["leaderboard"],
    ["samples", "tiny@1", "capitals"],
    ["compare", "tiny@2", "tiny@1"],
    ["report"],
    ["export", "table", "samples", "samples.parquet"],
    ["export", "lm-eval", "out"],
    ["retention", "--no-registry", "--policy", "policy.yaml"],
]


def content(store: Path) -> dict[str, str]:
    """Every file that is not made of others, and the SHA-256 of what is in it."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
        and not path.name.startswith((".catalog", "catalog"))
        and "reports" not in path.parts
    }


@pytest.mark.parametrize("stage", sorted(path.name for path in STORES.iterdir()))
def test_every_command_reads_a_store_of_an_earlier_version_and_leaves_it_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """A team that upgrades after a year has a year of such files, and no other copy of them."""
    store = tmp_path / "store"
    shutil.copytree(STORES / stage, store)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVAL_STORE", str(store))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    Path("policy.yaml").write_text("versions: 1\ntexts_days: 0\n")
    before = content(store)
    told = {}
    for command in COMMANDS:
        done = CliRunner().invoke(main, [*command, "--json"])
        assert done.exit_code == 0, (command, done.output, done.exception)
        told[command[0]] = json.loads(done.stdout)
    assert content(store) == before
    assert len(told["samples"]) == 12
    assert len(told["compare"]["compared"]) == 3
    assert (store / "reports" / "index.html").stat().st_size > 1000
    assert list((tmp_path / "out").rglob("results_*.json"))
    # The last version stays, and what a verdict has named.
    assert bool(told["retention"]["actions"]) == (stage != "verdicts")
    assert all(action["bytes"] > 0 for action in told["retention"]["actions"])
