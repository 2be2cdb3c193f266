"""Short ways to make an answered sample and to score it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pytest

from eval_assets.metrics import ScoringSettings, score_samples
from eval_assets.suite.spec import MetricSpec
from resources.records import Sample

MakeSample: TypeAlias = Callable[..., Sample]
Score: TypeAlias = Callable[..., float]


@pytest.fixture(scope="session")
def make_sample() -> MakeSample:
    """A sample with the given fields, and with choices where it has a target or labels but none are given."""

    def make(**fields: Any) -> Sample:
        values: dict[str, Any] = {"sample_id": "0", "index": 0, "group": None, "cluster": None, "prompt": ""}
        if "loglikelihoods" in fields and ("target" in fields or "labels" in fields):
            fields.setdefault("choices", tuple(f"choice {i}" for i in range(len(fields["loglikelihoods"]))))
        return Sample(**{**values, **fields})

    return make


@pytest.fixture(scope="session")
def score(make_sample: MakeSample) -> Score:
    """The score of one metric on one sample: a name, or a mapping as in YAML, and the sample's fields."""

    def score_one(metric: str | Mapping[str, Any], **fields: Any) -> float:
        (value,) = score_all([make_sample(**fields)], metric)
        return value

    return score_one


def score_all(
    samples: Sequence[Sample],
    metric: str | Mapping[str, Any],
    settings: ScoringSettings | None = None,
) -> list[float]:
    """One metric's scores; fails where a sample can't be scored."""
    spec = MetricSpec.model_validate(metric)
    score_samples(samples, [spec], settings or ScoringSettings())
    assert [sample.error for sample in samples] == [None] * len(samples)
    return [sample.scores[spec.name] for sample in samples]


@pytest.fixture(scope="session")
def score_many() -> Callable[..., list[float]]:
    """`score_all` as a fixture."""
    return score_all
