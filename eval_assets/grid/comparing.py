"""Two versions on one benchmark, as the store has them: the comparison of their samples, and its verdict."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from eval_assets import markdown
from eval_assets.grid.cells import Cells
from eval_assets.grid.prepared import stored_record
from eval_assets.grid.tracking import DEFAULT_TOLERANCE
from eval_assets.metrics import comparable
from eval_assets.statistics.sequential import verdict_at
from eval_assets.statistics.verdicts import Comparison, Scores, Verdict, compare
from eval_assets.suite.spec import BenchmarkSpec
from resources.catalog import Catalog
from resources.errors import TransientError, UserError
from resources.keys import ModelKey
from resources.records import EvaluationRecord
from resources.registries import ModelVersion


@dataclass(frozen=True, slots=True)
class CellComparison:
    """A candidate's cell against the baseline's: records of both evaluations, the comparison, its verdict."""

    dataset: str
    candidate: EvaluationRecord
    baseline: EvaluationRecord
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


def evaluation_ids(cells: Cells, candidate: str, baseline: str, dataset: str) -> list[str | None]:
    """The evaluations of both that `compare_cells` would compare now; None where there is none."""
    found: list[str | None] = []
    for key, against in ((candidate, baseline), (baseline, None)):
        try:
            found.append(_evaluation(cells, key, dataset, against)["evaluation_id"])
        except TransientError:
            raise
        except UserError:
            found.append(None)
    return found


def come_since(cells: Cells, verdict: Mapping[str, Any], datasets: Collection[str]) -> str | None:
    """One of the `datasets` that a stored verdict could not compare and that may be comparable by now.

    That is so once both its version and what that was compared with have an evaluation, and not the two that
    could not be compared then: so it is asked at most once for each new evaluation, and not because another
    version has become the baseline. A verdict of a time when they were not written down had none.
    """
    for dataset in verdict["missing"]:
        if dataset in datasets:
            ids = evaluation_ids(cells, verdict["model"], verdict["baseline"] or verdict["model"], dataset)
            if None not in ids and ids != verdict.get("lacking", {}).get(dataset):
                return str(dataset)
    return None


def compare_current(
    cells: Cells,
    catalog: Catalog,
    candidate: str,
    baseline: str,
    benchmarks: Sequence[str] = (),
    tolerance: float | None = None,
) -> tuple[list[CellComparison], dict[str, str]]:
    """Compare two versions by what the leaderboard shows of them, over the items that both were asked.

    So it holds whatever limit they were evaluated under. `benchmarks` are keys or patterns, none for all. The
    `tolerance` is by default that of EVAL_MODELS; without that file the one that the candidate was judged
    with. Returns the comparisons and, by benchmark, why one is missing; what neither has is left out, unless
    it is named. Raises UserError for a version without any evaluation.
    """
    found, judged_with = _current(catalog, (candidate, baseline))
    if tolerance is not None or cells.settings.models is not None:
        judged_with = {}
    compared: list[CellComparison] = []
    missing = {name: "neither was evaluated on it" for name in benchmarks if not set(name) & set("*?[")}
    for dataset in found:
        if benchmarks and not any(fnmatchcase(dataset, pattern) for pattern in benchmarks):
            continue
        missing.pop(dataset, None)
        try:
            sides = [_own(found[dataset].get(key), key) for key in (candidate, baseline)]
            spec = BenchmarkSpec.model_validate(stored_record(dataset, cells.store)["spec"])
            accepted = judged_with.get(dataset, tolerance)
            compared.append(compare_records(cells, sides[0], sides[1], spec, accepted))
        except TransientError:
            raise
        except UserError as error:
            missing[dataset] = str(error)
    if not compared:
        reasons = "; ".join(f"{dataset}: {why}" for dataset, why in missing.items())
        raise UserError(f"nothing to compare: {reasons or 'no benchmark matches ' + ', '.join(benchmarks)}")
    return compared, missing


def _current(
    catalog: Catalog, models: tuple[str, str]
) -> tuple[dict[str, dict[str, EvaluationRecord]], dict[str, float]]:
    """Dataset -> model -> the record of its current evaluation; and what the first was judged with."""
    found: dict[str, dict[str, EvaluationRecord]] = {}
    with catalog.connect() as connection:
        for dataset, model, record in connection.execute(
            "SELECT dataset, model, record FROM current_evaluations WHERE model IN (?, ?) ORDER BY 1", models
        ).fetchall():
            found.setdefault(dataset, {})[model] = json.loads(record)
        judged_with = connection.execute(
            "SELECT dataset, tolerance FROM comparisons WHERE model = ?", models[:1]
        ).fetchall()
    for key in models:
        if not any(key in of_one for of_one in found.values()):
            raise UserError(
                f"{key} has no evaluation: 'leaderboard' lists what there is, 'evaluate' makes one"
            )
    return found, dict(judged_with)


def _own(record: EvaluationRecord | None, key: str) -> EvaluationRecord:
    if record is None:
        raise UserError(f"{key} was not evaluated on it")
    if record.get("origin"):
        raise UserError(f"{key} has results of {record['origin']} only: evaluate it here, too")
    return record


def compare_records(
    cells: Cells,
    candidate: EvaluationRecord,
    baseline: EvaluationRecord,
    spec: BenchmarkSpec,
    tolerance: float | None = None,
) -> CellComparison:
    """Compare two committed evaluations of one benchmark, by default with the tolerance of EVAL_MODELS.

    Raises UserError where they are not comparable.
    """
    for name, what in (
        ("benchmark_fingerprint", "the benchmark's items or settings"),
        ("primary_metric", "the benchmark's primary metric"),
        ("scoring_version", "what scores it"),
    ):
        if candidate.get(name) != baseline.get(name):
            raise UserError(
                f"{candidate['model']} and {baseline['model']} on {candidate['dataset']} are not comparable: "
                f"{what} changed between the two evaluations; evaluate the older one again"
            )
    if candidate["primary_metric"] != spec.primary_metric:
        raise UserError(
            f"{candidate['dataset']}: its primary metric was {candidate['primary_metric']} when "
            f"{candidate['model']} and {baseline['model']} were evaluated and is {spec.primary_metric} now; "
            "evaluate both again"
        )
    found = [
        comparable(cells.store.samples(record), spec.primary_metric, spec.metrics, spec.task)
        for record in (baseline, candidate)
    ]
    if tolerance is None:
        entry = cells.tracking.entry(ModelKey.parse(candidate["model"]).name)
        tolerance = DEFAULT_TOLERANCE if entry is None else entry.tolerance_of(candidate["dataset"])
    return _judged([baseline, candidate], [scores for scores, _ in found], found[0][1], tolerance)


def _judged(
    records: Sequence[EvaluationRecord],
    scores: Sequence[Scores],
    bounds: tuple[float, float],
    tolerance: float,
) -> CellComparison:
    baseline, candidate = records
    dataset = candidate["dataset"]
    for record in records:
        if record["status"] != "valid":
            raise UserError(
                f"{record['model']} on {dataset} is not valid: {record['samples_with_error']} samples have "
                "an error; see the cell's checks"
            )
    try:
        comparison = compare(
            scores[0], scores[1], higher_is_better=candidate["higher_is_better"], bounds=bounds
        )
        found = verdict_at(comparison, tolerance, candidate.get("stage"))
    except ValueError as error:
        raise UserError(f"{candidate['model']} on {dataset} against {baseline['model']}: {error}") from None
    return CellComparison(dataset, candidate, baseline, comparison, found)


def _evaluation(cells: Cells, key: str, dataset: str, baseline: str | None) -> EvaluationRecord:
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


def as_markdown(rows: Sequence[Mapping[str, Any]], missing: Mapping[str, str]) -> str:
    """Comparisons as a table, then one line for each benchmark that was not compared."""
    compared = [markdown.table(COLUMNS, map(shown, rows))] if rows else []
    return "\n".join(
        compared + [f"- {markdown.inert(f'{name}: not compared: {why}')}" for name, why in missing.items()]
    )
