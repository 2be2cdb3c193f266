"""What two evaluations of one benchmark have in common and where they differ, beyond the recorded verdict."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval_assets.metrics import comparable, metric_named, weighs_texts
from eval_assets.metrics.metric import argmax, likeliest, softmax
from eval_assets.report.items import Listed, answered, asked, flags_of, rounded
from eval_assets.report.pairs import Pair
from eval_assets.report.reading import Comparison, Evaluation
from eval_assets.report.text import visible
from eval_assets.statistics import verdicts
from eval_assets.statistics.sequential import verdict_at
from eval_assets.suite.spec import MetricSpec
from resources import records

Sample = Mapping[str, Any]
BINS = 10
LEAST = 10
"""Items that a group needs for an interval of its own."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference, positive where the candidate is better, with its 95 % interval."""

    what: str
    n: int
    baseline: float
    candidate: float
    difference: float
    low: float | None
    high: float | None
    wins: int
    losses: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of one version: what it is sure of, how often that is right, and both by confidence."""

    side: str
    confidence: float
    right: float
    points: Sequence[tuple[float, float, int]]


@dataclass(frozen=True, slots=True)
class Length:
    """Of one version: how many tokens its outputs have, and the share that ended at the limit.

    Of choices: how often it takes the longest one.
    """

    side: str
    mean: float
    median: float | None
    longest: float
    cut: float | None


def compared(
    pair: Pair, rows: Sequence[Sequence[Sample]], declared: Sequence[MetricSpec], tolerance: float | None
) -> Comparison:
    """How the two compare, by the statistics of recorded comparisons; `rows` are baseline's and candidate's.

    `declared` are the benchmark's metrics. Without a tolerance the verdict is 'better', 'worse' or
    'undecided'. Raises ValueError where they can't be compared.
    """
    one = pair.candidate
    samples = [[_sample(row) for row in side] for side in rows]
    found = _compare(one.primary_metric, samples, one.task, declared, one.higher_is_better)
    judged = verdict_at(found, tolerance or 0.0, one.of_record("stage"))
    return Comparison(
        pair.dataset, one.model, pair.baseline.model, one.primary_metric, judged.name, found.difference,
        found.stderr, found.unpaired_stderr, found.ci_low, found.ci_high, tolerance, found.detectable,
        found.n, found.wins, found.losses, found.ties, found.method, judged.reason, one.evaluation_id,
        pair.baseline.evaluation_id,
    )  # fmt: skip


def _sample(row: Sample) -> records.Sample:
    """What of a sample it is compared by."""
    fields = ("sample_id", "index", "group", "cluster", "prompt", "references", "loglikelihoods", "scores")
    return records.Sample(**{name: row[name] for name in fields})


def _compare(
    metric: str,
    sides: Sequence[Sequence[records.Sample]],
    task: str | None,
    declared: Sequence[MetricSpec],
    higher_is_better: bool,
) -> verdicts.Comparison:
    """The candidate's samples, which come second, against the baseline's on one metric."""
    (baseline, bounds), (candidate, _) = (comparable(side, metric, declared, task) for side in sides)
    return verdicts.compare(baseline, candidate, higher_is_better=higher_is_better, bounds=bounds)


def pairs_of(baseline: Sequence[Sample], candidate: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """The items that both have, in the candidate's order."""
    first = {row["sample_id"]: row for row in baseline}
    return [(first[row["sample_id"]], row) for row in candidate if row["sample_id"] in first]


def differences(
    pairs: Sequence[tuple[Sample, Sample]], cell: Evaluation, declared: Sequence[MetricSpec]
) -> tuple[list[Difference], list[Difference]]:
    """Paired differences of each metric, the primary one first, and of the primary metric in each group.

    `declared` are the benchmark's metrics. Those that say nothing of better or worse are left out, and so are
    those that weigh texts by their length (perplexities): their difference isn't one of the values beside it.
    """
    samples = [(_sample(before), _sample(after)) for before, after in pairs]
    primary, higher_is_better = cell.primary_metric, cell.higher_is_better
    shown = {}
    names = {name for _, after in samples for name in after.scores}
    for name in sorted(names, key=lambda name: (name != primary, name)):
        metric, _ = metric_named(name, declared)
        higher = None if metric is None else metric.higher_is_better
        if name == primary:
            higher = higher_is_better
        if higher is not None and not weighs_texts(name, declared, cell.task):
            shown[name] = higher
    groups: dict[str, list[tuple[records.Sample, records.Sample]]] = {}
    for pair in samples if primary in shown else ():
        if pair[1].group is not None:
            groups.setdefault(pair[1].group, []).append(pair)
    metrics = [
        _difference(name, name, samples, cell.task, declared, higher) for name, higher in shown.items()
    ]
    by_group = [
        _difference(group, primary, of, cell.task, declared, higher_is_better, least=LEAST)
        for group, of in sorted(groups.items())
        if len(groups) > 1
    ]
    return [one for one in metrics if one], [one for one in by_group if one]


def _difference(
    what: str,
    metric: str,
    pairs: Sequence[tuple[records.Sample, records.Sample]],
    task: str | None,
    declared: Sequence[MetricSpec],
    higher: bool,
    *,
    least: int = 0,
) -> Difference | None:
    """A metric's difference, without an interval under `least` items; None where an item has no score."""
    if len(pairs) < least:
        return _bare_difference(what, metric, pairs, higher)
    try:
        found = _compare(metric, list(zip(*pairs, strict=True)), task, declared, higher)
    except ValueError:
        return None
    return Difference(
        what, found.n, found.baseline, found.candidate, found.difference, found.ci_low, found.ci_high,
        len(found.wins), len(found.losses),
    )  # fmt: skip


def _bare_difference(
    what: str, metric: str, pairs: Sequence[tuple[records.Sample, records.Sample]], higher: bool
) -> Difference | None:
    if any(metric not in sample.scores for pair in pairs for sample in pair):
        return None
    scores = [[sample.scores[metric] for sample in pair] for pair in pairs]
    changes = [(new - old) * (1 if higher else -1) for old, new in scores]
    before, after = (statistics.fmean(of) for of in zip(*scores, strict=True))
    wins, losses = sum(one > 0 for one in changes), sum(one < 0 for one in changes)
    change = statistics.fmean(changes)
    return Difference(what, len(pairs), before, after, change, None, None, wins, losses)


def calibration(side: str, rows: Sequence[Sample]) -> Calibration | None:
    """How far a version's probabilities of the choices can be believed; None without choices."""
    found = [
        (max(probabilities), float(argmax(probabilities) == row["target"]))
        for row in rows
        if row["target"] is not None and len(row["loglikelihoods"] or ()) > 1
        for probabilities in [softmax(row["loglikelihoods"])]
    ]
    if not found:
        return None
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for confidence, right in found:
        bins[min(int(confidence * BINS), BINS - 1)].append((confidence, right))
    return Calibration(
        side,
        statistics.fmean(confidence for confidence, _ in found),
        statistics.fmean(right for _, right in found),
        [
            (statistics.fmean(c for c, _ in of), statistics.fmean(r for _, r in of), len(of))
            for of in bins
            if of
        ],
    )


def output_length(side: str, rows: Sequence[Sample]) -> Length | None:
    """How much a version writes; None where it doesn't."""
    tokens = [row["output_tokens"] or 0 for row in rows if row["output"] is not None]
    if not tokens:
        return None
    cut = sum(row["finish_reason"] == "length" for row in rows if row["output"] is not None) / len(tokens)
    return Length(side, statistics.fmean(tokens), statistics.median(tokens), max(tokens), cut)


def choice_length(side: str, rows: Sequence[Sample]) -> Length | None:
    """How often a version takes the longest choice, and how long those are that it takes, in characters."""
    taken = [
        (len(row["choices"][chosen]), len(row["choices"][chosen]) == max(map(len, row["choices"])))
        for row in rows
        if (chosen := choice_of(row)) is not None and any(row["choices"])
    ]
    if not taken:
        return None
    return Length(
        side,
        statistics.fmean(length for length, _ in taken),
        None,
        statistics.fmean(long for _, long in taken),
        None,
    )


def choice_of(row: Sample) -> int | None:
    """The likeliest choice; None where there are none."""
    return likeliest(row["choices"] or (), row["loglikelihoods"] or ())


def histogram(sides: Mapping[str, Sequence[Sample]], bins: int = 24) -> list[dict[str, Any]]:
    """How many outputs of each side are how long, over bins of the same width for both."""
    tokens = {
        side: [row["output_tokens"] or 0 for row in rows if row["output"] is not None]
        for side, rows in sides.items()
    }
    most = max((max(of) for of in tokens.values() if of), default=0)
    width = max(-(-(most + 1) // bins), 1)
    found = []
    for side, of in tokens.items():
        counts = [0] * (most // width + 1)
        for one in of:
            counts[one // width] += 1
        found += [
            {"side": side, "from": at * width, "to": (at + 1) * width, "n": n}
            for at, n in enumerate(counts)
            if n
        ]
    return found


def listed_pairs(
    pairs: Sequence[tuple[Sample, Sample]],
    cell: Evaluation,
    comparison: Comparison,
    limit: int,
    text_limit: int,
) -> tuple[Listed, int]:
    """The items whose score, output or choice is not the same, the largest difference first; and how many.

    At most `limit` of them are listed.
    """
    sign = 1 if cell.higher_is_better else -1
    metric = cell.primary_metric

    def difference(pair: tuple[Sample, Sample]) -> float:
        before, after = (row["scores"].get(metric) for row in pair)
        return 0.0 if before is None or after is None else sign * (after - before)

    differing = [pair for pair in pairs if difference(pair) != 0 or _answers_differ(*pair)]
    differing.sort(key=lambda pair: (-abs(difference(pair)), pair[1]["index"]))
    shown = differing[:limit]
    groups = sorted({pair[1]["group"] for pair in shown if pair[1]["group"] is not None})
    columns: dict[str, list[Any]] = {
        "id": [visible(pair[1]["sample_id"]) for pair in shown],
        "index": [pair[1]["index"] for pair in shown],
        "group": [None if pair[1]["group"] is None else groups.index(pair[1]["group"]) for pair in shown],
        "flags": [flags_of(pair[0]) | flags_of(pair[1]) for pair in shown],
        "difference": [rounded(difference(pair)) for pair in shown],
    }
    items = [
        {**asked(pair[1], text_limit), "sides": [answered(row, text_limit) for row in pair]} for pair in shown
    ]
    about = {
        "metrics": [visible(metric)],
        "groups": [visible(group) for group in groups],
        "sides": [visible(comparison.baseline), visible(comparison.model)],
    }
    return Listed(columns, items, about), len(differing)


def _answers_differ(before: Sample, after: Sample) -> bool:
    """Whether the two wrote or chose something else; texts that were removed are not compared."""
    if (before["error"] is None) != (after["error"] is None) or choice_of(before) != choice_of(after):
        return True
    texts = [[row["output"], *(one["text"] for one in row["outputs"] or ())] for row in (before, after)]
    return None not in (texts[0][0], texts[1][0]) and texts[0] != texts[1]
