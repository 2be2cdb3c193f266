"""A thorough look takes as long as it may, says what it left out, and comes to all of it in some nights."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from eval_assets.grid.reconciling import Work, reconcile, short
from resources.results import ResultsStore
from tests.eval_assets.conftest import Clock, Project, SlowRegistry


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("eval_assets.grid.observing.time", clock)
    return clock


def test_a_slow_registry_is_asked_about_each_version_within_some_nights(
    project: Project, clock: Clock
) -> None:
    """In the same order each night, a change of the last versions' files would never be noticed."""
    runs = project.runs()
    known = [f"tiny@{number}" for number in range(30)]
    for key in known:
        runs.store.save_model_version(key, {"digest": key, "revision": "as it was"})
    registry = SlowRegistry(str(project.registry), clock)
    look = replace(runs.look, registry=registry)
    for _ in range(8):  # there is time for 7 of 30 in each
        clock.day += 1
        began, before = clock.now, len(registry.asked)
        world = look.world(known, [], thorough=True, seconds=45.0)
        assert clock.now - began <= 45.0
        assert len(registry.asked) - before == 7
        assert world.not_looked_at == (
            "23 of 30 versions were not looked at in their registries, for want of time: what is "
            "recorded of them counts until a later look",
        )
        assert {version.revision for version in world.versions} == {short("as it was")}
        assert [version.model for version in world.versions] == known
    assert set(registry.asked) == set(known)


def test_results_are_looked_for_in_one_listing_a_benchmark_as_long_as_there_is_time(
    project: Project, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing and a read a cell take an hour in a bucket of 50,000, and Dagster ends a look after 60 s."""
    monkeypatch.setenv("EVAL_LIMIT", "6")
    runs = project.registered("tiny@1", "tiny@2")
    benchmarks = ["capitals", "sentences"]
    for model in ("tiny@1", "tiny@2"):
        runs.evaluate_cells(model, benchmarks)
    for benchmark in benchmarks:
        shutil.rmtree(Path(runs.store.root, "evaluations", benchmark, "tiny@1"))
    whole, listed = ResultsStore.evaluated, []

    def slow(store: ResultsStore, dataset: str) -> set[tuple[str, str]]:
        listed.append(dataset)
        clock.now += 50.0
        return whole(store, dataset)

    monkeypatch.setattr(ResultsStore, "evaluated", slow)
    for one in ("committed", "was_deleted", "evaluation"):
        monkeypatch.setattr(ResultsStore, one, lambda *_: pytest.fail("a cell was looked for by itself"))
    found: set[tuple[str, str]] = set()
    for night in range(1, 5):
        clock.day += 1
        world = runs.look.world(["tiny@1", "tiny@2"], benchmarks, thorough=True, seconds=45.0)
        assert len(listed) == night
        assert world.not_looked_at == (
            "1 of 2 benchmarks' results were not looked for, for want of time: what is recorded of them "
            "counts until a later look",
        )
        tasks = [task for request in reconcile(world).requests for task in request.tasks]
        assert [(task.work, task.model, task.dataset) for task in tasks] == [
            (Work.EVALUATE, "tiny@1", listed[-1])
        ]
        found |= {(task.model, task.dataset) for task in tasks}
    assert found == {("tiny@1", "capitals"), ("tiny@1", "sentences")}
