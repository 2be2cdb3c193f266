"""What an evaluation leaves behind, as plain data: a `Sample` an item, an `Estimate` a metric and group."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa


@dataclass(slots=True)
class Sample:
    """One scored item. Fields that a task type does not have stay empty.

    `loglikelihoods` are nats summed over each continuation; `choice_tokens` their lengths in tokens.
    `error` is set where the item could not be scored; its `scores` are then empty.
    """

    sample_id: str
    index: int
    group: str | None
    cluster: str | None
    prompt: str
    target: int | None = None
    choices: Sequence[str] = ()
    labels: Sequence[int] = ()
    references: Sequence[str] = ()
    incorrect_references: Sequence[str] = ()
    loglikelihoods: Sequence[float] = ()
    choice_tokens: Sequence[int] = ()
    is_greedy: Sequence[bool] = ()
    output: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    truncated_tokens: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def as_row(self) -> dict[str, Any]:
        """The sample as a row of `SAMPLE_SCHEMA`."""
        row: dict[str, Any] = {name: getattr(self, name) for name in _SAMPLE_FIELDS}
        for name in _LIST_FIELDS:
            row[name] = list(row[name])
        row["scores"] = list(self.scores.items())
        return row

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Sample":
        """The inverse of `as_row`."""
        values = {name: row[name] for name in _SAMPLE_FIELDS}
        values["scores"] = dict(row["scores"])
        return cls(**values)


_SAMPLE_FIELDS = [f.name for f in fields(Sample)]
_LIST_FIELDS = (
    "choices",
    "labels",
    "references",
    "incorrect_references",
    "loglikelihoods",
    "choice_tokens",
    "is_greedy",
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric over a set of items. `stderr` and the 95 % interval are in the metric's own unit.

    A bound or error that is not defined (one item, say) is None.
    """

    value: float
    stderr: float | None
    ci_low: float | None
    ci_high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One row of ``metrics.parquet``: a metric of a group, or of the whole where `group` is None."""

    metric: str
    group: str | None
    estimate: Estimate


SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("cluster", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("target", pa.int32()),
        pa.field("choices", pa.list_(pa.string())),
        pa.field("labels", pa.list_(pa.int8())),
        pa.field("references", pa.list_(pa.string())),
        pa.field("incorrect_references", pa.list_(pa.string())),
        pa.field("loglikelihoods", pa.list_(pa.float64())),
        pa.field("choice_tokens", pa.list_(pa.int32())),
        pa.field("is_greedy", pa.list_(pa.bool_())),
        pa.field("output", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("output_tokens", pa.int32()),
        pa.field("truncated_tokens", pa.int32()),
        pa.field("scores", pa.map_(pa.string(), pa.float64())),
        pa.field("error", pa.string()),
    ]
)

METRIC_SCHEMA = pa.schema(
    [
        pa.field("metric", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("stderr", pa.float64()),
        pa.field("ci_low", pa.float64()),
        pa.field("ci_high", pa.float64()),
        pa.field("n", pa.int64(), nullable=False),
    ]
)
