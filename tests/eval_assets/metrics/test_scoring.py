"""The table of metrics; validating, scoring and estimating as a whole."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from eval_assets.metrics import METRICS, ScoringSettings, check_metrics, estimate_metrics, score_samples
from eval_assets.statistics import mean_estimate
from eval_assets.suite.spec import MetricSpec
from resources.errors import UserError
from resources.records import Sample

MakeSample = Callable[..., Sample]
ACC = MetricSpec(metric="acc")
EM = MetricSpec(metric="exact_match")
ANSWERED = [(1, "law", "p1"), (0, "law", "p1"), (1, "law", "p2"), (1, "anatomy", None), (0, None, None)]


def specs(*metrics: Any) -> list[MetricSpec]:
    return [MetricSpec.model_validate(metric) for metric in metrics]


class TestTable:
    def test_it_has_every_promised_metric(self) -> None:
        promised = """acc acc_norm acc_bytes mc1 mc2 greedy_acc exact_match squad_exact_match squad_f1
            pass@k rouge1 rouge2 rougeL rougeLsum bleu chrf bertscore_precision bertscore_recall bertscore_f1
            word_perplexity byte_perplexity bits_per_byte perplexity ece brier output_length empty_output
            bleu_max bleu_acc bleu_diff rouge1_max rouge1_acc rouge1_diff rouge2_max rouge2_acc rouge2_diff
            rougeL_max rougeL_acc rougeL_diff"""
        assert set(METRICS) == set(promised.split())

    def test_lower_is_better_for_errors_and_surprise_only(self) -> None:
        lower = {name for name, metric in METRICS.items() if metric.higher_is_better is False}
        surprise = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}
        assert lower == {"ece", "brier", "empty_output", *surprise}
        assert METRICS["output_length"].higher_is_better is None

    def test_each_metric_describes_itself(self) -> None:
        for name, metric in METRICS.items():
            assert metric.name == name
            assert metric.description
            assert metric.bounds[0] < metric.bounds[1]
            assert metric.tasks
            assert metric.bounds == (0, 1) or not metric.proportion

    def test_importing_it_loads_no_metric_library(self) -> None:
        """The server that shows the definitions imports this table; it has to be up within seconds."""
        program = (
            "import sys, eval_assets.metrics; print([name for name in ('torch', 'transformers', 'scipy', "
            "'sacrebleu', 'rouge_score', 'nltk', 'bert_score', 'sklearn') if name in sys.modules])"
        )
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "[]"


class TestCheck:
    @pytest.mark.parametrize(
        ("task", "metric", "message"),
        [
            ("multiple_choice", "acc_nrom", "unknown metric 'acc_nrom'; did you mean 'acc_norm'?"),
            ("generation", "zzzz", "unknown metric 'zzzz'; known are acc,"),
            (
                "generation",
                "acc",
                "metric 'acc' does not fit task 'generation', only multiple_choice or perplex",
            ),
            (
                "multiple_choice",
                "rouge1",
                "metric 'rouge1' does not fit task 'multiple_choice', only generation",
            ),
            ("generation", {"metric": "bleu", "stem": True}, "'bleu' has no option 'stem'; it takes extract"),
            (
                "perplexity",
                {"metric": "acc", "ignore_case": True},
                "no option 'ignore_case'; it takes no options",
            ),
        ],
    )
    def test_what_cannot_be_computed_gets_one_line(self, task: Any, metric: Any, message: str) -> None:
        with pytest.raises(UserError) as raised:
            check_metrics(task, specs(metric), where="my.yaml: metrics")
        assert message in str(raised.value)
        assert str(raised.value).startswith("my.yaml: metrics: ")
        assert "\n" not in str(raised.value)

    def test_two_metrics_of_one_name_are_refused(self) -> None:
        """The second would overwrite the scores of the first."""
        with pytest.raises(UserError, match="two metrics are named 'exact_match'"):
            check_metrics("generation", specs("exact_match", {"metric": "exact_match", "ignore_case": True}))
        with pytest.raises(UserError, match="two metrics are named 'mine'"):
            check_metrics(
                "generation", specs({"metric": "rouge1", "name": "mine"}, {"metric": "bleu", "name": "mine"})
            )
        renamed = {"metric": "exact_match", "name": "loose", "ignore_case": True}
        check_metrics("generation", specs("exact_match", renamed))

    def test_a_field_that_the_benchmark_lacks_is_named(self) -> None:
        with pytest.raises(UserError, match="metric 'mc2' needs the field 'labels'; declare it"):
            check_metrics("multiple_choice", specs("acc", "mc2"), fields=["choices", "target"])
        check_metrics("multiple_choice", specs("acc", "mc2"), fields=["choices", "target", "labels"])

    def test_every_metric_passes_for_each_of_its_tasks(self) -> None:
        for name, metric in METRICS.items():
            of = {"k": 1, "of": "exact_match"} if name == "pass@k" else {}
            for task in metric.tasks:
                check_metrics(task, specs({"metric": name, **of}, *(["exact_match"] if of else [])))


class TestScoring:
    def test_a_sample_with_an_error_gets_no_scores_and_keeps_its_error(self, make_sample: MakeSample) -> None:
        broken = make_sample(loglikelihoods=[], target=0, choices=["a", "b"], error="engine: out of memory")
        fine = make_sample(loglikelihoods=[-1.0, -2.0], target=0)
        score_samples([broken, fine], [ACC], ScoringSettings())
        assert (broken.scores, broken.error) == ({}, "engine: out of memory")
        assert (fine.scores, fine.error) == ({"acc": 1.0}, None)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_loglikelihood_that_is_not_finite_is_an_error_and_no_score(
        self, make_sample: MakeSample, value: float
    ) -> None:
        """NaN loses every comparison: argmax would quietly make it an answer."""
        choice = make_sample(loglikelihoods=[-1.0, value], target=0)
        text = make_sample(loglikelihoods=[value], references=["x"])
        score_samples([choice], [ACC], ScoringSettings())
        score_samples([text], specs("word_perplexity"), ScoringSettings())
        assert choice.scores == text.scores == {}
        assert choice.error == f"the model's log-likelihood of choice 1 is {value}"
        assert text.error == f"the model's log-likelihood is {value}"

    @pytest.mark.parametrize(
        ("metric", "fields", "missing"),
        [
            ("acc", {"loglikelihoods": [-1.0, -2.0], "choices": ["a", "b"]}, "target"),
            ("acc", {"loglikelihoods": [-1.0], "references": ["rolling text"]}, "is_greedy"),
            ("mc2", {"loglikelihoods": [-1.0, -2.0], "choices": ["a", "b"]}, "labels"),
            ("rouge1", {"output": "x"}, "references"),
            ("exact_match", {"references": ["x"]}, "output"),
            ("bleu", {"output": "x"}, "references"),
            ("bertscore_f1", {"output": "x"}, "references"),
            ("bleu_max", {"output": "x", "references": ["x"]}, "incorrect_references"),
        ],
    )
    def test_an_item_without_what_a_metric_reads_is_an_error_and_no_score(
        self, make_sample: MakeSample, metric: str, fields: dict[str, Any], missing: str
    ) -> None:
        sample = make_sample(**fields)
        score_samples([sample], specs(metric), ScoringSettings())
        assert sample.scores == {}
        assert sample.error == f"metric '{metric}' needs '{missing}', which this item lacks"

    def test_scores_go_by_the_name_in_the_benchmark(self, make_sample: MakeSample) -> None:
        sample = make_sample(output="Paris", references=["paris"])
        loose = {"metric": "exact_match", "name": "loose", "ignore_case": True}
        score_samples([sample], specs("exact_match", loose, "squad_f1"), ScoringSettings())
        assert sample.scores == {"exact_match": 0.0, "loose": 1.0, "squad_f1": 1.0}

    def test_scoring_again_changes_nothing(self, make_sample: MakeSample) -> None:
        sample = make_sample(output="the cat", references=["a cat"], scores={"old": 1.0})
        for _ in range(2):
            score_samples([sample], specs("rouge1", "squad_f1"), ScoringSettings())
            assert sample.scores == {"rouge1": 0.5, "squad_f1": 1.0}

    def test_every_score_and_every_estimate_is_in_its_metrics_range(self, make_sample: MakeSample) -> None:
        outputs = ["the cat sat on the mat", "", "?", "东京", "dog"]
        generated = [
            make_sample(
                output=output,
                output_tokens=len(output),
                references=["the cat sat on the mat", "?"],
                incorrect_references=["dog"],
                index=index,
            )
            for index, output in enumerate(outputs)
        ]
        chosen = [
            make_sample(loglikelihoods=[-1.0, -700.0 * i, -3.0], target=i % 3, labels=[1, i % 2, 0], index=i)
            for i in range(5)
        ]
        read = [
            make_sample(loglikelihoods=[-float(i)], is_greedy=[i == 0], references=["two words"], index=i)
            for i in range(5)
        ]
        for task, samples in (("generation", generated), ("multiple_choice", chosen), ("perplexity", read)):
            elsewhere = ("bertscore", "pass@k")
            names = [n for n, m in METRICS.items() if task in m.tasks and not n.startswith(elsewhere)]
            score_samples(samples, specs(*names), ScoringSettings())
            rows = estimate_metrics(samples, specs(*names))
            assert [row.metric for row in rows] == names
            for row in rows:
                low, high = METRICS[row.metric].bounds
                estimate = row.estimate
                assert all(low <= sample.scores[row.metric] <= high for sample in samples)
                assert estimate.ci_low is not None
                assert estimate.ci_high is not None
                assert low <= estimate.ci_low <= estimate.value <= estimate.ci_high <= high


class TestEstimates:
    @staticmethod
    def answered(make_sample: MakeSample) -> list[Sample]:
        samples = [
            make_sample(output="a", references=["a" if right else "b"], group=group, cluster=cluster)
            for right, group, cluster in ANSWERED
        ]
        score_samples(samples, [EM], ScoringSettings())
        return samples

    def test_the_whole_comes_first_and_then_each_group_by_name(self, make_sample: MakeSample) -> None:
        rows = estimate_metrics(self.answered(make_sample), [EM])
        found = [(row.metric, row.group, row.estimate.value, row.estimate.n) for row in rows]
        assert found == [
            ("exact_match", None, 3 / 5, 5),
            ("exact_match", "anatomy", 1.0, 1),
            ("exact_match", "law", pytest.approx(2 / 3), 3),
        ]

    def test_the_whole_weighs_groups_by_their_size(self, make_sample: MakeSample) -> None:
        samples = [sample for sample in self.answered(make_sample) if sample.group]
        whole, *groups = (row.estimate for row in estimate_metrics(samples, [EM]))
        assert whole.value == pytest.approx(sum(g.value * g.n for g in groups) / sum(g.n for g in groups))
        assert whole.value != pytest.approx(sum(g.value for g in groups) / len(groups))

    def test_clusters_and_the_kind_of_metric_reach_the_statistics(self, make_sample: MakeSample) -> None:
        samples = self.answered(make_sample)
        (whole, _, law) = (row.estimate for row in estimate_metrics(samples, [EM]))
        assert whole == mean_estimate([1, 0, 1, 1, 0], ["p1", "p1", "p2", None, None], proportion=True)
        assert law == mean_estimate([1, 0, 1], ["p1", "p1", "p2"], proportion=True)

    def test_corpus_metrics_are_made_for_each_group_from_its_own_samples(
        self, make_sample: MakeSample
    ) -> None:
        samples = [
            make_sample(loglikelihoods=[-nats], references=["w " * (words - 1) + "w"], group=group)
            for nats, words, group in ((8.0, 4, "a"), (6.0, 2, "a"), (30.0, 10, "b"), (9.0, 3, "b"))
        ]
        perplexity = specs("word_perplexity")
        score_samples(samples, perplexity, ScoringSettings())
        values = {row.group: row.estimate.value for row in estimate_metrics(samples, perplexity)}
        assert values == {
            None: pytest.approx(math.exp(53 / 19)),
            "a": pytest.approx(math.exp(14 / 6)),
            "b": pytest.approx(math.exp(39 / 13)),
        }

    def test_the_order_of_the_samples_does_not_matter(self, make_sample: MakeSample) -> None:
        """A resumed evaluation finishes its samples in another order; its interval must be the same."""
        samples = [
            make_sample(output=f"the cat {'sat ' * (i % 5)}", references=["the cat sat on"], index=i)
            for i in range(20)
        ]
        chrf = specs("chrf")
        score_samples(samples, chrf, ScoringSettings())
        assert estimate_metrics(samples[::-1], chrf) == estimate_metrics(samples, chrf)

    def test_an_evaluation_with_an_error_has_no_estimates(self, make_sample: MakeSample) -> None:
        """A mean over the items that happened to work is a number that nobody can compare."""
        samples = self.answered(make_sample)
        samples[3].error = "the model's log-likelihood of choice 0 is nan"
        assert estimate_metrics(samples, [EM]) == []
        assert estimate_metrics([], [EM]) == []
