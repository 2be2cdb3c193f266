"""What the UI calls stale must be what changed, a cell at a time.

The tags behind this are Dagster's internals; these tests ask Dagster's own resolver, the one the UI uses.
"""

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from eval_assets.definitions import definitions
from eval_assets.partitions import cell_key
from resources.catalog import Catalog
from resources.engines.transformers_engine import TransformersEngine
from resources.settings import Settings
from tests.committed import committed_in
from tests.eval_assets.conftest import Automation, Project

CELLS = [("capitals", "tiny@1"), ("sentences", "tiny@1"), ("capitals", "tiny@2"), ("sentences", "tiny@2")]


def stale_cells(instance: dg.DagsterInstance) -> dict[str, list[str]]:
    """The cells of the grid that the UI marks as stale, with its reasons."""
    graph = definitions(Settings.from_environment()).get_repository_def().asset_graph
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    key = dg.AssetKey("evaluation")
    stale = {}
    for cell in CELLS:
        partition = cell_key(*cell)
        status = resolver.get_status(key, partition)
        assert status != StaleStatus.MISSING, partition
        if status == StaleStatus.STALE:
            stale[str(partition)] = [cause.reason for cause in resolver.get_stale_causes(key, partition)]
    return stale


@pytest.fixture
def evaluated(project: Project) -> Project:
    """Two versions of a model on two benchmarks, all evaluated."""
    runs = project.registered("tiny@1", "tiny@2")
    for request in runs.missing(runs.cells(["tiny@1", "tiny@2"], ["capitals", "sentences"])):
        runs.evaluate(request)
    return project


def test_nothing_is_stale_after_an_evaluation(evaluated: Project, instance: dg.DagsterInstance) -> None:
    assert stale_cells(instance) == {}


def test_a_new_digest_under_the_same_version_makes_that_row_stale(
    evaluated: Project, instance: dg.DagsterInstance
) -> None:
    """A team that overwrites a version's files must not go on seeing the old scores as current."""
    config = evaluated.registry / "tiny" / "2" / "generation_config.json"
    config.write_text(config.read_text().replace("{", '{"max_length": 77,', 1))
    runs = evaluated.runs()
    assert runs.register(["tiny@1", "tiny@2"], only_changed=True) == ["tiny@2"]
    assert set(stale_cells(instance)) == {"capitals|tiny@2", "sentences|tiny@2"}
    requests = runs.missing(runs.cells(["tiny@1", "tiny@2"], ["capitals", "sentences"]))
    assert [(r.model, sorted(r.datasets)) for r in requests] == [("tiny@2", ["capitals", "sentences"])]
    for request in requests:
        runs.evaluate(request)
    assert stale_cells(instance) == {}


def test_a_changed_benchmark_file_makes_that_column_stale(
    evaluated: Project, instance: dg.DagsterInstance
) -> None:
    with (evaluated.benchmarks / "capitals.csv").open("a") as file:
        file.write("Peru,Lima,Cusco,Trujillo,Arequipa,America\n")
    runs = evaluated.runs()
    assert runs.prepare(["capitals", "sentences"]) == {"capitals": None}
    assert set(stale_cells(instance)) == {"capitals|tiny@1", "capitals|tiny@2"}


def test_preparing_an_unchanged_benchmark_again_leaves_everything_fresh(
    evaluated: Project, instance: dg.DagsterInstance
) -> None:
    (evaluated.benchmarks / "capitals.csv").touch()
    runs = evaluated.runs()
    assert runs.prepare(["capitals"]) == {"capitals": None}
    assert stale_cells(instance) == {}
    assert runs.missing(runs.cells(["tiny@1", "tiny@2"], ["capitals", "sentences"])) == []


def test_changed_scoring_code_makes_every_cell_stale(
    evaluated: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval_assets import definitions as module
    from eval_assets.evaluating import evaluator

    asset = vars(module)["evaluation"]
    changed = asset.map_asset_specs(lambda spec: spec.replace_attributes(code_version="next"))
    monkeypatch.setattr(module, "evaluation", changed)
    monkeypatch.setattr(evaluator, "SCORING_VERSION", "next")
    assert set(stale_cells(instance)) == {str(cell_key(*cell)) for cell in CELLS}
    runs = evaluated.runs()
    assert len(runs.missing(runs.cells(["tiny@1", "tiny@2"], ["capitals", "sentences"]))) == 2


def test_files_that_are_put_back_bring_their_evaluation_back(
    evaluated: Project, instance: dg.DagsterInstance
) -> None:
    """Reusing the old evaluation must show: in the UI as fresh, on the leaderboard as the model's score."""
    config = evaluated.registry / "tiny" / "2" / "generation_config.json"
    original = config.read_text()
    models, datasets = ["tiny@1", "tiny@2"], ["capitals", "sentences"]
    digests = []
    for content in (original, original.replace("{", '{"max_length": 77,', 1), original):
        config.write_text(content)
        runs = evaluated.runs()
        runs.register(models, only_changed=True)
        for request in runs.missing(runs.cells(models, datasets)):
            runs.evaluate(request)
        assert stale_cells(instance) == {}
        catalog = Catalog(runs.store)
        catalog.refresh()
        with catalog.connect() as connection:
            digests += connection.execute(
                "SELECT DISTINCT model_digest FROM current_evaluations WHERE model = 'tiny@2'"
            ).fetchall()
    assert len(digests) == 3
    assert digests[0] == digests[2] != digests[1]


def test_a_new_instance_on_an_old_store_is_filled_without_computing_anything(
    evaluated: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results outlive the instance: a grid that the store has must not look empty in the UI."""
    home = evaluated.folder / "another-home"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.delattr(TransformersEngine, "load")
    runs = evaluated.runs()
    models, datasets = ["tiny@1", "tiny@2"], ["capitals", "sentences"]
    assert runs.register(models, only_changed=True) == models
    assert runs.prepare(datasets) == dict.fromkeys(datasets)
    for request in runs.missing(runs.cells(models, datasets)):
        runs.evaluate(request)
    assert stale_cells(runs.instance) == {}
    assert runs.missing(runs.cells(models, datasets)) == []
    assert len(committed_in(runs.store)) == 4


def test_a_verdict_is_stale_once_one_of_its_cells_has_changed(
    automation: Automation, instance: dg.DagsterInstance
) -> None:
    """A verdict that always shows as unsynced says nothing when it really is."""

    def status() -> StaleStatus:
        graph = automation.definitions.get_repository_def().asset_graph
        resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
        return resolver.get_status(dg.AssetKey("promotion"), "tiny@2")

    automation.until_at_rest()
    assert status() == StaleStatus.FRESH
    with (automation.project.benchmarks / "capitals.csv").open("a") as file:
        file.write("Peru,Lima,Cusco,Trujillo,Arequipa,America\n")
    runs = automation.project.runs()
    runs.prepare(["capitals"])
    runs.evaluate_cells("tiny@2", ["capitals"])
    assert status() == StaleStatus.STALE
