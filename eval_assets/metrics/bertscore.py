"""BERTScore (Zhang et al. 2020): likeness of the tokens' embeddings, by the bert-score package."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_assets.metrics.answers import extracted
from eval_assets.metrics.metric import Metric, ScoringSettings, needing
from resources.errors import UserError
from resources.records import Sample

if TYPE_CHECKING:
    from eval_assets.suite.spec import MetricSpec

_PARTS = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
_BOUNDS = (-1.0, 1.0)
_LARGEST_LENGTH = 1_000_000


def _bertscore(
    samples: Sequence[Sample], specs: Sequence[MetricSpec], settings: ScoringSettings
) -> list[list[float]]:
    """The best of the references for precision, recall and F1 each, not rescaled.

    (`rescale_with_baseline` needs a table that exists for a few models only.) A pair with an empty text
    scores 0 and never reaches the library, which would fail and take its whole batch along.
    """
    pairs = {
        spec.extract: [
            [(extracted(sample, spec).strip(), reference.strip()) for reference in sample.references]
            for sample in samples
        ]
        for spec in specs
    }
    distinct = {pair for of_spec in pairs.values() for of_sample in of_spec for pair in of_sample}
    found = _score_pairs(sorted(pair for pair in distinct if all(pair)), settings)
    nothing = (0.0, 0.0, 0.0)
    return [
        [
            max(found.get(pair, nothing)[_PARTS.index(spec.metric)] for pair in of_sample)
            for of_sample in pairs[spec.extract]
        ]
        for spec in specs
    ]


def _score_pairs(
    pairs: list[tuple[str, str]], settings: ScoringSettings
) -> dict[tuple[str, str], tuple[float, ...]]:
    """(precision, recall, F1) of each (candidate, reference), each pair in a call of its own.

    In a call with several, bert-score pads the shorter texts' embeddings with zeros and takes the maximum
    over them, too: where a token is unlike every token of the other text (a negative cosine), the padding
    wins, and a pair's score depends on its neighbours by up to some thousandths.
    """
    found: dict[tuple[str, str], tuple[float, ...]] = {}
    if not pairs:
        return found
    scorer = _scorer(settings.bertscore_model, settings.bertscore_layers, settings.device)
    for candidate, reference in pairs:
        # F1 is a quotient: it leaves the bounds where precision and recall have opposite signs near 0.
        parts = [float(part.clamp(*_BOUNDS)[0]) for part in scorer.score([candidate], [reference])]
        found[candidate, reference] = tuple(parts)
    return found


@cache
def _scorer(model: str, layers: int | None, device: str) -> Any:
    """The scorer, built once a process for each model: that takes seconds."""
    if not model:
        raise UserError("BERTScore has no encoder: set EVAL_BERTSCORE_MODEL to a model folder or hub id")
    folder = Path(model)
    local = folder.is_dir()
    if not local and (folder.is_absolute() or model.startswith(".")):
        raise UserError(f"BERTScore's encoder: no folder {model}; correct EVAL_BERTSCORE_MODEL")
    if local and not any(folder.glob("*.safetensors")):
        raise UserError(f"BERTScore's encoder {model} has no *.safetensors file; convert its weights")
    from bert_score import BERTScorer
    from bert_score.utils import model2layers
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        depth = int(config.num_hidden_layers)
        if layers is not None and not 0 < layers <= depth:
            raise UserError(
                f"BERTScore's encoder {model} has {depth} layers, not {layers}; correct EVAL_BERTSCORE_LAYERS"
            )
        scorer = BERTScorer(
            model_type=_Folder(model) if local else model,
            num_layers=layers or model2layers.get(model, depth),
            device=None if device == "auto" else device,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"BERTScore's encoder {model} can't be loaded: {reason}") from error
    tokenizer = scorer._tokenizer
    if tokenizer.model_max_length > _LARGEST_LENGTH:
        # Unset, it is 1e30 and truncation overflows. RoBERTa's positions start at 2.
        tokenizer.model_max_length = int(config.max_position_embeddings) - 2
    return scorer


class _Folder(str):
    """A folder's path. bert-score takes any model with "t5" somewhere in its name for a T5."""

    __slots__ = ()

    def __contains__(self, part: object) -> bool:
        return part != "t5" and isinstance(part, str) and super().__contains__(part)


METRICS = tuple(
    Metric(
        name=name,
        description=f"BERTScore {name.removeprefix('bertscore_')}, best of the references, not rescaled",
        higher_is_better=True,
        bounds=_BOUNDS,
        needs=needing("references"),
        reads=("output", "references"),
        scorer=_bertscore,
        options=frozenset({"extract"}),
    )
    for name in _PARTS
)
