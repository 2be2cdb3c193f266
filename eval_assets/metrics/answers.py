"""Whether a generated answer is the right one, word for word or in part, and plain facts about outputs."""

from __future__ import annotations

import re
import string
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

from eval_assets.metrics.metric import Metric, each, needing
from eval_assets.statistics import pass_at_k
from resources.records import Sample

if TYPE_CHECKING:
    from eval_assets.suite.spec import MetricSpec

NO_MATCH = "[invalid]"
"""What an output that the extraction's regex doesn't match counts as; the harness's own fallback."""

NO_ANSWER = "unanswerable"
"""The word by which a text model says that a question has no answer."""

_SHARE = (0.0, 1.0)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

_compiled = lru_cache(maxsize=64)(re.compile)


def extracted(sample: Sample, spec: MetricSpec) -> str:
    """The answer in a sample's output, as the harness's `RegexFilter` takes it.

    Without `extract` it is the output itself. Otherwise the first or last match; of a regex with several
    groups the first that matched something; stripped; `NO_MATCH` where nothing matched.
    """
    output = sample.output or ""
    if spec.extract is None:
        return output
    matches = _compiled(spec.extract.regex).findall(output)
    if not matches:
        return NO_MATCH
    match: str | tuple[str, ...] = matches[0 if spec.extract.pick == "first" else -1]
    if isinstance(match, tuple):
        match = next((group for group in match if group), NO_MATCH)
    return match.strip()


def normalize_squad(text: str) -> str:
    """Lower-case, without ASCII punctuation, articles and repeated spaces: `normalize_answer` of the
    official SQuAD script."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _exact_match(sample: Sample, spec: MetricSpec) -> float:
    """The harness's exact_match, except that white space around the texts never counts."""
    answer = _comparable(extracted(sample, spec), spec)
    return float(any(answer == _comparable(reference, spec) for reference in sample.references))


def _comparable(text: str, spec: MetricSpec) -> str:
    text = text.strip()
    for pattern in spec.ignore_patterns:
        text = _compiled(pattern).sub("", text)
    if spec.ignore_case:
        text = text.lower()
    if spec.ignore_punctuation:
        text = text.translate(_PUNCTUATION)
    return text.strip()


def _squad_answers(sample: Sample, spec: MetricSpec) -> tuple[str, list[str]]:
    """The normalized output and references of a SQuAD sample; no reference means that there is no answer.

    References that normalize to nothing are dropped, as in the official v2 script. There, only an empty
    output is right on a question without an answer; here `NO_ANSWER` is as well, because a prompt can ask
    a text model to say that and can't ask it to say nothing.
    """
    output = normalize_squad(extracted(sample, spec))
    references = [text for text in map(normalize_squad, sample.references) if text]
    return ("" if output == NO_ANSWER and not references else output), references or [""]


def _squad_exact_match(sample: Sample, spec: MetricSpec) -> float:
    output, references = _squad_answers(sample, spec)
    return float(output in references)


def _squad_f1(sample: Sample, spec: MetricSpec) -> float:
    output, references = _squad_answers(sample, spec)
    return max(_token_f1(output.split(), reference.split()) for reference in references)


def _token_f1(output: list[str], reference: list[str]) -> float:
    if not output or not reference:
        return float(output == reference)
    common = sum((Counter(output) & Counter(reference)).values())
    return 2 * common / (len(output) + len(reference))


def _pass_at_k(sample: Sample, spec: MetricSpec) -> float:
    assert spec.of is not None
    assert spec.k is not None
    answers = [output.scores for output in sample.outputs] or [sample.scores]
    return pass_at_k(len(answers), sum(scores[spec.of] == 1 for scores in answers), spec.k)


METRICS = (
    Metric(
        name="exact_match",
        description="share of answers equal to a reference",
        higher_is_better=True,
        bounds=_SHARE,
        needs=needing("references"),
        reads=("output", "references"),
        options=frozenset({"extract", "ignore_case", "ignore_punctuation", "ignore_patterns"}),
        scorer=each(_exact_match),
        proportion=True,
    ),
    Metric(
        name="squad_exact_match",
        description="SQuAD v1.1 and v2: share of answers equal to a reference after SQuAD's normalization",
        higher_is_better=True,
        bounds=_SHARE,
        needs=needing("references"),
        reads=("output",),
        options=frozenset({"extract"}),
        scorer=each(_squad_exact_match),
        proportion=True,
    ),
    Metric(
        name="squad_f1",
        description="SQuAD v1.1 and v2: F1 of the words after SQuAD's normalization, best of the references",
        higher_is_better=True,
        bounds=_SHARE,
        needs=needing("references"),
        reads=("output",),
        options=frozenset({"extract"}),
        scorer=each(_squad_f1),
    ),
    Metric(
        name="pass@k",
        description="share of items that at least one of k outputs gets right (Chen et al. 2021)",
        higher_is_better=True,
        bounds=_SHARE,
        needs=needing(),
        reads=("output",),
        options=frozenset({"of", "k"}),
        scorer=each(_pass_at_k),
        proportion=True,
    ),
    Metric(
        name="output_length",
        description="tokens of the output",
        higher_is_better=None,
        bounds=(0.0, float("inf")),
        needs=needing(),
        reads=("output",),
        scorer=each(lambda sample, _: float(sample.output_tokens)),
    ),
    Metric(
        name="empty_output",
        description="share of outputs that are empty or only white space",
        higher_is_better=False,
        bounds=_SHARE,
        needs=needing(),
        reads=("output",),
        scorer=each(lambda sample, _: float(not (sample.output or "").strip())),
        proportion=True,
    ),
)
