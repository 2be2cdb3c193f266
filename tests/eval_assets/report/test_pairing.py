"""What two evaluations have in common and where they differ."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval_assets.grid.cells import Cells
from eval_assets.grid.comparing import CellComparison, compare_current
from eval_assets.grid.tracking import tracked
from eval_assets.partitions import SUITE
from eval_assets.report import pairing, pairs
from eval_assets.report.building import build_report, declared_metrics
from eval_assets.report.index_page import leaderboard_table
from eval_assets.report.reading import Comparison, read_results, read_samples
from eval_assets.suite import BenchmarkSpec, MetricSpec
from resources.catalog import Catalog
from resources.records import Sample
from resources.results import ResultsStore
from resources.settings import Settings
from tests.eval_assets.report.stores import choice_sample, commit, compared, text_sample
from tests.eval_assets.report.test_item_pages import row


def rows(*samples: Sample) -> list[dict[str, Any]]:
    return [row(sample) for sample in samples]


def test_the_primary_metrics_difference_is_the_recorded_one(store: ResultsStore) -> None:
    """Two numbers for one thing on one page would leave nobody knowing which to believe."""
    before = [choice_sample(i, i % 2 == 0) for i in range(40)]
    after = [choice_sample(i, i % 2 == 0 or i % 5 == 0) for i in range(40)]
    recorded = compared(store, commit(store, "c", "m@1", before), commit(store, "c", "m@2", after, day=1))
    Catalog(store).refresh()
    with Catalog(store).connect() as connection:
        results = read_results(connection, {}, {})
        baseline, candidate = results.sides(results.comparisons["c", "m@2"])
        assert baseline is not None
        assert candidate is not None
        pairs = pairing.pairs_of(read_samples(connection, baseline), read_samples(connection, candidate))
        metrics, groups = pairing.differences(pairs, candidate, ())
        listed, differing = pairing.listed_pairs(pairs, candidate, results.comparisons["c", "m@2"], 3, 100)
    one = recorded["comparison"]
    [found] = metrics
    assert (found.difference, found.low, found.high) == (one["difference"], one["ci_low"], one["ci_high"])
    assert (found.wins, found.losses) == (len(one["wins"]), len(one["losses"]))
    assert [group.what for group in groups] == ["group 0", "group 1", "group 2"]
    assert sum(group.wins for group in groups) == found.wins
    assert differing == found.wins + found.losses
    assert len(listed.items) == 3
    assert listed.columns["difference"] == [1.0, 1.0, 1.0]


def test_perplexities_are_compared_by_their_logarithm_weighted_by_words(store: ResultsStore) -> None:
    """The mean of texts' perplexities is not the perplexity of all of them: a short odd text would decide."""

    def text(index: int, nats: float) -> Sample:
        words = "a word " * (index + 1)
        score = {"word_perplexity": math.exp(nats / len(words.split(" ")))}
        return Sample(
            f"text{index}", index, None, None, "", references=[words], loglikelihoods=[-nats], scores=score
        )

    nats = [[3.0 + i for i in range(20)], [2.0 + 0.9 * i for i in range(20)]]
    for version, of in enumerate(nats):
        commit(
            store, "texts", f"m@{version}", [text(i, value) for i, value in enumerate(of)], day=version,
            task="perplexity", higher_is_better=False,
        )  # fmt: skip
    Catalog(store).refresh()
    with Catalog(store).connect() as connection:
        [pair] = pairs.pairs_of(results := read_results(connection, {}, {}), [])
        sides = [read_samples(connection, one) for one in (pair.baseline, pair.candidate)]
        assert results.comparisons == {}
    found = pairing.compared(pair, sides, (), 0.02)
    words = sum(len(re.split(r"\s+", "a word " * (i + 1))) for i in range(20))
    assert found.difference == pytest.approx((sum(nats[0]) - sum(nats[1])) / words)
    assert found.ci_low is not None
    assert found.difference is not None
    assert found.ci_low < found.difference
    assert (found.baseline, found.model, found.n) == ("m@0", "m@1", 20)


def prepared(store: ResultsStore, spec: BenchmarkSpec) -> None:
    """Record a benchmark as the asset `benchmark` does, as far as reports and comparisons read it."""
    store.put_json(
        f"benchmarks/{spec.key}/current.json",
        {"spec": spec.model_dump(mode="json", exclude_defaults=True), "fingerprint": f"items of {spec.key}"},
    )


def as_compare_says(store: ResultsStore, candidate: str, baseline: str) -> CellComparison:
    """What `eval-assets compare` tells of two versions on the store's one benchmark."""
    settings = replace(Settings.from_environment(), store=store.root, models=None)
    [found], _ = compare_current(
        Cells(settings, store, tracked(settings)), Catalog(store), candidate, baseline
    )
    return found


def as_the_report_says(
    store: ResultsStore, candidate: str, baseline: str
) -> tuple[Comparison, list[pairing.Difference]]:
    with Catalog(store).connect() as connection:
        results = read_results(connection, {}, declared_metrics(store))
        [pair] = [
            one
            for one in pairs.pairs_of(results, [(candidate, baseline)])
            if (one.candidate.model, one.baseline.model) == (candidate, baseline)
        ]
        rows = [read_samples(connection, one) for one in (pair.baseline, pair.candidate)]
    declared = results.declared.get(pair.dataset, ())
    found = pairing.compared(pair, rows, declared, results.comparisons[pair.dataset, candidate].tolerance)
    return found, pairing.differences(pairing.pairs_of(*rows), pair.candidate, declared)[0]


def assert_same_comparison(store: ResultsStore, candidate: str, baseline: str) -> None:
    one, (found, _) = (
        as_compare_says(store, candidate, baseline),
        as_the_report_says(store, candidate, baseline),
    )
    compared = one.comparison
    assert (found.difference, found.stderr) == (compared.difference, compared.stderr)
    assert (found.ci_low, found.ci_high, found.n) == (compared.ci_low, compared.ci_high, compared.n)
    assert (found.verdict, found.reason) == (one.verdict.name, one.verdict.reason)


@pytest.mark.parametrize("right", [(), (1, 5, 9), range(0, 64, 2)])
def test_a_metric_with_a_name_of_its_own_is_compared_as_compare_does(
    store: ResultsStore, right: Sequence[int]
) -> None:
    """GSM8K's `exact_match_strict` is an `exact_match`, between 0 and 1: without that knowledge 64 items that
    both versions get wrong have no interval, and two versions that `compare` calls equivalent are undecided.
    """
    prepared(store, SUITE["gsm8k"])
    records = []
    for version in range(1, 4):
        samples = [
            text_sample(
                i, "42", 0.0,
                scores={"exact_match_strict": 0.0, "exact_match_flexible": float(i % 4 == version)},
            )
            for i in range(64)
        ]  # fmt: skip
        for i in right if version == 3 else ():
            samples[i].scores["exact_match_strict"] = 1.0
        primary = "exact_match_strict"
        records.append(commit(store, "gsm8k", f"m@{version}", samples, day=version, primary_metric=primary))
    compared(store, records[0], records[2], tolerance=0.1)
    Catalog(store).refresh()
    assert_same_comparison(store, "m@3", "m@2")
    found, metrics = as_the_report_says(store, "m@3", "m@2")
    assert found.ci_low is not None
    assert right or found.verdict == "equivalent"
    assert [one.what for one in metrics] == ["exact_match_strict", "exact_match_flexible"]
    assert (metrics[0].low, metrics[0].high) == (found.ci_low, found.ci_high)
    assert metrics[1].low is not None
    build_report(store)
    for page in ("m@3", "m@3/m@2"):
        [path] = Path(store.root, "reports", "comparisons").rglob(f"*{page}.html")
        assert "exact_match_flexible" in path.read_text()


@pytest.mark.parametrize("name", ["ppl", "word_perplexity"])
def test_a_perplexity_with_a_name_of_its_own_is_compared_in_nats_weighted_by_words(
    store: ResultsStore, name: str
) -> None:
    """By the perplexities of single texts a few short ones would decide, and 0.02 would be no 2 %."""
    metrics = (MetricSpec(metric="word_perplexity", name=name),)
    prepared(store, SUITE["wikitext"].model_copy(update={"metrics": metrics, "primary_metric": name}))
    for version, factor in ((1, 1.2), (2, 1.0), (3, 0.9)):
        samples = []
        for i in range(20):
            text, nats = "a word " * (i + 1), (3.0 + i) * factor
            score = {name: math.exp(nats / len(re.split(r"\s+", text)))}
            samples.append(
                Sample(f"text{i}", i, None, None, "", references=[text], loglikelihoods=[-nats], scores=score)
            )
        about: dict[str, Any] = {"task": "perplexity", "higher_is_better": False}
        commit(store, "wikitext", f"m@{version}", samples, day=version, **about)
    Catalog(store).refresh()
    store.save_comparison("wikitext", "m@3", as_compare_says(store, "m@3", "m@1").as_row())
    Catalog(store).refresh()
    assert_same_comparison(store, "m@3", "m@2")
    found, differences = as_the_report_says(store, "m@3", "m@2")
    words = sum(len(re.split(r"\s+", "a word " * (i + 1))) for i in range(20))
    assert found.difference == pytest.approx(0.1 * sum(3.0 + i for i in range(20)) / words)
    assert differences == []


def test_the_accuracy_of_a_benchmark_of_texts_has_its_difference(store: ResultsStore) -> None:
    """LAMBADA has an accuracy beside its perplexity: only the latter weighs texts by their length."""
    prepared(store, SUITE["lambada"])
    records = []
    for version in (1, 2, 3):
        samples = [
            Sample(
                f"text{i}", i, f"group {i % 2}", None, "a", references=["word"], loglikelihoods=[-1.0],
                scores={"acc": float(i % (version + 1) == 0), "perplexity": math.e},
            )
            for i in range(40)
        ]  # fmt: skip
        records.append(commit(store, "lambada", f"m@{version}", samples, day=version, task="perplexity"))
    compared(store, records[0], records[2])
    Catalog(store).refresh()
    assert_same_comparison(store, "m@3", "m@2")
    found, differences = as_the_report_says(store, "m@3", "m@2")
    assert [(one.what, one.difference) for one in differences] == [("acc", found.difference)]
    with Catalog(store).connect() as connection:
        table = leaderboard_table(read_results(connection, {}, declared_metrics(store)))
    [shown] = [row.cells[0] for row in table.rows if row.model == "m@3"]
    assert shown.difference is not None


def test_a_page_is_made_again_once_the_benchmark_says_what_its_metrics_are(store: ResultsStore) -> None:
    """Results that were imported before their benchmark was prepared would keep a page that lacks metrics."""
    records = [
        commit(
            store, "gsm8k", f"m@{version}",
            [text_sample(i, "4", 0.0, scores={"exact_match_strict": 0.0, "other": 0.0}) for i in range(9)],
            day=version,
        )
        for version in (1, 2)
    ]  # fmt: skip
    compared(store, records[0], records[1])
    Catalog(store).refresh()
    build_report(store)
    assert build_report(store).pages_written == 0
    store.put("benchmarks/gsm8k/current.json", b"[]")  # damaged: as if it weren't there
    assert build_report(store).pages_written == 0
    metrics = (*SUITE["gsm8k"].metrics, MetricSpec(metric="exact_match", name="other"))
    prepared(store, SUITE["gsm8k"].model_copy(update={"metrics": metrics}))
    assert build_report(store).pages_written == 1
    [page] = Path(store.root, "reports", "comparisons").rglob("*.html")
    assert '<th scope="row">other' in page.read_text()


def test_items_are_paired_by_what_they_are_and_not_by_their_place() -> None:
    first = rows(*[choice_sample(i, True) for i in range(4)])
    second = rows(*[choice_sample(i, True) for i in (3, 1, 7)])
    assert [(a["index"], b["index"]) for a, b in pairing.pairs_of(first, second)] == [(3, 3), (1, 1)]


@pytest.mark.parametrize(
    ("before", "after", "differ"),
    [
        (text_sample(0, "a", 0.5), text_sample(0, "a", 0.5), False),
        (text_sample(0, "a", 0.5), text_sample(0, "b", 0.5), True),
        (choice_sample(0, True), choice_sample(0, True), False),
        (choice_sample(0, True), choice_sample(0, True, loglikelihoods=[-5.0, -4.0, -6.0, -7.0]), True),
        (choice_sample(0, True), choice_sample(0, True, error="no logits", loglikelihoods=[]), True),
        (text_sample(0, "a", 0.5), text_sample(0, "", 0.5, prompt=None), False),
    ],
)
def test_an_item_differs_by_output_choice_or_error_not_only_by_score(
    before: Sample, after: Sample, differ: bool
) -> None:
    """The same score for another answer is what people look for first in a regression."""
    [[one], [other]] = rows(before), rows(after)
    assert pairing._answers_differ(one, other) is differ


def test_confidence_and_accuracy_are_those_of_the_likeliest_choice() -> None:
    sure_and_wrong = choice_sample(0, False, loglikelihoods=[-50.0, 0.0, -50.0, -50.0])
    unsure_and_right = choice_sample(1, True, loglikelihoods=[-1.0, -1.1, -1.2, -1.3])
    found = pairing.calibration("m@1", rows(sure_and_wrong, unsure_and_right))
    assert found is not None
    assert found.right == 0.5
    assert [(right, n) for _, right, n in found.points] == [(1.0, 1), (0.0, 1)]
    assert found.points[1][0] == pytest.approx(1.0)
    assert found.confidence == pytest.approx((found.points[0][0] + 1.0) / 2)
    assert pairing.calibration("m@1", rows(text_sample(0, "a", 1.0))) is None


def test_lengths_of_outputs_and_of_taken_choices() -> None:
    outputs = rows(text_sample(0, "a b c", 1.0), text_sample(1, "a", 1.0, finish_reason="length"))
    found = pairing.output_length("m@1", outputs)
    assert found is not None
    assert (found.mean, found.median, found.longest, found.cut) == (2.0, 2.0, 3, 0.5)
    longest = choice_sample(0, False, choices=["a", "much longer", "b", "c"])
    shorter = choice_sample(1, True, choices=["a", "much longer", "b", "c"])
    taken = pairing.choice_length("m@1", rows(longest, shorter))
    assert taken is not None
    assert taken.longest == 0.5
    assert pairing.choice_length("m@1", rows(choice_sample(0, True, choices=["", "", "", ""]))) is None


def test_a_histogram_has_the_same_bins_for_both_sides_and_counts_everything() -> None:
    sides = {
        "a": rows(*[text_sample(i, "w " * i, 1.0) for i in range(1, 60)]),
        "b": rows(text_sample(0, "w " * 100, 1.0)),
    }
    found = pairing.histogram(sides)
    assert sum(one["n"] for one in found if one["side"] == "a") == 59
    assert {one["to"] - one["from"] for one in found} == {5}
    assert [one for one in found if one["side"] == "b"] == [{"side": "b", "from": 100, "to": 105, "n": 1}]
