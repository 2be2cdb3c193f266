"""Comparing what both sides recorded of a work, item by item."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]

NATS_A_TOKEN = 1e-4
"""How far a log-likelihood may be off, a token: batches and caches are rounded differently."""

_ROUNDING = 1e-6
_FROM_LOGLIKELIHOODS = frozenset({"mc2", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"})
_FROM_LOGLIKELIHOODS_WITHIN = 1e-3  # relative: what 1e-4 a token can come to in a metric made of them


@dataclass(slots=True)
class MetricComparison:
    """One metric: its value over all items, in the harness's unit, and of how many items it is equal.

    Items whose texts differ are not counted: their scores are those of other texts.
    """

    name: str
    ours: float
    theirs: float
    ours_stderr: float | None
    theirs_stderr: float | None
    equal_items: int = 0
    items: int = 0

    @property
    def same_value(self) -> bool:
        return close(self.name, self.ours, self.theirs)


@dataclass(slots=True)
class TextException:
    """A generated text that differs. `excused`: for a `reason` that is no mistake of either side."""

    item: int
    prompt: str
    ours: str
    theirs: str
    reason: str = ""
    excused: bool = False


@dataclass(slots=True)
class Comparison:
    """What was found in one work. Counts are of requests, but `items` and `generated` of items."""

    name: str
    items: int
    requests: int = 0
    prompts_equal: int = 0
    token_ids_equal: int = 0
    scored: int = 0
    greedy_equal: int = 0
    largest_difference: float = 0.0
    generated: int = 0
    texts_equal: int = 0
    metrics: list[MetricComparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    exceptions: list[TextException] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether everything is equal but for texts that are excused."""
        return (
            not self.notes
            and self.prompts_equal == self.token_ids_equal == self.requests
            and self.greedy_equal == self.scored
            and self.largest_difference <= NATS_A_TOKEN
            and all(exception.excused for exception in self.exceptions)
            and all(metric.equal_items == metric.items for metric in self.metrics)
            and (bool(self.exceptions) or all(metric.same_value for metric in self.metrics))
        )


def close(metric: str, ours: float, theirs: float) -> bool:
    """Whether a metric's two values are equal but for rounding."""
    within = _FROM_LOGLIKELIHOODS_WITHIN if metric in _FROM_LOGLIKELIHOODS else _ROUNDING
    return abs(ours - theirs) <= within * max(1.0, abs(theirs))


def compare(
    name: str,
    ours: Record,
    theirs: Record,
    metrics: Mapping[str, tuple[str, float]],
    *,
    asked_more: bool = False,
) -> Comparison:
    """Compare a work's records. `metrics`: our names with the harness's labels and the factor to its unit."""
    found = Comparison(name, len(theirs["items"]))
    if len(ours["items"]) != len(theirs["items"]):
        found.notes.append(f"{len(ours['items'])} items here, {len(theirs['items'])} in the harness")
    for index, (mine, other) in enumerate(zip(ours["items"], theirs["items"], strict=False)):
        if mine["error"]:
            found.notes.append(f"item {index}: {mine['error']}")
        _compare_requests(found, index, mine["requests"], other["requests"], asked_more)
    for mine_name, (label, factor) in metrics.items():
        found.metrics.append(_compare_metric(found, ours, theirs, mine_name, label, factor))
    return found


def _compare_requests(
    found: Comparison, index: int, mine: list[Record], other: list[Record], asked_more: bool
) -> None:
    wanted = _judged(other)
    by_text = {_texts(request): request for request in mine}
    if not asked_more and len(mine) != len(wanted):
        found.notes.append(f"item {index}: {len(mine)} requests here, {len(wanted)} in the harness")
    for position, request in enumerate(wanted):
        found.requests += 1
        match = by_text.get(_texts(request))
        if match is None:
            nearest = mine[min(position, len(mine) - 1)]
            found.notes.append(f"item {index}: {first_difference(_texts(nearest), _texts(request))}")
            continue
        found.prompts_equal += 1
        _COMPARE[request["type"]](found, index, match, request)


def _judged(requests: list[Record]) -> list[Record]:
    """The harness's requests whose answers its metrics are made of.

    Its squadv2 also asks for the likelihood of " unanswerable", which only its thresholds (best_exact) read.
    """
    generated = [request for request in requests if request["type"] == "generate_until"]
    return generated or requests


def _texts(request: Record) -> tuple[str, ...]:
    if request["type"] == "loglikelihood_rolling":
        return (request["text"],)
    if request["type"] == "generate_until":
        return (request["context"], *request["until"], str(request["max_new_tokens"]))
    return (request["context"], request["continuation"])


def first_difference(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    """Where two requests' texts part, with a little of what is around."""
    if len(ours) != len(theirs):
        return f"ours has {ours[1:]!r} after the prompt, the harness {theirs[1:]!r}"
    for mine, other in zip(ours, theirs, strict=True):
        if mine != other:
            pairs = zip(mine, other, strict=False)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(other)))
            start = max(at - 20, 0)
            return f"character {at}: ours {mine[start : at + 30]!r}, the harness {other[start : at + 30]!r}"
    return "no difference"


def _compare_scored(found: Comparison, index: int, mine: Record, other: Record) -> None:
    found.scored += 1
    same = all(list(mine[name]) == list(other[name]) for name in ("context_ids", "continuation_ids"))
    found.token_ids_equal += same
    if not same:
        found.notes.append(f"item {index}: other token ids for {other['continuation'][:40]!r}")
    found.greedy_equal += mine["is_greedy"] == other["is_greedy"]
    _note_difference(found, index, mine, other, len(other["continuation_ids"]))


def _compare_rolling(found: Comparison, index: int, mine: Record, other: Record) -> None:
    found.scored += 1
    found.greedy_equal += 1
    same = list(mine["ids"]) == list(other["ids"]) and mine["windows"] == other["windows"]
    found.token_ids_equal += same
    if not same:
        found.notes.append(
            f"item {index}: windows (context, scored) {mine['windows'][-2:]} here, "
            f"{other['windows'][-2:]} in the harness"
        )
    _note_difference(found, index, mine, other, len(other["ids"]))


def _note_difference(found: Comparison, index: int, mine: Record, other: Record, tokens: int) -> None:
    difference = abs(mine["loglikelihood"] - other["loglikelihood"]) / max(tokens, 1)
    if not difference <= NATS_A_TOKEN:  # also where one is NaN
        found.notes.append(
            f"item {index}: log-likelihood {mine['loglikelihood']:.5f} here, "
            f"{other['loglikelihood']:.5f} in the harness"
        )
    found.largest_difference = max(
        found.largest_difference, math.inf if math.isnan(difference) else difference
    )


def _compare_generated(found: Comparison, index: int, mine: Record, other: Record) -> None:
    found.generated += 1
    found.token_ids_equal += list(mine["context_ids"]) == list(other["context_ids"])
    if mine["text"] == other["text"]:
        found.texts_equal += 1
    else:
        found.exceptions.append(TextException(index, other["context"], mine["text"], other["text"]))


_COMPARE: Mapping[str, Callable[[Comparison, int, Record, Record], None]] = {
    "loglikelihood": _compare_scored,
    "loglikelihood_rolling": _compare_rolling,
    "generate_until": _compare_generated,
}


def _compare_metric(
    found: Comparison, ours: Record, theirs: Record, name: str, label: str, factor: float
) -> MetricComparison:
    mine, other = ours["aggregates"].get(name), theirs["aggregates"][label]
    if mine is None:
        found.notes.append(f"{name}: has no value here")
        return MetricComparison(name, math.nan, other["value"], None, None, 0, found.items)
    stderr = mine["stderr"]
    compared = MetricComparison(
        name,
        mine["value"] * factor,
        other["value"],
        None if stderr is None else stderr * factor,
        other.get("stderr"),
    )
    differing = {exception.item for exception in found.exceptions}
    for index, (item, their_item) in enumerate(zip(ours["items"], theirs["items"], strict=False)):
        if index in differing:
            continue
        value = their_item["metrics"][label]
        if label == "perplexity":  # the harness keeps the log-likelihood of each item there
            value = math.exp(-value)
        compared.items += 1
        if close(name, item["metrics"].get(name, math.nan) * factor, value):
            compared.equal_items += 1
        else:
            found.notes.append(
                f"item {index}: {name} {item['metrics'].get(name)} here, {value} in the harness"
            )
    return compared
