"""Which pairs of versions are compared for the report alone, beside the comparisons that were recorded.

`promotion` records a version against the one in production. People also ask what changed from one version to
the next, and about versions that were never judged (a folder's, imported ones) or have another name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eval_assets.report import naming
from eval_assets.report.reading import Evaluation, Results
from resources.errors import UserError
from resources.storage import Storage

ASKED = "pairs.json"
MOST_ASKED = 100
"""Pairs that somebody has asked for are kept, up to so many, the latest first."""
_SAME = ("benchmark_fingerprint", "primary_metric", "scoring_version", "task")
"""What two evaluations of a benchmark must have in common: the same items, asked and scored alike."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two versions' current evaluations of one benchmark."""

    baseline: Evaluation
    candidate: Evaluation

    @property
    def dataset(self) -> str:
        return self.candidate.dataset

    @property
    def samples(self) -> int:
        """At most so many items are in both."""
        return min(self.baseline.samples, self.candidate.samples)


def pairs_of(results: Results, asked: Sequence[tuple[str, str]]) -> list[Pair]:
    """What is asked for (model, baseline), then each version and the one before it, the latest first.

    What was recorded is left out, and so is what can't be compared.
    """
    found: dict[tuple[str, str, str], Pair] = {}
    for model, baseline in [*asked, *_successive(results)]:
        for dataset in results.datasets:
            sides = [results.current.get((dataset, one)) for one in (baseline, model)]
            if sides[0] is None or sides[1] is None or not _comparable(sides[0], sides[1]):
                continue
            recorded = results.verdict_on(sides[1])
            if recorded is None or recorded.baseline_evaluation != sides[0].evaluation_id:
                found.setdefault((dataset, model, baseline), Pair(sides[0], sides[1]))
    return list(found.values())


def _successive(results: Results) -> list[tuple[str, str]]:
    """Each version with the one before it, the latest evaluated first."""
    pairs = [
        (later, earlier)
        for later, earlier in zip(results.models, results.models[1:], strict=False)
        if later.rpartition("@")[0] == earlier.rpartition("@")[0]
    ]
    last = {model: str(of[0].finished_at) for model, of in results.by_model.items()}
    return sorted(pairs, key=lambda pair: (last.get(pair[0], ""), pair), reverse=True)


def _comparable(baseline: Evaluation, candidate: Evaluation) -> bool:
    return (
        baseline.valid
        and candidate.valid
        and all(getattr(baseline, name) == getattr(candidate, name) for name in _SAME)
    )


def page_of(pair: Pair) -> str:
    """The pair's page."""
    return naming.pair_page(pair.dataset, pair.candidate.model, pair.baseline.model)


def by_candidate(pairs: Sequence[Pair]) -> Mapping[tuple[str, str], Sequence[Pair]]:
    """Pairs by (dataset, model)."""
    found: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        found.setdefault((pair.dataset, pair.candidate.model), []).append(pair)
    return found


def asked_for(
    storage: Storage, folder: str, results: Results, more: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The pairs (model, baseline) that have been asked for, with `more`, which are remembered in the folder.

    Raises UserError for a version without an evaluation, and for two that have nothing to compare.
    """
    for model, baseline in more:
        for key in (model, baseline):
            if key not in results.by_model:
                raise UserError(f"{key} has no evaluation: 'leaderboard' lists what there is")
        if model == baseline:
            raise UserError(f"{model} can't be compared with itself: name two versions")
        if not any(
            (one := results.current.get((dataset, model))) is not None
            and (other := results.current.get((dataset, baseline))) is not None
            and _comparable(other, one)
            for dataset in results.datasets
        ):
            raise UserError(
                f"{model} and {baseline} have no benchmark in common on which both are valid and were asked "
                "the same items: evaluate both on one"
            )
    before = list(_remembered(storage, folder))
    asked = list(dict.fromkeys([*more, *before]))[:MOST_ASKED]
    if asked != before:
        storage.put_json(f"{folder}/{ASKED}", {"pairs": asked})
    return asked


def _remembered(storage: Storage, folder: str) -> Iterator[tuple[str, str]]:
    """What was asked for before; nothing where that can't be read: it can be asked for again."""
    try:
        pairs = (storage.get_json(f"{folder}/{ASKED}") or {}).get("pairs", [])
        for model, baseline in pairs:
            yield str(model), str(baseline)
    except (UserError, AttributeError, TypeError, ValueError):
        return
