"""Samples from lines of the harness's samples files.

A line is one item under one filter; an item with several filters has several lines. A line that was exported
from here says besides what the harness has no field for (`own`).
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from eval_assets.exchange.files import lines
from eval_assets.exchange.names import NO_FILTER, OWN, Destination, Part, is_label
from eval_assets.exchange.own import own_sample
from eval_assets.exchange.untrusted import number, text_number, whole
from eval_assets.metrics import METRICS, ScoringSettings, score_samples
from eval_assets.suite.items import Item
from eval_assets.suite.normalize import normalize
from eval_assets.suite.spec import BenchmarkSpec, FewShot, MetricSpec
from resources.datasets import Row, RowSource
from resources.errors import UserError
from resources.records import SAMPLE_SCHEMA, Output, Sample

_FIXED = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
    "prompt_hash", "target_hash", OWN,
}  # fmt: skip
_MOST_ARGUMENTS = 10_000
_LARGEST_EXPONENT = 300.0


@dataclass(slots=True)
class _Document:
    """The lines of one item: the first of them, and all its filters' metrics by ``metric,filter``."""

    line: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)


def read_samples(
    destination: Destination, files: Mapping[str, Path], sizes: Mapping[str, int]
) -> list[Sample]:
    """The samples of an evaluation from the files of its tasks, in the order of their items.

    `sizes` has the number of items of each task, asked or not. Of a benchmark that several tasks ask about
    the same items (TruthfulQA's), the scores of all are put together; tasks of a group have items of their
    own, also where a document is in several of them. Where the benchmark here makes the same items of the
    harness's documents, samples have its ids, and those of two evaluations can be compared.

    Raises UserError for the first line that is not as the harness writes them.
    """
    found: dict[str, Sample] = {}
    offset = 0
    ids = _Ids()
    # Tasks that show all choices of an item first: theirs are the answers that are kept.
    for part in sorted(
        destination.parts, key=lambda part: part.names is not None and part.names.choices == "best"
    ):
        documents = _documents(files[part.task])
        items = _items(destination.spec, part, [document.line for document in documents.values()])
        if part.group is None:
            ids = _Ids()
        for position, (number_, document) in enumerate(documents.items()):
            item = items[position] if items else None
            try:
                sample = _sample(document, item, part, destination, offset + number_)
            except UserError as error:
                raise UserError(f"{files[part.task].name}, item {number_}: {error}") from None
            except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError) as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
                raise UserError(
                    f"{files[part.task].name}, item {number_}: not understood: {reason}"
                ) from None
            sample.sample_id = ids.unique(sample.sample_id)
            before = found.get(sample.sample_id)
            found[sample.sample_id] = sample if before is None else _together(before, sample)
        offset += sizes.get(part.task, 0) if part.group is not None else 0
    samples = sorted(found.values(), key=lambda sample: sample.index)
    try:
        pa.Table.from_pylist([sample.as_row() for sample in samples], schema=SAMPLE_SCHEMA)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"its samples can't be stored: {str(error).splitlines()[0][:120]}") from None
    return samples


class _Ids:
    """Ids that are each given once: the second sample of an id gets ``-2`` after it, as `normalize` does."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._copies: dict[str, int] = {}

    def unique(self, wanted: str) -> str:
        unique = wanted
        while unique in self._given:
            self._copies[wanted] = self._copies.get(wanted, 1) + 1
            unique = f"{wanted}-{self._copies[wanted]}"
        self._given.add(unique)
        return unique


def _documents(path: Path) -> dict[int, _Document]:
    documents: dict[int, _Document] = {}
    for line in lines(path):
        position = whole(line.get("doc_id"), 2**31 - 1)
        if position is None:
            raise UserError(f"{path.name}: an item's doc_id is {str(line.get('doc_id'))[:40]!r}")
        document = documents.setdefault(position, _Document(line))
        filter_name = line.get("filter")
        filter_name = filter_name if isinstance(filter_name, str) else NO_FILTER
        names = line.get("metrics")
        if not isinstance(names, list):  # versions before 0.4.5 don't list them
            names = [name for name in line if name not in _FIXED]
        for name in names:
            if isinstance(name, str) and name in line:
                document.values[f"{name},{filter_name}"] = line[name]
    return dict(sorted(documents.items()))


def _items(spec: BenchmarkSpec | None, part: Part, lines_: Sequence[Mapping[str, Any]]) -> list[Item]:
    """What the benchmark here makes of the harness's documents; nothing where it makes no item of each."""
    if spec is None or any(OWN in line or not isinstance(line.get("doc"), dict) for line in lines_):
        return []
    rows = [dict(line["doc"]) for line in lines_]
    alone = spec.model_copy(
        update={
            "fewshot": FewShot(),
            "source": spec.source.model_copy(update={"config": part.group})
            if part.group is not None
            else spec.source,
        }
    )

    def read(_: RowSource) -> list[Row]:
        return rows

    try:
        items = normalize(alone, read).items
    except UserError:
        return []
    return list(items) if len(items) == len(rows) else []


def _sample(
    document: _Document, item: Item | None, part: Part, destination: Destination, index: int
) -> Sample:
    line = document.line
    arguments = _arguments(line["arguments"])
    answers = line["resps"]
    if not isinstance(answers, list):
        raise TypeError("resps is no list")
    kind = _kind(arguments)
    prompt = "" if kind == "rolling" else _text(arguments[0][0])
    texts = [_text(text) for text in answers[0]] if kind == "generation" else []
    output = texts[0] if texts else None
    own = OWN in line
    if own:
        sample = own_sample(line[OWN], prompt, output)
    else:
        sample = Sample(_id_of(line), index, part.group, None, prompt, output=output)
        if item is not None:
            for name in ("sample_id", "cluster", "target", "choices", "labels", "references"):
                setattr(sample, name, getattr(item, name))
            sample.incorrect_references = item.incorrect_references
            sample.group = item.group
    if kind == "generation":
        if len(texts) > 1 and not own:
            sample.outputs = [Output(text, "", 0) for text in texts]
        if not (own or sample.references):
            sample.references = [_text(line.get("target"))]
    else:
        pairs = [answer[0] if isinstance(answer[0], list) else [answer[0]] for answer in answers]
        sample.loglikelihoods = [_loglikelihood(pair[0]) for pair in pairs]
        sample.is_greedy = [str(pair[1]).lower() == "true" for pair in pairs if len(pair) > 1]
        shown = [_text(asked[1]).removeprefix(" ") for asked in arguments if len(asked) > 1]
        if own:
            pass
        elif kind == "rolling":
            sample.references = sample.references or [_text(arguments[0][0])]
        elif len(arguments) == 1:
            sample.references = sample.references or shown
        else:
            _choose(sample, shown, line.get("target"))
    if not own:
        sample.scores = _scores(document, sample, part, destination)
    return sample


def _choose(sample: Sample, shown: list[str], target: Any) -> None:
    if len(sample.choices) != len(shown):
        # Not all of the item's choices were asked (mc1 leaves out all true ones but the best).
        sample.choices, sample.labels, sample.target = shown, (), None
    position = text_number(target)
    if sample.target is None and position is not None and 0 <= position < len(shown):
        sample.target = int(position)


def _together(one: Sample, other: Sample) -> Sample:
    """Two tasks on one item: the answers of the one that was asked more, the scores of both."""
    first, second = (one, other) if len(one.choices) >= len(other.choices) else (other, one)
    first.scores = {**second.scores, **first.scores}
    return first


def _scores(document: _Document, sample: Sample, part: Part, destination: Destination) -> dict[str, float]:
    scores = {}
    for label, logged in document.values.items():
        name, factor = destination.metric(label, part)
        value = _logged_score(label.partition(",")[0], logged)
        if value is None:
            value = _scored_here(destination.spec, name, sample)
        else:
            value *= factor
        if value is not None and is_label(name):
            scores[name] = value
    return scores


def _logged_score(metric: str, logged: Any) -> float | None:
    """A sample's score of a value as the harness logs it: a score, or what it aggregates into one."""
    if metric in ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"):
        parts = logged if isinstance(logged, list) else [logged, 1]
        values = [text_number(part) for part in parts]
        if len(values) != 2 or values[0] is None or not values[1]:
            return None
        nats = -values[0] / values[1]
        return nats / math.log(2) if metric == "bits_per_byte" else math.exp(min(nats, _LARGEST_EXPONENT))
    return number(logged)


def _scored_here(spec: BenchmarkSpec | None, name: str, sample: Sample) -> float | None:
    """The score of a metric that the harness logs as texts (SQuAD's), by the same metric here."""
    metric = next((one for one in spec.metrics if one.name == name), None) if spec is not None else None
    if metric is None or METRICS[metric.metric].missing(sample) is not None or metric.of is not None:
        return None
    alone = MetricSpec.model_validate(metric.model_dump())
    copy = Sample(sample.sample_id, 0, None, None, sample.prompt, output=sample.output)
    copy.references = sample.references
    score_samples([copy], [alone], ScoringSettings())
    return copy.scores.get(name)


def _arguments(arguments: Any) -> list[list[Any]]:
    """The requests of an item, each a list of its arguments; older versions write lists themselves."""
    if isinstance(arguments, dict):
        asked = [arguments[name] for name in islice(sorted(arguments, key=_position), _MOST_ARGUMENTS)]
        found = [[one[name] for name in sorted(one, key=_position)] for one in asked]
    else:
        found = [list(one) for one in arguments]
    if not found or not all(found):
        raise ValueError("no arguments")
    return found


def _position(name: str) -> int:
    return int(name.rsplit("_", 1)[1])


def _kind(arguments: list[list[Any]]) -> str:
    if len(arguments[0]) == 1:
        return "rolling"
    return "generation" if isinstance(arguments[0][1], dict) else "loglikelihood"


def _loglikelihood(value: Any) -> float:
    """Nats; of what a model holds for impossible minus infinity."""
    found = -math.inf if value in ("-inf", -math.inf) else text_number(value)
    if found is None:
        raise ValueError(f"log-likelihood {str(value)[:40]!r}")
    return found


def _text(value: Any) -> str:
    """Text that Parquet can hold: half a surrogate pair becomes a question mark."""
    return (value if isinstance(value, str) else str(value)).encode("utf-8", "replace").decode()


def _id_of(line: Mapping[str, Any]) -> str:
    known = line.get("doc_hash")
    if not isinstance(known, str) or not known.isalnum() or len(known) < 16:
        known = hashlib.sha256(json.dumps(line.get("doc"), sort_keys=True, default=str).encode()).hexdigest()
    return known[:16].lower()
