"""What an entry of EVAL_MODELS says of a model decides what its cells are."""

import pytest

from eval_assets.commands.runs import Runs
from eval_assets.grid.cells import Cells
from eval_assets.grid.tracking import TrackedModels, Tracking
from resources.registries import ModelVersion
from resources.registries.sources import RegistrySource
from tests.eval_assets.conftest import Project


def cells_of(runs: Runs, **entry: object) -> Cells:
    registry = RegistrySource(folder=runs.settings.registry)
    tracked = Tracking(models=(TrackedModels.model_validate({"registry": registry, **entry}),))
    return Cells(runs.settings, runs.store, tracked)


@pytest.fixture
def runs(project: Project) -> Runs:
    return project.registered("tiny@1")


def test_chat_is_the_benchmarks_own_unless_the_entry_says_otherwise(runs: Runs) -> None:
    """The same model with and without its chat template are two different measurements."""
    record = runs.store.model_version("tiny@1")
    assert record is not None
    version = ModelVersion.from_dict(record)
    found = {}
    for chat in (None, True, False):
        cells = cells_of(runs, chat=chat)
        benchmark = cells.benchmark("tiny", "capitals_written")
        assert (benchmark.spec.chat is not None) is bool(chat)
        found[chat] = cells.cell(version, benchmark).fingerprint
    assert found[None] == found[False] != found[True]


def test_a_text_that_is_read_from_its_start_has_no_turns(runs: Runs) -> None:
    assert cells_of(runs, chat=True).benchmark("tiny", "sentences").spec.chat is None


def test_the_entrys_dtype_goes_before_that_of_all(runs: Runs) -> None:
    """Otherwise a model is run in one dtype and its results are named after another."""
    assert cells_of(runs).dtype("tiny") == runs.settings.dtype
    assert cells_of(runs, dtype="bfloat16").dtype("tiny") == "bfloat16"
    assert cells_of(runs, dtype="bfloat16").engine_fields("tiny")["dtype"] == "bfloat16"
    assert cells_of(runs, names="other", dtype="bfloat16").dtype("tiny") == runs.settings.dtype


def test_the_looks_of_a_staged_evaluation_end_with_all_items(runs: Runs) -> None:
    benchmark = cells_of(runs, staged=True).benchmark("tiny", "capitals")
    looks = [look.count for look in cells_of(runs, staged=True).looks(benchmark)]
    assert looks == sorted(looks)
    assert looks[-1] == benchmark.count
    read = benchmark.read(runs.store)
    assert len(read.items) == benchmark.count
