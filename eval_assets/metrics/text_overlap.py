"""Overlap of a generated text with its references: ROUGE, BLEU, chrF, and TruthfulQA's use of them.

rouge-score and sacrebleu compute them; this module only calls them once for what they can share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_assets.metrics.answers import extracted
from eval_assets.metrics.metric import Aggregation, Metric, ScoringSettings, needing
from eval_assets.statistics import Clusters, Floats, bootstrap_estimate
from resources.records import Estimate, Sample

if TYPE_CHECKING:
    from eval_assets.suite.spec import MetricSpec

_PERCENT = (0.0, 100.0)
_ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def _rouge(samples: Sequence[Sample], specs: Sequence[MetricSpec], _: ScoringSettings) -> list[list[float]]:
    """F-measures 0..1, the best of the references for each type.

    All types that share `stem` and `extract` come out of one pass. ROUGE-Lsum takes newlines as the ends
    of sentences, which is how summaries of cnn_dailymail are written; it splits nothing itself.
    """
    passes: dict[tuple[bool, object], list[str]] = {}
    for spec in specs:
        types = passes.setdefault((spec.stem, spec.extract), [])
        if spec.metric not in types:
            types.append(spec.metric)
    scores: list[list[float]] = [[] for _ in specs]
    for sample in samples:
        results: dict[tuple[bool, object], Any] = {}
        for spec, column in zip(specs, scores, strict=True):
            key = (spec.stem, spec.extract)
            if key not in results:
                scorer = _rouge_scorer(tuple(passes[key]), spec.stem)
                results[key] = scorer.score_multi(sample.references, extracted(sample, spec))
            column.append(float(results[key][spec.metric].fmeasure))
    return scores


@cache
def _rouge_scorer(types: tuple[str, ...], stem: bool) -> Any:
    from rouge_score import rouge_scorer, tokenize, tokenizers

    class Tokenizer(tokenizers.Tokenizer):  # type: ignore[misc]
        """rouge-score's own tokens, each word stemmed once."""

        def __init__(self) -> None:
            stemmer = tokenizers.porter.PorterStemmer()
            self.stem = lru_cache(maxsize=100_000)(stemmer.stem)

        def tokenize(self, text: str) -> list[str]:
            tokens: list[str] = tokenize.tokenize(text, self if stem else None)
            return tokens

    return rouge_scorer.RougeScorer(list(types), tokenizer=Tokenizer())


def _truthful(
    samples: Sequence[Sample], specs: Sequence[MetricSpec], _: ScoringSettings
) -> list[list[float]]:
    """TruthfulQA's comparison of an answer with the correct and with the incorrect references.

    As `tasks/truthfulqa/utils.py` of the harness, on its scale of 0..100, less its bootstrap inside each
    pair of texts, which changes nothing: ``max`` is the best overlap with a correct reference, ``diff``
    that less the best with an incorrect one, ``acc`` whether it is higher. Its "rougeL" is ROUGE-Lsum.
    """
    measures = {spec.metric.split("_")[0] for spec in specs}
    scores: list[list[float]] = [[] for _ in specs]
    for sample in samples:
        output = sample.output or ""
        references = [*sample.references, *sample.incorrect_references]
        overlaps: dict[str, list[float]] = {}
        if "bleu" in measures:
            bleu = _truthful_bleu()
            overlaps["bleu"] = [bleu.corpus_score([output], [[text]]).score for text in references]
        if measures - {"bleu"}:
            rouge = _rouge_scorer(("rouge1", "rouge2", "rougeLsum"), False)
            results = [rouge.score(_sentences(text), _sentences(output)) for text in references]
            for measure, name in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rougeL", "rougeLsum")):
                overlaps[measure] = [result[name].fmeasure * 100 for result in results]
        for spec, column in zip(specs, scores, strict=True):
            measure, form = spec.metric.split("_")
            correct = max(overlaps[measure][: len(sample.references)])
            incorrect = max(overlaps[measure][len(sample.references) :])
            column.append(
                {"max": correct, "diff": correct - incorrect, "acc": float(correct > incorrect)}[form]
            )
    return scores


def _sentences(text: str) -> str:
    return text.replace(" . ", ".\n")


@cache
def _truthful_bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(smooth_method="exp", smooth_value=0.0, tokenize="intl", effective_order=False)


@cache
def _sacrebleu(metric: str, sentence: bool) -> Any:
    """sacrebleu's metric with its defaults, which are the harness's; BLEU of one sentence stops at the
    longest n-gram that the sentence has, as sacrebleu advises."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return BLEU(effective_order=sentence, force=True) if metric == "bleu" else CHRF()


def _sentence_scores(
    samples: Sequence[Sample], specs: Sequence[MetricSpec], _: ScoringSettings
) -> list[list[float]]:
    return [
        [
            float(_sacrebleu(spec.metric, True).sentence_score(extracted(s, spec), s.references).score)
            for s in samples
        ]
        for spec in specs
    ]


def _corpus(name: str) -> Aggregation:
    """Corpus BLEU or chrF: a function of n-gram counts, summed over the samples."""

    def statistics(samples: Sequence[Sample], spec: MetricSpec) -> Floats:
        # The two private methods are what sacrebleu's metrics implement for its own significance tests;
        # its public ones can't give the counts of chrF or score a sum of them.
        rows = [
            _sacrebleu(name, False)._extract_corpus_statistics(
                [extracted(sample, spec)], [[reference] for reference in sample.references]
            )[0]
            for sample in samples
        ]
        return np.array(rows, dtype=np.float64)

    def value(sums: NDArray[Any]) -> Floats:
        metric = _sacrebleu(name, False)
        scores = [min(metric._compute_score_from_stats(row).score, 100.0) for row in sums.tolist()]
        return np.array(scores, dtype=np.float64)

    def estimate(statistics: Floats, clusters: Clusters) -> Estimate:
        return bootstrap_estimate(statistics, value, clusters, _PERCENT)

    return Aggregation(statistics, estimate)


def _truthful_metrics() -> list[Metric]:
    forms: dict[str, tuple[str, tuple[float, float]]] = {
        "max": ("best {} with a correct reference", _PERCENT),
        "diff": ("best {} with a correct less best with an incorrect reference", (-100.0, 100.0)),
        "acc": ("share of outputs with a better {} with a correct than any incorrect reference", (0.0, 1.0)),
    }
    measures = {"bleu": "BLEU", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-Lsum"}
    return [
        Metric(
            name=f"{measure}_{form}",
            description=f"TruthfulQA: {text.format(title)}",
            higher_is_better=True,
            bounds=bounds,
            needs=needing("references", "incorrect_references"),
            reads=("output", "references", "incorrect_references"),
            scorer=_truthful,
            proportion=form == "acc",
        )
        for measure, title in measures.items()
        for form, (text, bounds) in forms.items()
    ]


def _overlap_metric(
    name: str,
    description: str,
    bounds: tuple[float, float],
    scorer: Callable[[Sequence[Sample], Sequence[MetricSpec], ScoringSettings], list[list[float]]],
    options: frozenset[str],
    aggregation: Aggregation | None = None,
) -> Metric:
    return Metric(
        name=name,
        description=description,
        higher_is_better=True,
        bounds=bounds,
        needs=needing("references"),
        reads=("output", "references"),
        scorer=scorer,
        options=options,
        aggregation=aggregation,
    )


_EXTRACT = frozenset({"extract"})

METRICS = (
    *(
        _overlap_metric(
            name,
            f"{name.replace('rouge', 'ROUGE-')} F-measure, best of the references",
            (0.0, 1.0),
            _rouge,
            _EXTRACT | {"stem"},
        )
        for name in _ROUGE_TYPES
    ),
    _overlap_metric("bleu", "corpus BLEU", _PERCENT, _sentence_scores, _EXTRACT, _corpus("bleu")),
    _overlap_metric("chrf", "corpus chrF", _PERCENT, _sentence_scores, _EXTRACT, _corpus("chrf")),
    *_truthful_metrics(),
)
