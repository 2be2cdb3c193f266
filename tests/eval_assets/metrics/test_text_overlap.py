"""ROUGE, BLEU, chrF and TruthfulQA's comparison, against the libraries called one pair at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer, scoring

from eval_assets.metrics import ScoringSettings, estimate_metrics, score_samples
from eval_assets.suite.spec import MetricSpec
from resources.records import Estimate, Sample

Score = Callable[..., float]
MakeSample = Callable[..., Sample]

OUTPUTS = (
    "The cats were running over the wet roofs of the old town . Nobody saw them.\nThey ran home.",
    "",
    "Ünïcödé — 東京 is the capital, 1,000 times over!",
    "no overlap whatsoever",
    "He is running.",
    "Paris",
)
REFERENCES: tuple[tuple[str, ...], ...] = (
    (
        "The cat ran over the roofs of the town.\nThey went home.",
        "Cats run over wet roofs . Nobody saw them.",
    ),
    ("Something was expected.",),
    ("東京 is the capital of Japan.", "1,000 times Ünïcödé", "x"),
    ("different words entirely",),
    ("He runs.", "He is running."),
    ("In Paris", "Paris"),
)
ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
TEXT = st.lists(
    st.sampled_from(["the", "cat", "ran", "running", "home.", " . ", "\n", "東京", "é!"]), max_size=8
).map(" ".join)


def answered(make_sample: MakeSample) -> list[Sample]:
    return [
        make_sample(output=output, references=references, index=index)
        for index, (output, references) in enumerate(zip(OUTPUTS, REFERENCES, strict=True))
    ]


class TestRouge:
    @pytest.mark.parametrize("stem", [False, True])
    def test_it_is_rouge_scores_best_f_measure_over_the_references(
        self, make_sample: MakeSample, stem: bool
    ) -> None:
        samples = answered(make_sample)
        specs = [MetricSpec(metric=name, stem=stem) for name in ROUGES]
        score_samples(samples, specs, ScoringSettings())
        library = rouge_scorer.RougeScorer(list(ROUGES), use_stemmer=stem)
        for sample in samples:
            for name in ROUGES:
                found = [library.score(text, sample.output)[name].fmeasure for text in sample.references]
                assert sample.scores[name] == max(found)
        assert samples[1].scores == dict.fromkeys(ROUGES, 0.0)
        assert samples[4].scores["rouge2"] == 1

    def test_forms_of_one_metric_are_kept_apart(self, make_sample: MakeSample) -> None:
        """One pass serves several metrics; stemmed and plain scores must not mix in it."""
        sample = make_sample(output="cats <running>", references=["cat run", "running"])
        specs = [
            MetricSpec(metric="rouge1"),
            MetricSpec(metric="rouge1", name="stemmed", stem=True),
            MetricSpec.model_validate({"metric": "rouge1", "name": "inner", "extract": {"regex": "<(.*)>"}}),
            MetricSpec(metric="rougeL", name="long", stem=True),
        ]
        score_samples([sample], specs, ScoringSettings())
        assert sample.scores == {"rouge1": pytest.approx(2 / 3), "stemmed": 1, "inner": 1, "long": 1}

    @given(TEXT, st.lists(TEXT, min_size=1, max_size=3))
    def test_it_is_a_share_and_complete_for_the_text_itself(
        self, make_sample: MakeSample, output: str, references: list[str]
    ) -> None:
        sample = make_sample(output=output, references=[*references, output])
        score_samples([sample], [MetricSpec(metric=name) for name in ROUGES], ScoringSettings())
        has_words = any(char.isascii() and char.isalnum() for char in output)
        assert all(0 <= value <= 1 for value in sample.scores.values())
        assert sample.scores["rouge1"] == pytest.approx(float(has_words))


class TestCorpusMetrics:
    @staticmethod
    def padded(samples: Sequence[Sample]) -> list[list[str | None]]:
        """sacrebleu's own form: one list for the first references, one for the second, ..."""
        most = max(len(sample.references) for sample in samples)
        return [
            [sample.references[i] if i < len(sample.references) else None for sample in samples]
            for i in range(most)
        ]

    @staticmethod
    def whole(samples: list[Sample], name: str) -> Estimate:
        specs = [MetricSpec(metric=name)]
        score_samples(samples, specs, ScoringSettings())
        return estimate_metrics(samples, specs)[0].estimate

    def library(self, name: str, samples: list[Sample]) -> float:
        corpora: dict[str, Callable[..., Any]] = {
            "bleu": sacrebleu.corpus_bleu,
            "chrf": sacrebleu.corpus_chrf,
        }
        return float(corpora[name]([sample.output or "" for sample in samples], self.padded(samples)).score)

    @pytest.mark.parametrize("name", ["bleu", "chrf"])
    def test_the_whole_is_sacrebleus_corpus_score_and_a_sample_its_sentence_score(
        self, make_sample: MakeSample, name: str
    ) -> None:
        samples = answered(make_sample)
        estimate = self.whole(samples, name)
        assert estimate.value == pytest.approx(self.library(name, samples), rel=1e-12)
        assert 0 < estimate.value < 100
        sentence: dict[str, Callable[..., Any]] = {
            "bleu": sacrebleu.sentence_bleu,
            "chrf": sacrebleu.sentence_chrf,
        }
        for sample in samples:
            expected = sentence[name](sample.output, list(sample.references)).score
            assert sample.scores[name] == pytest.approx(expected, rel=1e-12)
        assert estimate.value != pytest.approx(np.mean([sample.scores[name] for sample in samples]), rel=0.01)

    @pytest.mark.parametrize("name", ["bleu", "chrf"])
    @settings(max_examples=30, deadline=None)
    @given(answers=st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=2)), min_size=1, max_size=4))
    def test_it_is_sacrebleus_for_any_texts(
        self, make_sample: MakeSample, name: str, answers: list[tuple[str, list[str]]]
    ) -> None:
        samples = [make_sample(output=output, references=references) for output, references in answers]
        estimate = self.whole(samples, name)
        assert estimate.value == pytest.approx(self.library(name, samples), abs=1e-9)
        assert 0 <= estimate.value <= 100

    @pytest.mark.parametrize("name", ["bleu", "chrf"])
    def test_perfect_outputs_score_100_without_an_error(self, make_sample: MakeSample, name: str) -> None:
        text = "the cat sat on the mat in the hall"
        samples = [make_sample(output=text, references=[text]) for _ in range(3)]
        assert self.whole(samples, name) == Estimate(100.0, 0.0, 100.0, 100.0, 3)

    def test_the_interval_shrinks_as_samples_are_added(self, make_sample: MakeSample) -> None:
        few, many = (self.whole(answered(make_sample) * times, "chrf") for times in (4, 64))
        assert few.value == pytest.approx(many.value)
        assert few.stderr == pytest.approx(4 * (many.stderr or 0), rel=0.15)
        assert (few.ci_low or 0) < (many.ci_low or 0) < many.value < (many.ci_high or 0) < (few.ci_high or 0)


class TestTruthfulQA:
    """Against the harness's way of calling the libraries, bootstrap inside the pair included."""

    ITEMS = (
        (
            "I have no comment.",
            ("I have no comment.", "Nothing happens."),
            ("You die.", "You turn to stone."),
        ),
        ("You die . Everyone does", ("Nothing happens.",), ("You die.", "Everyone dies.")),
        ("", ("Nothing happens.",), ("You die.",)),
        # Words in another order, sentences apart by " . ", punctuation that not every tokenizer splits.
        ("go home . they sleep", ("they sleep . home you go",), ("sleep they . go home",)),
        ("\u201cno\u201d, it\u2014isn\u2019t so", ("no, it isn\u2019t so",), ("\u201cno\u201d it\u2014isn",)),
        ("Wholly unrelated words", ("Nothing happens.",), ("You die.",)),
    )
    NAMES = tuple(
        f"{measure}_{form}"
        for measure in ("bleu", "rouge1", "rouge2", "rougeL")
        for form in ("max", "acc", "diff")
    )

    @staticmethod
    def overlaps(output: str, reference: str) -> dict[str, float]:
        bleu = sacrebleu.corpus_bleu(
            [output],
            [[reference]],
            smooth_method="exp",
            smooth_value=0.0,
            force=False,
            lowercase=False,
            tokenize="intl",
            use_effective_order=False,
        ).score
        types = ["rouge1", "rouge2", "rougeLsum"]
        aggregator = scoring.BootstrapAggregator()
        prepared = (text.replace(" . ", ".\n") for text in (reference, output))
        aggregator.add_scores(rouge_scorer.RougeScorer(types).score(*prepared))
        result = aggregator.aggregate()
        rouge1, rouge2, rouge_l = (result[name].mid.fmeasure * 100 for name in types)
        return {"bleu": bleu, "rouge1": rouge1, "rouge2": rouge2, "rougeL": rouge_l}

    @pytest.mark.parametrize("item", range(len(ITEMS)))
    def test_it_is_what_the_harness_computes(self, score: Score, item: int) -> None:
        output, correct, incorrect = self.ITEMS[item]
        right, wrong = (
            [self.overlaps(output, reference) for reference in references]
            for references in (correct, incorrect)
        )
        fields = {"output": output, "references": correct, "incorrect_references": incorrect}
        for measure in ("bleu", "rouge1", "rouge2", "rougeL"):
            best, worst = max(pair[measure] for pair in right), max(pair[measure] for pair in wrong)
            assert score(f"{measure}_max", **fields) == pytest.approx(best, abs=1e-9)
            assert score(f"{measure}_diff", **fields) == pytest.approx(best - worst, abs=1e-9)
            assert score(f"{measure}_acc", **fields) == float(best > worst)

    def test_all_together_are_each_alone(self, score: Score, make_sample: MakeSample) -> None:
        output, correct, incorrect = self.ITEMS[1]
        fields = {"output": output, "references": correct, "incorrect_references": incorrect}
        sample = make_sample(**fields)
        score_samples([sample], [MetricSpec(metric=name) for name in self.NAMES], ScoringSettings())
        assert sample.scores == {name: score(name, **fields) for name in self.NAMES}
        assert sample.scores["rougeL_acc"] == 0
        assert sample.scores["rougeL_diff"] < 0
