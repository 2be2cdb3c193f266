"""Stores that earlier versions have made open unchanged.

`evaluations` is of the first version that had evaluations, `engine` of the one whose engine reads a prefix
tree (samples have outputs, records say what was computed), `verdicts` of the last one before costs (with
verdicts, comparisons and promotions). Each was made by that version's own code from tiny models.
"""

import shutil
from pathlib import Path

import pytest

from resources.catalog import Catalog, Refresh
from resources.results import ResultsStore
from tests.committed import committed_in
from tests.conftest import ROOT
from tests.resources.catalog.test_catalogue import query

STORES = ROOT / "tests" / "resources" / "old_stores"
OLD = STORES / "verdicts"
LEADERBOARD = [
    ("capitals", "tiny@1", "acc", 0.3333, 12, "valid"),
    ("capitals", "tiny@2", "acc", 0.3333, 12, "valid"),
    ("capitals", "tiny@3", "acc", 0.4167, 12, "valid"),
    ("capitals_written", "tiny@1", "squad_f1", 0.0, 12, "valid"),
    ("capitals_written", "tiny@2", "squad_f1", 0.0, 12, "valid"),
    ("sentences", "tiny@1", "word_perplexity", 8514432339.4998, 36, "valid"),
    ("sentences", "tiny@2", "word_perplexity", 8528058762.9756, 36, "valid"),
    ("sentences", "tiny@3", "word_perplexity", 1.9424263952412558e130, 36, "valid"),
]
VERDICTS = [
    ("tiny@1", "first", "moved champion from nothing to 1"),
    ("tiny@2", "passed", "moved champion from 1 to 2"),
    ("tiny@3", "failed", "blocked"),
]
COMPARISONS = [
    ("capitals", "tiny@2", "equivalent", 12),
    ("capitals", "tiny@3", "equivalent", 12),
    ("sentences", "tiny@2", "equivalent", 36),
    ("sentences", "tiny@3", "worse", 36),
]
SAMPLES = [(168, 168, 24, 0)]


@pytest.fixture
def old(tmp_path: Path) -> ResultsStore:
    """A copy of the store: three versions of a tiny model, judged."""
    shutil.copytree(OLD, tmp_path / "store")
    return ResultsStore(str(tmp_path / "store"))


def test_every_evaluation_of_an_old_store_is_in_the_catalogue(old: ResultsStore) -> None:
    """An upgrade that loses a year of results, or refuses them, is not made."""
    catalog = Catalog(old)
    refresh = catalog.refresh()
    assert (refresh.added, refresh.damaged) == (8, 0)
    asked = "SELECT dataset, model, metric, round(value, 4), n, status FROM leaderboard ORDER BY ALL"
    assert query(catalog, asked) == LEADERBOARD
    assert query(catalog, "SELECT model, status, action FROM verdicts ORDER BY 1") == VERDICTS
    assert query(catalog, "SELECT dataset, model, verdict, n FROM comparisons ORDER BY ALL") == COMPARISONS
    asked = "SELECT count(*), count(prompt), count(output), count(error) FROM samples"
    assert query(catalog, asked) == SAMPLES
    asked = "SELECT sum(evaluations), sum(cost), count(accelerator_class) FROM costs"
    assert query(catalog, asked) == [(8, None, 0)]
    assert catalog.refresh() == Refresh(0, 0, 8)


def test_the_samples_of_an_old_evaluation_are_read_as_todays(old: ResultsStore) -> None:
    for record in committed_in(old):
        samples = old.samples(record)
        assert len(samples) == record["samples"]
        assert all(sample.scores for sample in samples)


@pytest.mark.parametrize(
    ("stage", "perplexities"),
    [("evaluations", (447878270.7155, 590267757.3776)), ("engine", (447878278.7241, 590267764.4141))],
)
def test_stores_of_the_first_stages_open_too(
    tmp_path: Path, stage: str, perplexities: tuple[float, float]
) -> None:
    shutil.copytree(STORES / stage, tmp_path / "store")
    old = ResultsStore(str(tmp_path / "store"))
    catalog = Catalog(old)
    assert (catalog.refresh().added, catalog.refresh().damaged) == (6, 0)
    asked = "SELECT dataset, model, metric, round(value, 4), n, status FROM leaderboard ORDER BY ALL"
    assert query(catalog, asked) == [
        ("capitals", "tiny@1", "acc", 0.3333, 12, "valid"),
        ("capitals", "tiny@2", "acc", 0.25, 12, "valid"),
        ("capitals_written", "tiny@1", "squad_f1", 0.0, 12, "valid"),
        ("capitals_written", "tiny@2", "squad_f1", 0.0, 12, "valid"),
        ("sentences", "tiny@1", "word_perplexity", perplexities[0], 4, "valid"),
        ("sentences", "tiny@2", "word_perplexity", perplexities[1], 4, "valid"),
    ]
    assert query(catalog, "SELECT count(*), count(prompt), count(error) FROM samples") == [(56, 56, 0)]
    for record in committed_in(old):
        samples = old.samples(record)
        assert len(samples) == record["samples"]
        assert all(sample.scores for sample in samples)
