"""Items with several outputs: metrics are means over them, pass@k is made of them, errors are over items."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import statsmodels.api as sm

from eval_assets.metrics import METRICS, ScoringSettings, answers_of, estimate_metrics, score_samples
from eval_assets.statistics import mean_estimate
from eval_assets.suite.spec import MetricSpec
from resources.records import Estimate, Output, Sample

MakeSample = Callable[..., Sample]
OUTPUTS = (
    ["the cat sat on the mat", "", "a dog"],
    ["#### 7", "The cat sat, on a mat.", "The answer is 7."],
    [" \n", "unanswerable", "the mat"],
)
STRICT = {"metric": "exact_match", "name": "strict", "extract": {"regex": r"#### (\d+)"}}
FLEXIBLE = {"metric": "exact_match", "name": "flexible", "extract": {"regex": r"(\d+)", "pick": "last"}}


def specs(*metrics: str | Mapping[str, Any]) -> list[MetricSpec]:
    return [MetricSpec.model_validate(metric) for metric in metrics]


def estimates(samples: Sequence[Sample], *metrics: str | Mapping[str, Any]) -> dict[str, Estimate]:
    """Score and estimate; the estimates of the whole by name."""
    score_samples(samples, specs(*metrics), ScoringSettings())
    rows = estimate_metrics(samples, specs(*metrics))
    return {row.metric: row.estimate for row in rows if row.group is None}


@pytest.fixture
def make_outputs(make_sample: MakeSample) -> Callable[..., list[Sample]]:
    """Samples with the given outputs each."""

    def make(texts: Sequence[Sequence[str]], **fields: Any) -> list[Sample]:
        return [
            make_sample(
                sample_id=str(index),
                index=index,
                output=of_item[0],
                outputs=tuple(Output(text, "stop", len(text.split())) for text in of_item),
                output_tokens=sum(len(text.split()) for text in of_item),
                **{name: value[index] for name, value in fields.items()},
            )
            for index, of_item in enumerate(texts)
        ]

    return make


def judged(make: Callable[..., list[Sample]], right: Sequence[Sequence[bool]], **fields: Any) -> list[Sample]:
    """Samples whose outputs are right or wrong as given."""
    texts = [["yes" if answer else "no" for answer in of_item] for of_item in right]
    return make(texts, references=[["yes"]] * len(texts), **fields)


def test_an_items_score_is_the_mean_over_its_outputs_for_every_metric_of_generated_text(
    make_outputs: Callable[..., list[Sample]], bertscore_model: Path
) -> None:
    """Each output scored alone, as the only one of an item, is the independent computation."""
    names = [n for n, m in METRICS.items() if "generation" in m.tasks and n != "pass@k"]
    metrics = specs(*names, STRICT, FLEXIBLE)
    settings = ScoringSettings(str(bertscore_model), 2, "cpu")
    references = [["the cat sat on the mat", "a cat"], ["7", "#### 7"], [""]]
    fields = {"references": references, "incorrect_references": [["a dog"]] * 3}
    samples = make_outputs(OUTPUTS, **fields)
    score_samples(samples, metrics, settings)
    for sample in samples:
        alone = answers_of(sample)
        assert [answer.output for answer in alone] == [output.text for output in sample.outputs]
        score_samples(alone, metrics, settings)
        for output, answer in zip(sample.outputs, alone, strict=True):
            assert output.scores == pytest.approx(answer.scores, abs=1e-5)
        for name in (*names, "strict", "flexible"):
            expected = np.mean([answer.scores[name] for answer in alone])
            assert sample.scores[name] == pytest.approx(expected, abs=1e-5), name
    assert samples[0].scores["output_length"] == pytest.approx((6 + 0 + 2) / 3)
    assert samples[0].scores["empty_output"] == samples[2].scores["empty_output"] == pytest.approx(1 / 3)
    assert (samples[1].scores["strict"], samples[1].scores["flexible"]) == (1 / 3, 2 / 3)


def test_corpus_metrics_are_those_of_all_outputs(make_outputs: Callable[..., list[Sample]]) -> None:
    references = [["the cat sat on the mat"], ["The cat sat on a mat."], ["the mat"]]
    samples = make_outputs(OUTPUTS, references=references)
    found = estimates(samples, "bleu", "chrf")
    flat = [text for of_item in OUTPUTS for text in of_item]
    repeated = [[reference[0] for reference in references for _ in range(3)]]
    assert found["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(flat, repeated, force=True).score)
    assert found["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(flat, repeated).score)
    assert found["bleu"].n == 3


def test_pass_at_k_is_made_of_the_outputs_that_its_metric_calls_right(
    make_outputs: Callable[..., list[Sample]],
) -> None:
    """Brute force over all pairs of outputs; each `of` has an extraction of its own."""
    texts = [["#### 7", "so 7", "8", "#### 9"], ["1", "2", "3", "7"], ["0", "0", "0", "0"]]
    samples = make_outputs(texts, references=[["7"]] * 3)
    pairs = [{"metric": "pass@k", "k": 2, "of": of, "name": of[0]} for of in ("strict", "flexible")]
    found = estimates(samples, STRICT, FLEXIBLE, *pairs)
    for name, right in (
        ("s", [[True, False, False, False], [False] * 4, [False] * 4]),
        ("f", [[True, True, False, False], [False, False, False, True], [False] * 4]),
    ):
        expected = [np.mean([any(pair) for pair in combinations(of_item, 2)]) for of_item in right]
        assert [sample.scores[name] for sample in samples] == pytest.approx(expected)
        assert found[name].value == pytest.approx(np.mean(expected))
        assert found[name].stderr == pytest.approx(np.std(expected, ddof=1) / np.sqrt(3))


def test_pass_at_1_is_the_mean_over_outputs_with_the_same_error_and_interval(
    make_outputs: Callable[..., list[Sample]],
) -> None:
    right = np.random.default_rng(3).random((30, 8)) < 0.4
    found = estimates(
        judged(make_outputs, right.tolist()), "exact_match", {"metric": "pass@k", "k": 1, "of": "exact_match"}
    )
    mean, first = found["exact_match"], found["pass@1"]
    for field in ("value", "stderr", "ci_low", "ci_high"):
        assert getattr(first, field) == pytest.approx(getattr(mean, field)), field


def test_pass_at_1_of_a_greedy_benchmark_is_its_accuracy(make_sample: MakeSample) -> None:
    samples = [
        make_sample(index=i, output="yes", references=[answer]) for i, answer in enumerate(["yes", "no"])
    ]
    found = estimates(samples, "exact_match", {"metric": "pass@k", "k": 1, "of": "exact_match"})
    assert [sample.scores["pass@1"] for sample in samples] == [1.0, 0.0]
    assert found["pass@1"] == found["exact_match"]


def test_errors_are_over_items_or_their_clusters(make_outputs: Callable[..., list[Sample]]) -> None:
    """Ten outputs of one item are not ten items: their error bar would be three times too short."""
    generator = np.random.default_rng(5)
    right = generator.random((40, 10)) < generator.random((40, 1))
    passages = [f"p{index // 4}" for index in range(40)]
    for clusters in ([None] * 40, passages):
        samples = judged(make_outputs, right.tolist(), cluster=clusters)
        found = estimates(samples, "exact_match", "squad_f1")
        groups = np.repeat(
            np.unique([c or str(i) for i, c in enumerate(clusters)], return_inverse=True)[1], 10
        )
        fit = sm.OLS(right.ravel().astype(float), np.ones(400)).fit(
            cov_type="cluster", cov_kwds={"groups": groups}, use_t=True
        )
        for estimate in found.values():
            assert estimate.value == pytest.approx(right.mean())
            assert estimate.stderr == pytest.approx(float(fit.bse[0]), rel=1e-9)
            assert estimate.n == 40
        assert found["squad_f1"].ci_low == pytest.approx(fit.conf_int(0.05)[0][0], rel=1e-9)


def test_each_group_says_how_much_of_its_variance_comes_from_drawing_outputs(
    make_outputs: Callable[..., list[Sample]],
) -> None:
    """Who sees 0 there needs more items and no more outputs."""
    right = [[True, True], [False, False], [True, False], [False, True], [True, True]]
    samples = judged(make_outputs, right, group=["sure", "sure", "torn", "torn", "torn"])
    metrics = specs("exact_match", "chrf", {"metric": "pass@k", "k": 2, "of": "exact_match"})
    score_samples(samples, metrics, ScoringSettings())
    shares = {
        (row.metric, row.group): row.estimate.sampling_share for row in estimate_metrics(samples, metrics)
    }
    assert shares["exact_match", "sure"] == 0.0
    assert shares["exact_match", "torn"] == 1.0
    # Within items 1/2 for two of five, halved; the items' means 1, 0, 1/2, 1/2, 1 have variance 0.175.
    assert shares["exact_match", None] == pytest.approx(0.1 / 0.175)
    assert shares["chrf", None] is None
    assert shares["pass@2", None] is None


def test_with_one_output_nothing_is_said_about_drawing(make_sample: MakeSample) -> None:
    samples = [
        make_sample(index=i, output="yes", references=[answer]) for i, answer in enumerate(["yes", "no"])
    ]
    found = estimates(samples, "exact_match")["exact_match"]
    assert found == mean_estimate([1, 0], None, proportion=True)
    assert found.sampling_share is None


def test_scoring_again_and_in_another_order_changes_nothing(
    make_outputs: Callable[..., list[Sample]],
) -> None:
    """A resumed evaluation reads samples back from disk, in another order."""
    metrics = specs("exact_match", "chrf", {"metric": "pass@k", "k": 2, "of": "exact_match"})
    samples = judged(make_outputs, [[True, False, True], [False, False, True], [True, True, True]])
    score_samples(samples, metrics, ScoringSettings())
    before, rows = [sample.as_row() for sample in samples], estimate_metrics(samples, metrics)
    score_samples(samples, metrics, ScoringSettings())
    assert [sample.as_row() for sample in samples] == before
    back = [Sample.from_row(row) for row in reversed(before)]
    assert estimate_metrics(back, metrics) == rows


def test_a_sample_with_an_error_has_no_scores_of_its_outputs_either(
    make_outputs: Callable[..., list[Sample]],
) -> None:
    [sample] = judged(make_outputs, [[True, False]])
    score_samples([sample], specs("exact_match"), ScoringSettings())
    broken = replace(sample, error="NaN")
    score_samples([broken], specs("exact_match"), ScoringSettings())
    assert broken.scores == {}
    assert [output.scores for output in broken.outputs] == [{}, {}]
