"""Exact match, SQuAD's two scores, extraction, and plain facts about outputs."""

import re
import string
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_assets.metrics.answers import extracted
from eval_assets.suite.spec import MetricSpec
from resources.records import Sample

Score = Callable[..., float]
MakeSample = Callable[..., Sample]
ANSWER = st.lists(
    st.sampled_from(
        [
            "the",
            "A",
            "an",
            "Eiffel",
            "tower",
            "Tower!",
            "1,000",
            "don't",
            "one\u2013the\u2013two",
            "\n",
            "unanswerable",
        ]
    ),
    max_size=6,
).map(" ".join)


def official_squad(prediction: str, golds: list[str]) -> tuple[float, float]:
    """Exact match and F1 as the official SQuAD v2.0 evaluation script computes them, rewritten."""

    def normalize(text: str) -> str:
        kept = "".join(char for char in text.lower() if char not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())

    def f1(gold: str) -> float:
        gold_tokens, tokens = normalize(gold).split(), normalize(prediction).split()
        if len(gold_tokens) == 0 or len(tokens) == 0:
            return int(gold_tokens == tokens)
        same = sum((Counter(gold_tokens) & Counter(tokens)).values())
        if same == 0:
            return 0
        precision, recall = same / len(tokens), same / len(gold_tokens)
        return 2 * precision * recall / (precision + recall)

    answers = [gold for gold in golds if normalize(gold)] or [""]
    exact = max(int(normalize(gold) == normalize(prediction)) for gold in answers)
    return exact, max(f1(gold) for gold in answers)


class TestSquad:
    @given(ANSWER, st.lists(ANSWER, min_size=1, max_size=3))
    def test_scores_are_those_of_the_official_script(
        self, score: Score, output: str, golds: list[str]
    ) -> None:
        exact, f1 = official_squad(output, golds)
        if not any(official_squad("", [gold])[0] == 0 for gold in golds):
            exact, f1 = self.with_our_word_for_no_answer(output, exact, f1)
        assert score("squad_exact_match", output=output, references=golds) == exact
        assert score("squad_f1", output=output, references=golds) == pytest.approx(f1)

    @staticmethod
    def with_our_word_for_no_answer(output: str, exact: float, f1: float) -> tuple[float, float]:
        said_so = official_squad(output, ["unanswerable"])[0] == 1
        return (1.0, 1.0) if said_so else (exact, f1)

    @pytest.mark.parametrize("references", [[], [""], ["the"]])
    @pytest.mark.parametrize(
        ("output", "right"),
        [
            ("", 1),
            (" ", 1),
            ("unanswerable", 1),
            (" Unanswerable.", 1),
            ("Paris", 0),
            ("unanswerable Paris", 0),
        ],
    )
    def test_without_a_reference_only_silence_and_unanswerable_are_right(
        self, score: Score, references: list[str], output: str, right: float
    ) -> None:
        assert score("squad_exact_match", output=output, references=references) == right
        assert score("squad_f1", output=output, references=references) == right

    def test_refusing_a_question_that_has_an_answer_is_wrong(self, score: Score) -> None:
        for output in ("", "unanswerable"):
            assert score("squad_exact_match", output=output, references=["Paris"]) == 0
            assert score("squad_f1", output=output, references=["Paris"]) == 0

    def test_the_word_unanswerable_can_be_an_answer(self, score: Score) -> None:
        assert score("squad_exact_match", output="unanswerable", references=["Unanswerable!"]) == 1
        assert score("squad_f1", output="unanswerable", references=["Unanswerable!"]) == 1

    @pytest.mark.parametrize("dash", ["\u2013", "\u2014"])
    def test_an_article_between_dashes_leaves_two_words(self, score: Score, dash: str) -> None:
        """Dashes are no ASCII punctuation: the official script keeps them, and a space for the article."""
        output = f"one{dash}the{dash}two"
        assert score("squad_f1", output=output, references=[f"one{dash}"]) == pytest.approx(2 / 3)

    def test_the_best_reference_counts(self, score: Score) -> None:
        references = ["Denver Broncos", "The Broncos", "Carolina"]
        assert score("squad_exact_match", output=" the broncos.", references=references) == 1
        assert score("squad_f1", output="broncos of Denver", references=references) == pytest.approx(0.8)


def evaluate_exact_match(
    output: str, reference: str, patterns: list[str], case: bool, punctuation: bool
) -> bool:
    """exact_match of the `evaluate` library, rewritten."""
    texts = [output, reference]
    for pattern in patterns:
        texts = [re.sub(pattern, "", text) for text in texts]
    if case:
        texts = [text.lower() for text in texts]
    if punctuation:
        texts = ["".join(char for char in text if char not in string.punctuation) for text in texts]
    return texts[0] == texts[1]


class TestExactMatch:
    @given(
        st.text("aA.,$ #é4", max_size=8).map(str.strip),
        st.text("aA.,$ #é4", max_size=8).map(str.strip),
        st.lists(st.sampled_from([",", r"\$", r"(?s).*#", r"\.$"]), max_size=3),
        st.booleans(),
        st.booleans(),
    )
    def test_it_is_the_harness_exact_match(
        self, score: Score, output: str, reference: str, patterns: list[str], case: bool, punctuation: bool
    ) -> None:
        metric = {
            "metric": "exact_match",
            "ignore_patterns": patterns,
            "ignore_case": case,
            "ignore_punctuation": punctuation,
        }
        expected = evaluate_exact_match(output, reference, patterns, case, punctuation)
        value = score(metric, output=output, references=[reference])
        # White space that only ignoring something else brings to an end of the text doesn't count here.
        assert value == expected or (value == 1 and " " in output + reference)

    def test_white_space_around_an_output_does_not_count(self, score: Score) -> None:
        """A prompt that ends with "Answer:" makes every answer begin with a space."""
        assert score("exact_match", output=" Paris\n", references=["Paris"]) == 1
        assert score("exact_match", output="P aris", references=["Paris"]) == 0

    def test_white_space_at_the_end_does_not_keep_a_pattern_from_matching(self, score: Score) -> None:
        metric = {"metric": "exact_match", "ignore_patterns": [r"\.$"]}
        assert score(metric, output=" 42. ", references=["42"]) == 1

    def test_any_of_the_references_will_do(self, score: Score) -> None:
        assert score("exact_match", output="b", references=["a", "b"]) == 1
        assert score("exact_match", output="c", references=["a", "b"]) == 0

    def test_nothing_is_ignored_unless_said(self, score: Score) -> None:
        assert score("exact_match", output="paris", references=["Paris"]) == 0
        assert score("exact_match", output="Paris.", references=["Paris"]) == 0


STRICT = {"regex": r"#### (\-?[0-9\.\,]+)"}
FLEXIBLE = {"regex": r"(-?[$0-9.,]{2,})|(-?[0-9]+)", "pick": "last"}


class TestExtraction:
    @pytest.mark.parametrize(
        ("extract", "output", "answer"),
        [
            (STRICT, "So 3 + 4 = 7.\n#### 7", "7"),
            (STRICT, "#### 7 and #### 8", "7"),
            (STRICT, "the answer is 7", "[invalid]"),
            (STRICT, "", "[invalid]"),
            (FLEXIBLE, "3 and then 4", "4"),
            (FLEXIBLE, "it costs 3, so $1,200", "$1,200"),
            (FLEXIBLE, "no number", "[invalid]"),
            ({"regex": r"answer is\s+(.*)"}, "answer is  B ", "B"),
            ({"regex": r"[ABCD]"}, "I say (C)", "C"),
            ({"regex": r"(x)?(y)?", "pick": "first"}, "zzz", "[invalid]"),
        ],
    )
    def test_it_takes_what_the_harness_filter_takes(
        self, make_sample: MakeSample, extract: dict[str, str], output: str, answer: str
    ) -> None:
        spec = MetricSpec.model_validate({"metric": "exact_match", "extract": extract})
        assert extracted(make_sample(output=output), spec) == answer

    def test_gsm8k_is_scored_as_in_the_harness(self, score: Score) -> None:
        metric = {
            "metric": "exact_match",
            "extract": STRICT,
            "ignore_case": True,
            "ignore_patterns": [",", "\\$", "(?s).*#### ", "\\.$"],
        }
        gold = "She pays 3 * 400 = <<3*400=1200>>1200.\n#### 1200"
        assert score(metric, output=" 3 * 400\n#### 1,200.", references=[gold]) == 1
        assert score(metric, output="1200", references=[gold]) == 0
        assert score({**metric, "extract": FLEXIBLE}, output="It is $1,200.", references=[gold]) == 1

    def test_it_applies_to_squad_and_overlap_too(self, score: Score) -> None:
        for metric in ("squad_f1", "squad_exact_match", "rouge1"):
            named = {"metric": metric, "extract": {"regex": "<(.*)>"}}
            assert score(named, output="well <blue whale>", references=["blue whale"]) == 1


def test_output_length_is_in_tokens(score: Score) -> None:
    assert score("output_length", output="four words are here", output_tokens=7) == 7


@pytest.mark.parametrize(("output", "empty"), [("", 1), (" \n\t", 1), ("\u00a0", 1), ("a", 0), (" . ", 0)])
def test_an_output_of_white_space_is_empty(score: Score, output: str, empty: float) -> None:
    assert score("empty_output", output=output) == empty
