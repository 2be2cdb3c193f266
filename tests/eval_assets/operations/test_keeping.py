"""Retention with a registry: what is in production stays, and without knowing that nothing goes."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from eval_assets.grid.comparing import compare_cells
from eval_assets.grid.reconciling import Work, reconcile
from eval_assets.metrics import comparable
from eval_assets.operations.retention import retain, retention_plan, versions_in_use
from eval_assets.partitions import SUITE
from resources.configured import EngineResource
from resources.errors import UserError
from resources.records import SAMPLE_SCHEMA, Estimate, MetricRow, Sample
from resources.results import Cell, ResultsStore
from resources.retention import RetentionPolicy, apply, plan, take_inventory
from resources.retention.policy import Kind
from resources.retention.texts import without_texts
from resources.settings import Settings
from tests.committed import committed_in
from tests.eval_assets.conftest import Project
from tests.resources.test_results import findings

POLICY = RetentionPolicy(versions=1, texts_days=10, delete_days=20)


def evaluated(store: ResultsStore, model: str, days: int) -> None:
    finished = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    name, _, version = model.partition("@")
    record = findings(
        model_name=name,
        model_version=version,
        primary_metric="acc",
        started_at=finished,
        finished_at=finished,
    )
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


def acted_on(store: ResultsStore, *, ask_registry: bool = True) -> set[str]:
    found = retention_plan(store, Settings.from_environment(), POLICY, ask_registry=ask_registry)
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
    shutil.rmtree(project.registry)  # EVAL_MODELS says it, no registry is needed
    assert acted_on(store, ask_registry=False) == {"tiny@1", "org/imported@main"}


def test_a_store_whose_path_looks_like_a_pattern_keeps_what_is_in_production(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing would be known to be in production there, and the champion's samples would go."""
    monkeypatch.setenv("EVAL_STORE", str(project.folder / "team[a]" / "store"))
    store = ResultsStore(Settings.from_environment().store)
    for model, days in (("tiny@1", 90), ("tiny@2", 80), ("tiny@3", 5)):
        evaluated(store, model, days)
    (project.registry / "tiny" / "aliases.json").write_text(json.dumps({"champion": "1"}))
    assert acted_on(store) == {"tiny@2"}


def test_a_model_that_the_registry_skips_keeps_its_aliases(project: Project, store: ResultsStore) -> None:
    """Its files are being copied anew, say: it is in production all the same."""
    (project.registry / "tiny" / "aliases.json").write_text(json.dumps({"champion": "1"}))
    for weights in (project.registry / "tiny").rglob("*.safetensors"):
        weights.write_bytes(b"")
    assert acted_on(store) == {"tiny@2", "org/imported@main"}


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
    done = retain(planned, store, settings, why="quarterly")
    assert len(planned.actions) == 3
    assert [line.split(": ", 1)[1] for line in done.skipped] == ["kept meanwhile: the alias champion"]
    assert {record["model"] for record in committed_in(store)} == {"tiny@2", "tiny@3", "org/imported@new"}
    assert {str(action.kind) for action in planned.actions} == {str(Kind.DELETE)}


def test_comparisons_checks_and_reuse_go_on_without_the_texts(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict of last year is asked for again when somebody doubts it; it must come out as it did."""
    monkeypatch.setenv("EVAL_LIMIT", "6")
    runs = project.registered("tiny@1", "tiny@2")
    datasets = ["capitals", "capitals_written", "sentences"]
    for model in ("tiny@1", "tiny@2"):
        runs.evaluate_cells(model, datasets)
    before = {d: compare_cells(runs.look.cells, "tiny@2", "tiny@1", d) for d in datasets}
    settings = Settings.from_environment()
    in_ten_years = datetime.now(UTC) + timedelta(days=3650)
    policy = RetentionPolicy(versions=1, texts_days=1)
    done = apply(
        plan(take_inventory(runs.store, {}, in_ten_years), policy, in_ten_years), runs.store, why="w"
    )
    assert done.skipped == ()
    stripped = {record["model"] for record in committed_in(runs.store) if record.get("retention")}
    assert stripped == {"tiny@1"}
    for dataset in datasets:
        after = compare_cells(runs.look.cells, "tiny@2", "tiny@1", dataset)
        assert after.as_row() == before[dataset].as_row()
    monkeypatch.setattr(EngineResource, "load", lambda *_: pytest.fail("it is computed again"))
    runs.evaluate_cells("tiny@1", datasets)  # recorded again: with its checks, and examples for the UI
    assert all(runs.store.committed(cell) is not None for cell in runs.cells(["tiny@1"], datasets))
    assert retention_plan(runs.store, settings, policy).actions == ()


def test_the_nightly_schedule_does_not_bring_back_what_was_deleted(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two would undo each other every night, and pay for it."""
    monkeypatch.setenv("EVAL_LIMIT", "6")
    runs = project.registered("tiny@1", "tiny@2")
    for model in ("tiny@1", "tiny@2"):
        runs.evaluate_cells(model, ["capitals"])

    def wanted() -> set[tuple[str, str]]:
        world = runs.look.world(["tiny@1", "tiny@2"], ["capitals"], thorough=True, seconds=60)
        tasks = [task for request in reconcile(world).requests for task in request.tasks]
        return {(task.model, task.dataset) for task in tasks if task.work is Work.EVALUATE}

    assert wanted() == set()
    shutil.rmtree(Path(runs.store.root, "comparisons"))  # what one rests on is never deleted
    in_ten_years = datetime.now(UTC) + timedelta(days=3650)
    policy = RetentionPolicy(versions=1, texts_days=1, delete_days=1)
    apply(plan(take_inventory(runs.store, {}, in_ten_years), policy, in_ten_years), runs.store, why="w")
    assert [record["model"] for record in committed_in(runs.store)] == ["tiny@2"]
    assert wanted() == set()
    runs.evaluate_cells("tiny@1", ["capitals"])  # a person who asks for it gets it
    assert {record["model"] for record in committed_in(runs.store)} == {"tiny@1", "tiny@2"}
    shutil.rmtree(Path(runs.store.root, "evaluations", "capitals", "tiny@1"))  # lost, and not on purpose
    assert wanted() == {("tiny@1", "capitals")}


@pytest.mark.parametrize("dataset", sorted(SUITE))
def test_what_a_verdict_is_made_of_is_left_of_every_benchmarks_samples(dataset: str) -> None:
    """Of a benchmark whose metric reads a text, a comparison would fail, or come out differently."""
    spec = SUITE[dataset]
    samples = []
    for number in range(5):
        texts = [f"{number} words and more words"] * 2
        sample = Sample(
            f"id{number}", number, None, f"c{number % 2}", "prompt", loglikelihoods=[-3.0 - number]
        )
        sample.references, sample.output, sample.choices = texts, "output", texts
        sample.scores = {metric.name: number / 7 for metric in spec.metrics}
        samples.append(sample)
    table = pa.Table.from_pylist([sample.as_row() for sample in samples], schema=SAMPLE_SCHEMA)
    left = [Sample.from_row(row) for row in without_texts(table, spec.task).to_pylist()]
    (one, bounds), (other, same) = (
        comparable(of, spec.primary_metric, spec.metrics, spec.task) for of in (samples, left)
    )
    assert (bounds, one.ids, one.clusters) == (same, other.ids, other.clusters)
    assert np.array_equal(np.asarray(one.values), np.asarray(other.values))
    assert np.array_equal(np.asarray(one.weights), np.asarray(other.weights))
    assert {sample.prompt for sample in left} == {""}
