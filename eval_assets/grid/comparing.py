"""Two versions on one benchmark, as the store has them: the comparison of their samples, and its verdict."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval_assets.evaluating.evaluator import metric_of
from eval_assets.grid.cells import Cells
from eval_assets.partitions import SUITE
from eval_assets.statistics.sequential import decide
from eval_assets.statistics.verdicts import Comparison, Scores, Verdict, compare, verdict
from eval_assets.suite.spec import BenchmarkSpec
from resources.errors import UserError
from resources.keys import ModelKey
from resources.records import Sample
from resources.registries import ModelVersion

UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class CellComparison:
    """A candidate's cell against the baseline's: records of both evaluations, the comparison, its verdict."""

    dataset: str
    candidate: Mapping[str, Any]
    baseline: Mapping[str, Any]
    comparison: Comparison
    verdict: Verdict

    def as_row(self) -> dict[str, Any]:
        """As plain data for a record."""
        return {
            "dataset": self.dataset,
            "model": self.candidate["model"],
            "baseline": self.baseline["model"],
            "metric": self.candidate["primary_metric"],
            "candidate_evaluation": self.candidate["evaluation_id"],
            "baseline_evaluation": self.baseline["evaluation_id"],
            "items_available": self.candidate["items_available"],
            "comparison": self.comparison.as_row(),
            "verdict": self.verdict.as_row(),
        }


def scores_of(spec: BenchmarkSpec, samples: Sequence[Sample]) -> tuple[Scores, tuple[float, float]]:
    """The primary metric's scores of samples, and the range that they can have.

    Of a metric that weighs texts by their length (perplexities, bits per byte) they are nats a word or byte,
    weighted by the words or bytes: a tolerance of 0.02 is then 2 % of a perplexity.
    """
    metric_spec = next(metric for metric in spec.metrics if metric.name == spec.primary_metric)
    metric = metric_of(spec, spec.primary_metric)
    ids = [sample.sample_id for sample in samples]
    clusters = [sample.cluster for sample in samples]
    if spec.task == "perplexity" and metric.aggregation is not None:
        parts = metric.statistics(samples, metric_spec)
        weights = parts[:, 1]
        return Scores(ids, parts[:, 0] / weights, clusters, weights), UNBOUNDED
    values = [sample.scores.get(spec.primary_metric) for sample in samples]
    return Scores(ids, values, clusters), metric.bounds


def compare_cells(cells: Cells, candidate: str, baseline: str, dataset: str) -> CellComparison:
    """Compare two model versions on a benchmark by their evaluations of today's fingerprints.

    Raises UserError where one is missing or not valid.
    """
    benchmark = cells.benchmark(ModelKey.parse(candidate).name, dataset)
    return compare_records(
        cells,
        _evaluation(cells, candidate, dataset, baseline),
        _evaluation(cells, baseline, dataset, None),
        benchmark.spec,
    )


def compare_records(
    cells: Cells, candidate: Mapping[str, Any], baseline: Mapping[str, Any], spec: BenchmarkSpec
) -> CellComparison:
    """Compare two committed evaluations of one benchmark. Raises UserError where they are not comparable."""
    for name, what in (("benchmark_fingerprint", "items or settings"), ("primary_metric", "primary metric")):
        if candidate[name] != baseline[name]:
            raise UserError(
                f"{candidate['model']} and {baseline['model']} on {candidate['dataset']} are not comparable: "
                f"the benchmark's {what} changed between the two evaluations; evaluate the older one again"
            )
    found = [scores_of(spec, cells.store.samples(record)) for record in (baseline, candidate)]
    return _judged(cells, [baseline, candidate], [scores for scores, _ in found], found[0][1])


def _judged(
    cells: Cells,
    records: Sequence[Mapping[str, Any]],
    scores: Sequence[Scores],
    bounds: tuple[float, float],
) -> CellComparison:
    baseline, candidate = records
    dataset = candidate["dataset"]
    for record in records:
        if record["status"] != "valid":
            raise UserError(
                f"{record['model']} on {dataset} is not valid: {record['samples_with_error']} samples have "
                "an error; see the cell's checks"
            )
    entry = cells.tracking.entry_of(candidate["model"])
    try:
        comparison = compare(
            scores[0], scores[1], higher_is_better=candidate["higher_is_better"], bounds=bounds
        )
        if stage := candidate.get("stage"):
            family = len(entry.datasets(SUITE))
            found = decide(comparison, entry.tolerance_of(dataset), stage["look"], family=family).verdict
        else:
            found = verdict(comparison, entry.tolerance_of(dataset))
    except ValueError as error:
        raise UserError(f"{candidate['model']} on {dataset} against {baseline['model']}: {error}") from None
    return CellComparison(dataset, candidate, baseline, comparison, found)


def _evaluation(cells: Cells, key: str, dataset: str, baseline: str | None) -> Mapping[str, Any]:
    record = cells.store.model_version(key)
    if record is None:
        raise UserError(f"model version {key} is not registered yet")
    version = ModelVersion.from_dict(record)
    evaluation = cells.evaluation(version, dataset, baseline)
    if evaluation is None:
        raise UserError(f"{key} has no evaluation of today's {dataset}")
    return evaluation


COLUMNS = (
    "benchmark", "verdict", "difference", "95 % interval", "tolerance", "won / lost / same", "n",
    "detectable", "stderr", "unpaired",
)  # fmt: skip
"""What people are shown of a comparison, on a terminal, in Dagster and in a pull request."""


def shown(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The values of `COLUMNS`, as text, of a comparison's `CellComparison.as_row` (which the store keeps)."""
    one, found = row["comparison"], row["verdict"]

    def number(name: str, form: str) -> str:
        return "" if one[name] is None else format(one[name], form)

    return (
        row["dataset"],
        found["name"],
        number("difference", "+.4f"),
        "" if one["ci_low"] is None else f"{one['ci_low']:+.4f} to {one['ci_high']:+.4f}",
        f"{found['tolerance']:g}",
        f"{len(one['wins'])} / {len(one['losses'])} / {one['ties']}",
        f"{one['n']:,} of {row['items_available']:,}",
        *(number(name, ".4f") for name in ("detectable", "stderr", "unpaired_stderr")),
    )


def markdown(rows: Iterable[Mapping[str, Any]], missing: Mapping[str, str]) -> str:
    """Comparisons as a Markdown table, then one line for each benchmark that was not compared."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(shown(row)) + " |" for row in rows]
    lines = lines if len(lines) > 2 else []
    return "\n".join([*lines, *(f"- {name}: not compared: {inert(why)}" for name, why in missing.items())])


def inert(text: str) -> str:
    """Text that no Markdown renderer takes for markup or a table's column."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
