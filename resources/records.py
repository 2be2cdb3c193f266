"""What an evaluation leaves behind, as plain data: a `Sample` an item, an `Estimate` a metric and group."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa


@dataclass(slots=True)
class Output:
    """One of several outputs of an item. `tokens` were written; `scores` are those of this output alone."""

    text: str
    finish_reason: str
    tokens: int
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Sample:
    """One scored item. Fields that a task type does not have stay empty.

    `loglikelihoods` are nats summed over each continuation; `choice_tokens` their lengths in tokens.
    `error` is set where the item could not be scored; its `scores` are then empty. Where an item has several
    outputs, all are in `outputs`, the first also in `output` and `finish_reason`; `output_tokens` counts
    those of all, and `scores` are means over them.
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
    outputs: Sequence[Output] = ()
    scores: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def as_row(self) -> dict[str, Any]:
        """The sample as a row of `SAMPLE_SCHEMA`."""
        row: dict[str, Any] = {name: getattr(self, name) for name in _SAMPLE_FIELDS}
        for name in _LIST_FIELDS:
            row[name] = list(row[name])
        row["outputs"] = [
            {
                "text": output.text,
                "finish_reason": output.finish_reason,
                "tokens": output.tokens,
                "scores": list(output.scores.items()),
            }
            for output in self.outputs
        ]
        row["scores"] = list(self.scores.items())
        return row

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Sample":
        """The inverse of `as_row`; also of rows that were written before there were several outputs.

        Where retention has removed the texts, the prompt is empty.
        """
        values = {name: row[name] for name in _SAMPLE_FIELDS if name != "outputs"}
        values["prompt"] = row["prompt"] or ""
        values["outputs"] = tuple(
            Output(**{**output, "scores": dict(output["scores"])}) for output in row.get("outputs") or ()
        )
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

    A bound or error that is not defined (one item, say) is None. `sampling_share` is the part of the value's
    variance that comes from drawing outputs at random; only several outputs an item can tell it.
    """

    value: float
    stderr: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    sampling_share: float | None = None


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One row of ``metrics.parquet``: a metric of a group, or of the whole where `group` is None."""

    metric: str
    group: str | None
    estimate: Estimate

    def as_row(self) -> dict[str, Any]:
        """The estimate as a row of `METRIC_SCHEMA`."""
        return {"metric": self.metric, "group": self.group, **asdict(self.estimate)}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "MetricRow":
        """The inverse of `as_row`; also of rows that were written before some columns were there."""
        values = {f.name: row[f.name] for f in fields(Estimate) if f.name in row}
        return cls(row["metric"], row["group"], Estimate(**values))


_SCORES_TYPE = pa.map_(pa.string(), pa.float64())
_OUTPUT_TYPE = pa.struct(
    [
        pa.field("text", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("tokens", pa.int32()),
        pa.field("scores", _SCORES_TYPE),
    ]
)

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
        pa.field("outputs", pa.list_(_OUTPUT_TYPE)),
        pa.field("scores", _SCORES_TYPE),
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
        pa.field("sampling_share", pa.float64()),
    ]
)
