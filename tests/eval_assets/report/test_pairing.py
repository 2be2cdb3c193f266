"""What two evaluations have in common and where they differ."""

import math
import re
from typing import Any

import pytest

from eval_assets.report import pairing, pairs
from eval_assets.report.reading import read_results, read_samples
from resources.catalog import Catalog
from resources.records import Sample
from resources.results import ResultsStore
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
        results = read_results(connection, {})
        baseline, candidate = results.sides(results.comparisons["c", "m@2"])
        assert baseline is not None
        assert candidate is not None
        pairs = pairing.pairs_of(read_samples(connection, baseline), read_samples(connection, candidate))
        metrics, groups = pairing.differences(pairs, candidate)
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
        [pair] = pairs.pairs_of(results := read_results(connection, {}), [])
        sides = [read_samples(connection, one) for one in (pair.baseline, pair.candidate)]
        assert results.comparisons == {}
    found = pairing.compared(pair, sides, 0.02)
    words = sum(len(re.split(r"\s+", "a word " * (i + 1))) for i in range(20))
    assert found.difference == pytest.approx((sum(nats[0]) - sum(nats[1])) / words)
    assert found.ci_low is not None
    assert found.difference is not None
    assert found.ci_low < found.difference
    assert (found.baseline, found.model, found.n) == ("m@0", "m@1", 20)


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
