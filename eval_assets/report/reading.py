"""What the report shows, read from the catalogue: rows of its views as plain data."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import duckdb

from eval_assets.suite.spec import MetricSpec

_EVALUATION = (
    "evaluation_id", "dataset", "model", "model_name", "model_version", "model_digest", "model_parameters",
    "fingerprint", "content_digest", "benchmark_version", "benchmark_fingerprint", "task", "status", "run_id",
    "started_at", "finished_at", "items_available", "samples", "samples_with_error", "samples_truncated",
    "prompt_tokens", "output_tokens", "primary_metric", "higher_is_better", "peak_memory_bytes",
    "accelerator_class", "accelerator_seconds", "cost", "scoring_version", "python", "git_revision", "engine",
    "device", "dtype", "threads", "seed", "seconds_load", "seconds_prefill", "seconds_decode",
    "seconds_score", "value", "stderr", "ci_low", "ci_high", "record",
)  # fmt: skip
_COMPARISON = (
    "dataset", "model", "baseline", "metric", "verdict", "difference", "stderr", "stderr_unpaired", "ci_low",
    "ci_high", "tolerance", "detectable", "n", "wins", "losses", "ties", "method", "reason",
    "candidate_evaluation", "baseline_evaluation",
)  # fmt: skip
_VERDICT = (
    "model",
    "baseline",
    "status",
    "reason",
    "action",
    "moved",
    "family",
    "missing",
    "judged_at",
    "run_id",
)


_KINDS = {
    "evaluations": "evaluation",
    "comparisons": "comparison",
    "verdicts": "verdict",
    "models": "model record",
    "benchmarks": "benchmark record",
}
"""What lies in each of the store's folders."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One completed computation of a cell, as the view `evaluations` has it."""

    evaluation_id: str
    dataset: str
    model: str
    model_name: str
    model_version: str
    model_digest: str | None
    model_parameters: int | None
    fingerprint: str | None
    content_digest: str | None
    benchmark_version: str | None
    benchmark_fingerprint: str | None
    task: str | None
    status: str
    run_id: str | None
    started_at: datetime | None
    finished_at: datetime | None
    items_available: int | None
    samples: int
    samples_with_error: int | None
    samples_truncated: int | None
    prompt_tokens: int | None
    output_tokens: int | None
    primary_metric: str
    higher_is_better: bool
    peak_memory_bytes: int | None
    accelerator_class: str | None
    accelerator_seconds: float | None
    cost: float | None
    scoring_version: str | None
    python: str | None
    git_revision: str | None
    engine: str | None
    device: str | None
    dtype: str | None
    threads: int | None
    seed: int | None
    seconds_load: float | None
    seconds_prefill: float | None
    seconds_decode: float | None
    seconds_score: float | None
    value: float | None
    stderr: float | None
    ci_low: float | None
    ci_high: float | None
    record: str | None

    @property
    def valid(self) -> bool:
        """Whether its score is one: every sample was scored, and the value is a number."""
        return self.status == "valid" and self.value is not None

    def of_record(self, name: str) -> Any:
        """A field of the committed record that is no column."""
        return json.loads(self.record).get(name) if self.record else None

    @property
    def identity(self) -> list[Any]:
        """What tells it from every other evaluation, and from itself before its texts were removed."""
        record = hashlib.sha256((self.record or "").encode()).hexdigest()
        return [self.evaluation_id, self.dataset, self.model, self.content_digest, record]

    @property
    def without_texts(self) -> bool:
        """Whether retention has removed its prompts, choices and outputs (docs/retention.md)."""
        return self.of_record("retention") is not None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A cell against its baseline's, as the view `comparisons` has it."""

    dataset: str
    model: str
    baseline: str
    metric: str
    verdict: str
    difference: float | None
    stderr: float | None
    stderr_unpaired: float | None
    ci_low: float | None
    ci_high: float | None
    tolerance: float | None
    detectable: float | None
    n: int
    wins: Sequence[str]
    losses: Sequence[str]
    ties: int
    method: str | None
    reason: str | None
    candidate_evaluation: str
    baseline_evaluation: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The latest verdict on a model version."""

    model: str
    baseline: str | None
    status: str
    reason: str
    action: str | None
    moved: bool | None
    family: Sequence[str]
    missing: Sequence[str]
    judged_at: datetime | None
    run_id: str | None


@dataclass(frozen=True, slots=True)
class Damage:
    """A file of the store that can't be read; names are those that its path has."""

    evaluation_id: str | None
    dataset: str | None
    model: str | None
    path: str
    reason: str

    @property
    def what(self) -> str:
        """What the file is, or belongs to."""
        kind = self.path.split("/", 1)[0]
        return _KINDS.get(kind, kind)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a group of items, or of all (`group` None)."""

    metric: str
    group: str | None
    value: float | None
    stderr: float | None
    ci_low: float | None
    ci_high: float | None
    n: int


@dataclass(frozen=True)
class Results:
    """All that the pages are made of but samples and metrics, which are read for one page at a time.

    `current` has each cell's current evaluation by (dataset, model), of those that can be read; `damaged` is
    what can't be. `production` are the versions in production, and since when, as this store has recorded it;
    `declared` the metrics of each benchmark, as it was last prepared.
    """

    evaluations: Sequence[Evaluation]
    current: Mapping[tuple[str, str], Evaluation]
    comparisons: Mapping[tuple[str, str], Comparison]
    verdicts: Mapping[str, Verdict]
    deleted: frozenset[str]
    damaged: Sequence[Damage]
    production: Mapping[str, datetime | None]
    declared: Mapping[str, Sequence[MetricSpec]]

    @cached_property
    def datasets(self) -> list[str]:
        """Every benchmark with an evaluation, also one that can't be read."""
        return sorted({dataset for dataset, _ in [*self.current, *self.damaged_cells]})

    @cached_property
    def models(self) -> list[str]:
        """Every version with an evaluation: by name, and the latest first, by when it was first evaluated."""
        first: dict[str, str] = {}
        for one in self.evaluations:
            at = "" if one.finished_at is None else one.finished_at.isoformat()
            first[one.model] = min(first.get(one.model, at), at)
        models = {model for _, model in [*self.current, *self.damaged_cells]}
        ordered = sorted(models, key=lambda model: (first.get(model, ""), model), reverse=True)
        return sorted(ordered, key=lambda model: model.rpartition("@")[0])

    @cached_property
    def by_model(self) -> Mapping[str, Sequence[Evaluation]]:
        """Every evaluation of each version, the latest first."""
        found = defaultdict(list)
        for one in reversed(self.evaluations):
            found[one.model].append(one)
        return found

    @cached_property
    def damaged_cells(self) -> Mapping[tuple[str, str], Sequence[Damage]]:
        """Evaluations that were committed and can't be read, by (dataset, model)."""
        found = defaultdict(list)
        for one in self.damaged:
            if one.evaluation_id and one.dataset and one.model:
                found[one.dataset, one.model].append(one)
        return dict(found)

    @cached_property
    def damaged_of(self) -> Mapping[str, Sequence[Damage]]:
        """Everything of each version that can't be read."""
        found = defaultdict(list)
        for one in self.damaged:
            found[one.model or ""].append(one)
        return dict(found)

    @cached_property
    def by_id(self) -> Mapping[tuple[str, str, str], Evaluation]:
        """Evaluations by (dataset, model, id)."""
        return {(one.dataset, one.model, one.evaluation_id): one for one in self.evaluations}

    def verdict_on(self, cell: Evaluation) -> Comparison | None:
        """The comparison of this very evaluation, and not of one that it has replaced."""
        found = self.comparisons.get((cell.dataset, cell.model))
        return found if found is not None and found.candidate_evaluation == cell.evaluation_id else None

    def sides(self, comparison: Comparison) -> tuple[Evaluation | None, Evaluation | None]:
        """The evaluations of a comparison, baseline and candidate; None for one that is gone."""
        return (
            self.by_id.get((comparison.dataset, comparison.baseline, comparison.baseline_evaluation)),
            self.by_id.get((comparison.dataset, comparison.model, comparison.candidate_evaluation)),
        )


def read_results(
    connection: duckdb.DuckDBPyConnection,
    production: Mapping[str, datetime | None],
    declared: Mapping[str, Sequence[MetricSpec]],
) -> Results:
    """Read the catalogue. Times are in UTC, wherever it is read."""
    connection.execute("SET TimeZone = 'UTC'")

    def rows(table: str, columns: Sequence[str], order: str) -> list[tuple[Any, ...]]:
        quoted = ", ".join(f'"{column}"' for column in columns)
        return connection.execute(f"SELECT {quoted} FROM {table} ORDER BY {order}").fetchall()

    evaluations = [
        Evaluation(*row) for row in rows("evaluations", _EVALUATION, "finished_at, evaluation_id, model")
    ]
    by_id = {(one.dataset, one.model, one.evaluation_id): one for one in evaluations}
    cells = rows("leaderboard", ("dataset", "model", "evaluation_id"), "dataset, model")
    comparisons = [Comparison(*row) for row in rows("comparisons", _COMPARISON, "dataset, model")]
    verdicts = [Verdict(*row) for row in rows("verdicts", _VERDICT, "model")]
    current = {(dataset, model): by_id[dataset, model, name] for dataset, model, name in cells}
    damaged = rows("damaged", ("evaluation_id", "dataset", "model", "path", "reason"), "path")
    return Results(
        evaluations,
        current,
        {(one.dataset, one.model): one for one in comparisons},
        {one.model: one for one in verdicts},
        frozenset(model for (model,) in rows("deleted_models", ("model",), "model")),
        [Damage(*row) for row in damaged],
        production,
        declared,
    )


def read_metrics(connection: duckdb.DuckDBPyConnection, cell: Evaluation) -> list[Metric]:
    """Every metric of an evaluation, of all items first, then of each group."""
    return read_metrics_of(connection, cell.model, [cell])[cell.dataset]


def read_metrics_of(
    connection: duckdb.DuckDBPyConnection, model: str, cells: Sequence[Evaluation]
) -> Mapping[str, list[Metric]]:
    """`read_metrics` of several cells of one version, by benchmark."""
    rows = connection.execute(
        """
        SELECT dataset, metric, "group", value, stderr, ci_low, ci_high, n FROM metrics
        WHERE model = $model AND list_contains($ids, evaluation_id) AND list_contains($datasets, dataset)
        ORDER BY dataset, "group" NULLS FIRST, metric
        """,
        {
            "model": model,
            "ids": [cell.evaluation_id for cell in cells],
            "datasets": [cell.dataset for cell in cells],
        },
    ).fetchall()
    found: dict[str, list[Metric]] = {cell.dataset: [] for cell in cells}
    for dataset, *metric in rows:
        found[dataset].append(Metric(*metric))
    return found


_SAMPLE = (
    'sample_id, "index", "group", prompt, target, choices, labels, "references", incorrect_references, '
    "loglikelihoods, choice_tokens, output, outputs, finish_reason, prompt_tokens, output_tokens, "
    "truncated_tokens, scores, error, cluster"
)


def read_samples(
    connection: duckdb.DuckDBPyConnection, cell: Evaluation, limit: int | None = None
) -> list[dict[str, Any]]:
    """The samples of an evaluation, in the order of their items, the first `limit` of them."""
    found = connection.execute(
        f"SELECT {_SAMPLE} FROM samples WHERE evaluation_id = $id AND dataset = $dataset AND model = $model "
        'ORDER BY "index" LIMIT $limit',
        {**_of(cell), "limit": 2**62 if limit is None else limit},
    )
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _of(cell: Evaluation) -> dict[str, str]:
    return {"id": cell.evaluation_id, "dataset": cell.dataset, "model": cell.model}
