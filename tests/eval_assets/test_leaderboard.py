"""Asset and command `leaderboard`: what is damaged is counted where people look."""

from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from eval_assets.__main__ import main
from eval_assets.leaderboard import leaderboard
from resources.results import ResultsStore
from resources.settings import Settings
from tests.resources.catalog.test_catalogue import commit

NOTE = "1 of the store's files can't be read and are left out; restore or remove them (select * from damaged)"


def damage_one_of_two(store: ResultsStore) -> None:
    commit(store, "m@1", [1.0, 0.0])
    commit(store, "m@2", [1.0, 0.0])
    next(Path(store.root).glob("evaluations/squad/m@1/*/samples.parquet")).write_bytes(b"cut off")


def test_the_asset_counts_what_is_damaged(store: ResultsStore) -> None:
    damage_one_of_two(store)
    resources = {"store": store, "settings": Settings.from_environment({})}
    result = dg.materialize([leaderboard], resources=resources, instance=dg.DagsterInstance.ephemeral())
    (done,) = result.asset_materializations_for_node("leaderboard")
    counts = {name: done.metadata[name].value for name in ("evaluations", "added", "removed", "damaged")}
    assert counts == {"evaluations": 1, "added": 1, "removed": 0, "damaged": 1}


def test_the_command_says_so_in_one_line_beside_the_table(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage_one_of_two(store)
    monkeypatch.setenv("EVAL_STORE", store.root)
    CliRunner().invoke(main, ["leaderboard"])  # makes the catalogue, which it says, too
    done = CliRunner().invoke(main, ["leaderboard"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.stderr == f"note: {NOTE}\n"
    assert "m@2" in done.stdout
    assert "m@1" not in done.stdout
