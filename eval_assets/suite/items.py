"""A benchmark's rows, normalized: everything a model is shown and everything an answer is judged by."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from eval_assets.suite.spec import BenchmarkSpec


@dataclass(frozen=True, slots=True)
class Example:
    """A solved few-shot example; a prompt shows `query`, the benchmark's delimiter, `answer`."""

    query: str
    answer: str


@dataclass(frozen=True, slots=True)
class Item:
    """One item.

    `sample_id` is a hash of the item's own content (not of its few-shot examples), the same in every
    version of a benchmark that asks the same question. `target` is the index of the right choice;
    `labels` marks every true choice with 1 where there may be several. A perplexity item has its text
    in `references[0]` and, where words and bytes are counted over another form of it, that form in
    `references[1]`; with a non-empty `query` only the text's likelihood after the query counts. `prefill`
    is the beginning of the assistant's answer in a chat.
    """

    sample_id: str
    index: int
    group: str | None
    cluster: str | None
    description: str
    system: str | None
    examples: tuple[Example, ...]
    query: str
    choices: tuple[str, ...] = ()
    target: int | None = None
    labels: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    incorrect_references: tuple[str, ...] = ()
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class Items:
    """A benchmark's items in the order of its rows, and what a person should know about them, a line each."""

    items: tuple[Item, ...]
    warnings: tuple[str, ...] = ()


_EXAMPLE_TYPE = pa.struct([pa.field("query", pa.string()), pa.field("answer", pa.string())])
_TEXTS = pa.list_(pa.string())

ITEM_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("cluster", pa.string()),
        pa.field("description", pa.string(), nullable=False),
        pa.field("system", pa.string()),
        pa.field("examples", pa.list_(_EXAMPLE_TYPE)),
        pa.field("query", pa.string(), nullable=False),
        pa.field("choices", _TEXTS),
        pa.field("target", pa.int32()),
        pa.field("labels", pa.list_(pa.int8())),
        pa.field("references", _TEXTS),
        pa.field("incorrect_references", _TEXTS),
        pa.field("prefill", pa.string(), nullable=False),
    ]
)
_TUPLES = ("choices", "labels", "references", "incorrect_references")
_ORDER_SALT = "select"


def content_id(
    query: str,
    choices: Sequence[str],
    target: int | None,
    labels: Sequence[int],
    references: Sequence[str],
    incorrect_references: Sequence[str],
    group: str | None,
) -> str:
    """The first 16 hexadecimal digits of the SHA-256 over an item's own content.

    Raises UnicodeEncodeError for half a surrogate pair, which no Parquet file could hold either.
    """
    content = [
        query,
        list(choices),
        target,
        list(labels),
        list(references),
        list(incorrect_references),
        group,
    ]
    return hashlib.sha256(_canonical(content)).hexdigest()[:16]


def items_fingerprint(spec: BenchmarkSpec, items: Iterable[Item]) -> str:
    """SHA-256 over all that could change a score: the task's parameters and every item with its examples.

    Neither what only describes a benchmark (title, tags, licence, citation) nor where its rows were read from
    belongs to it, nor `limit`: whoever limits the items adds the limit to the evaluation's own fingerprint.
    A field that a benchmark does not use is left out where it is younger than published fingerprints.
    """
    fields = {"version", "task", "delimiter", "fewshot_delimiter", "primary_metric"}
    parameters = spec.model_dump(mode="json", include=fields)
    parameters["metrics"] = [
        metric.model_dump(
            mode="json", exclude={name for name in ("of", "k") if getattr(metric, name) is None}
        )
        for metric in spec.metrics
    ]
    if spec.task == "generation":
        greedy = None if spec.generation.temperature else {"max_new_tokens", "stop"}
        parameters["generation"] = spec.generation.model_dump(mode="json", include=greedy)
    parameters["chat"] = None if spec.chat is None else {"fewshot_as_turns": spec.chat.fewshot_as_turns}
    digest = hashlib.sha256(_canonical(parameters))
    shared: dict[tuple[Example, ...], str] = {}
    for item in items:
        if item.examples not in shared:
            pairs = [(example.query, example.answer) for example in item.examples]
            shared[item.examples] = hashlib.sha256(_canonical(pairs)).hexdigest()
        row = _row(item, shared[item.examples])
        if not item.prefill:
            del row["prefill"]
        digest.update(_canonical([*row.values()]))
    return digest.hexdigest()


def items_to_table(items: Iterable[Item]) -> pa.Table:
    """Items as a table with `ITEM_SCHEMA`, one row an item."""
    rows = [
        _row(item, [{"query": example.query, "answer": example.answer} for example in item.examples])
        for item in items
    ]
    return pa.Table.from_pylist(rows, schema=ITEM_SCHEMA)


def items_from_table(table: pa.Table) -> tuple[Item, ...]:
    """The inverse of `items_to_table`. Examples that items share are held in memory once."""
    shared: dict[tuple[tuple[str, str], ...], tuple[Example, ...]] = {}
    items = []
    for batch in table.to_batches(max_chunksize=256):  # bounded: a prompt's examples repeat in every row
        for row in batch.to_pylist():
            pairs = tuple((example["query"], example["answer"]) for example in row["examples"])
            if pairs not in shared:
                shared[pairs] = tuple(Example(query, answer) for query, answer in pairs)
            values = {**row, "examples": shared[pairs], **{name: tuple(row[name]) for name in _TUPLES}}
            items.append(Item(**values))
    return tuple(items)


Selectable = TypeVar("Selectable", bound=Item)


def select_items(items: Sequence[Selectable], limit: int | None) -> tuple[Selectable, ...]:
    """At most `limit` items, in the order of their index: a random sample that depends on their content only.

    Items are ranked by a hash of their id, so a smaller limit's items are among a larger one's, and adding or
    removing rows elsewhere in a benchmark changes as few as possible.
    """
    if limit is None or limit >= len(items):
        chosen: Iterable[Selectable] = items
    else:
        chosen = sorted(items, key=lambda item: (_rank(item.sample_id), item.index))[:limit]
    return tuple(sorted(chosen, key=lambda item: item.index))


def _rank(sample_id: str) -> bytes:
    return hashlib.sha256(f"{_ORDER_SALT}:{sample_id}".encode()).digest()


def _row(item: Item, examples: Any) -> dict[str, Any]:
    return {name: getattr(item, name) if name != "examples" else examples for name in ITEM_SCHEMA.names}


def _canonical(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
