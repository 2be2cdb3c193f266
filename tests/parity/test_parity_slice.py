"""The real model on real rows, against what lm_eval 0.4.13 answered (compare.py writes the values)."""

from pathlib import Path
from typing import Any

import pytest

from eval_assets.suite import load_suite
from resources.engines.settings import EngineSettings
from resources.engines.transformers_engine import TransformersEngine
from tests.parity import slices
from tests.parity.compare import shortened
from tests.parity.differences import compare
from tests.parity.ours import Side, name_exceptions, run_ours
from tests.parity.report import notes
from tests.parity.rows import write_mirror
from tests.parity.works import SLICE, WINDOW, Work


@pytest.fixture(scope="module")
def harness_values() -> dict[str, dict[str, Any]]:
    return slices.read()


@pytest.fixture(scope="module")
def side(smollm: Path, smollm_engine: TransformersEngine) -> Side:
    return Side(smollm_engine, smollm)


@pytest.fixture(scope="module")
def short_side(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Side:
    """The same model with a context of a few hundred tokens, so that a page takes several windows."""
    folder = shortened(smollm, tmp_path_factory.mktemp("short"), WINDOW)
    return Side(
        TransformersEngine.load(folder, EngineSettings(device="cpu", dtype="float32", threads=2)), folder
    )


@pytest.mark.parametrize("work", SLICE, ids=[work.slug for work in SLICE])
def test_prompts_tokens_likelihoods_texts_and_metrics_are_the_harness_s(
    work: Work,
    harness_values: dict[str, dict[str, Any]],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """Fails when our scores stop being comparable with those that everyone else publishes."""
    side: Side = request.getfixturevalue("side" if work.max_length is None else "short_side")
    theirs = harness_values[work.name]
    write_mirror({(hub, config, split): rows for hub, config, split, rows in theirs["rows"]}, tmp_path)

    ours = run_ours(work.adapt(load_suite()[work.benchmark]), tmp_path, side)

    found = compare(work.name, ours, theirs, work.metrics, asked_more=work.asked_more)
    name_exceptions(found, side)
    assert found.items == len(theirs["items"]) > 0
    assert found.agrees, "\n".join(notes({"SmolLM2": [found]})) or found


def test_the_slice_stays_small_and_says_what_made_it() -> None:
    """Harness values of another version than the one that the documentation names prove nothing."""
    assert slices.PATH.stat().st_size < slices.LARGEST
    assert slices.versions()["lm_eval"] == "0.4.13"
