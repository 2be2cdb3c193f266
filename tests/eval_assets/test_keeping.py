"""Retention with a registry: what is in production stays, and without knowing that nothing goes."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eval_assets.keeping import retain, retention_plan, versions_in_use
from resources.errors import UserError
from resources.records import Estimate, MetricRow, Sample
from resources.results import Cell, ResultsStore
from resources.retention import RetentionPolicy
from resources.retention.policy import Kind
from resources.settings import Settings
from tests.eval_assets.conftest import Project

POLICY = RetentionPolicy(versions=1, texts_days=10, delete_days=20)


def evaluated(store: ResultsStore, model: str, days: int) -> None:
    finished = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    record = {
        "model_name": model.partition("@")[0], "model_version": model.partition("@")[2], "status": "valid",
        "benchmark_fingerprint": "b", "primary_metric": "acc", "higher_is_better": True, "samples": 1,
        "items_available": 1, "started_at": finished, "finished_at": finished, "engine": {}, "seconds": {},
        "task": "generation", "score": None,
    }  # fmt: skip
    with store.writer(Cell("capitals", model, (model.encode().hex() * 64)[:64])) as writer:
        samples = [Sample("id", 0, None, None, "prompt", output="x", scores={"acc": 1.0})]
        writer.commit(samples, [MetricRow("acc", None, Estimate(1.0, None, None, None, 1))], record)


@pytest.fixture
def store(project: Project) -> ResultsStore:
    """Versions of tiny, the newest last, and an imported model that no registry has."""
    store = ResultsStore(Settings.from_environment().store)
    for model, days in (("tiny@1", 90), ("tiny@2", 80), ("tiny@3", 5), ("org/imported@main", 90)):
        evaluated(store, model, days)
    evaluated(store, "org/imported@new", 5)
    return store


def acted_on(store: ResultsStore) -> set[str]:
    found = retention_plan(store, Settings.from_environment(), POLICY)
    return {action.place[1] for action in found.actions if action.place}


def test_what_an_alias_points_to_is_kept(project: Project, store: ResultsStore) -> None:
    """The samples of the champion are what every new version is compared with."""
    assert acted_on(store) == {"tiny@1", "tiny@2", "org/imported@main"}
    (project.registry / "tiny" / "aliases.json").write_text(json.dumps({"champion": "1"}))
    assert versions_in_use(store, Settings.from_environment()) == {"tiny@1": "the alias champion"}
    assert acted_on(store) == {"tiny@2", "org/imported@main"}


def test_a_fixed_baseline_is_kept(
    project: Project, store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"registry": {"folder": str(project.registry)}, "names": "tiny", "baseline": {"version": "2"}}
    path = project.folder / "models.yaml"
    path.write_text(json.dumps({"models": [entry]}))
    monkeypatch.setenv("EVAL_MODELS", str(path))
    assert acted_on(store) == {"tiny@1", "org/imported@main"}


@pytest.mark.parametrize("trouble", ["no registry", "wrong aliases"])
def test_without_knowing_what_is_in_production_nothing_goes(
    project: Project, store: ResultsStore, trouble: str
) -> None:
    """A mount that is missing for a minute would otherwise cost the champion's samples."""
    settings = Settings.from_environment()
    planned = retention_plan(store, settings, POLICY)
    if trouble == "no registry":
        shutil.rmtree(project.registry)
    else:
        (project.registry / "tiny" / "aliases.json").write_text("{")
    before = {path: path.read_bytes() for path in Path(store.root).rglob("*") if path.is_file()}
    for ask in (
        lambda: retention_plan(store, settings, POLICY),
        lambda: retain(planned, store, settings, why="w"),
    ):
        with pytest.raises(UserError) as raised:
            ask()
        assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in Path(store.root).rglob("*") if path.is_file()} == before
    assert retain(planned, store, settings, why="w", ask_registry=False).skipped == ()


def test_an_alias_that_moved_since_the_plan_keeps_its_version(project: Project, store: ResultsStore) -> None:
    settings = Settings.from_environment()
    planned = retention_plan(store, settings, POLICY)
    (project.registry / "tiny" / "aliases.json").write_text(json.dumps({"champion": "2"}))
    seen: list[str] = []
    done = retain(
        planned, store, settings, why="quarterly", who="ada", on_progress=lambda a: seen.append(a.folder)
    )
    assert len(seen) == len(planned.actions) == 3
    assert [line.split(": ", 1)[1] for line in done.skipped] == ["kept meanwhile: the alias champion"]
    assert {record["model"] for _, record in store.records()} == {"tiny@2", "tiny@3", "org/imported@new"}
    assert {str(action.kind) for action in planned.actions} == {str(Kind.DELETE)}
