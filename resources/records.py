"""What an evaluation leaves behind, as plain data: a `Sample` an item, an `Estimate` a metric, its record."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NotRequired, TypedDict

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


class Score(TypedDict):
    """The primary metric of the whole, as `Estimate` has it; no interval where a bound is not finite."""

    value: float
    stderr: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    sampling_share: NotRequired[float | None]


class Findings(TypedDict):
    """What an evaluation says of itself when it is committed. Times are ISO 8601 in UTC, sizes bytes.

    The first stores lack some fields, and imports those that only who ran it can know: these may be absent.
    """

    origin: NotRequired[str]
    """Where imported results come from; absent on what was evaluated here."""
    imported: NotRequired[Mapping[str, Any]]
    """What the imported files say beyond the record's own fields."""
    model_name: str
    model_version: str
    model_digest: str | None
    model_parameters: int | None
    benchmark_version: str
    benchmark_fingerprint: str
    task: str
    run_id: str
    started_at: str
    finished_at: str
    status: str
    """``valid``, or ``invalid`` where a sample has an error."""
    items_available: int
    samples: int
    samples_resumed: int
    """Found finished when the evaluation was gone on with."""
    samples_taken_over: NotRequired[int]
    """Computed by an earlier look of the same cell."""
    stage: NotRequired[Mapping[str, Any] | None]
    interruptions: NotRequired[int]
    parts_discarded: NotRequired[int]
    samples_with_error: int
    samples_truncated: int
    prompt_tokens: NotRequired[int]
    output_tokens: NotRequired[int]
    prompt_tokens_computed: NotRequired[int]
    output_tokens_computed: NotRequired[int]
    primary_metric: str
    higher_is_better: bool
    score: Score | None
    """None where the primary metric has no finite value."""
    metrics: Mapping[str, float | None]
    """Each metric of the whole; None where it is not finite."""
    seconds: Mapping[str, float]
    """By phase: load, prefill, decode, score."""
    batch_sequences: NotRequired[int]
    peak_memory_bytes: NotRequired[int | None]
    peak_device_bytes: NotRequired[int | None]
    accelerator_class: NotRequired[str | None]
    """This and the six below say what ran it and what that came to; None where no launcher said so."""
    accelerator_count: NotRequired[int | None]
    accelerator_seconds: NotRequired[float | None]
    spot: NotRequired[bool | None]
    price_per_hour: NotRequired[float | None]
    cost: NotRequired[float | None]
    """Of the whole run, in the currency of the catalogue of accelerators."""
    team: NotRequired[str | None]
    engine: Mapping[str, Any]
    scoring_version: str | None
    packages: Mapping[str, str]
    python: str | None
    git_revision: str | None
    retention: NotRequired[Mapping[str, Any]]
    """What retention has removed of its files since, when, and by which audit."""


class EvaluationRecord(Findings):
    """``evaluation.json``: which evaluation it is, and what it found."""

    evaluation_id: str
    dataset: str
    model: str
    """``name@version``."""
    fingerprint: str
    content_digest: NotRequired[str]


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
