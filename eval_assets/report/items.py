"""Items as the browser loads them: a list of what is filtered by, and the texts in chunks.

A page opened from a folder may not fetch, so each chunk is a script that hands one string of JSON to
the page's own code; nothing in it is ever evaluated.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval_assets.report.text import clipped, visible

CHUNK_ITEMS = 100
CHUNK_CHARACTERS = 400_000
ERROR, TRUNCATED, CUT_OFF, EMPTY = 1, 2, 4, 8
"""Flags of an item: it could not be scored; its prompt was cut; its output was cut off; it is empty."""


@dataclass(slots=True)
class Listed:
    """Items in the order of the page. `columns` are what is filtered and sorted by, a value for each item."""

    columns: dict[str, list[Any]]
    items: Sequence[Mapping[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)


def listed_samples(rows: Sequence[Mapping[str, Any]], primary: str, text_limit: int) -> Listed:
    """The samples of one evaluation; `primary` is the metric that the page shows first."""
    metrics = metrics_of(rows, primary)
    groups = sorted({row["group"] for row in rows if row["group"] is not None})
    columns: dict[str, list[Any]] = {
        "id": [visible(row["sample_id"]) for row in rows],
        "index": [row["index"] for row in rows],
        "group": [None if row["group"] is None else groups.index(row["group"]) for row in rows],
        "flags": [flags_of(row) for row in rows],
        "scores": [[rounded(row["scores"].get(name)) for row in rows] for name in metrics],
    }
    items = [{**asked(row, text_limit), "sides": [answered(row, text_limit)]} for row in rows]
    return Listed(
        columns,
        items,
        {"metrics": [visible(name) for name in metrics], "groups": [visible(group) for group in groups]},
    )


def metrics_of(rows: Sequence[Mapping[str, Any]], primary: str) -> list[str]:
    """The metrics that items have a score of, the primary one first."""
    found = {name for row in rows for name in row["scores"]}
    return sorted(found, key=lambda name: (name != primary, name))


def flags_of(row: Mapping[str, Any]) -> int:
    """The item's flags, or'ed."""
    return (
        (ERROR if row["error"] is not None else 0)
        | (TRUNCATED if row["truncated_tokens"] else 0)
        | (CUT_OFF if row["finish_reason"] == "length" else 0)
        | (EMPTY if row["output"] is not None and not row["output"].strip() else 0)
    )


def rounded(value: float | None) -> float | None:
    """A number for the browser: six digits, and none where JSON has none."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    return float(f"{value:.6g}")


def asked(row: Mapping[str, Any], text_limit: int) -> dict[str, Any]:
    """What every version was shown, and what was expected of it."""
    item: dict[str, Any] = {
        "prompt": clipped(row["prompt"], text_limit),
        "choices": [clipped(choice, text_limit) for choice in row["choices"] or ()],
        "lengths": [len(choice) for choice in row["choices"] or ()],
        "target": row["target"],
        "labels": list(row["labels"] or ()),
        "references": [clipped(one, text_limit) for one in dict.fromkeys(row["references"] or ())],
        "wrong": [clipped(one, text_limit) for one in row["incorrect_references"] or ()],
    }
    return {name: value for name, value in item.items() if value not in (None, [])}


def answered(row: Mapping[str, Any], text_limit: int) -> dict[str, Any]:
    """What one version answered, and how that was scored."""
    outputs = [
        {
            "text": clipped(one["text"], text_limit),
            "end": clipped(one["finish_reason"], text_limit),
            "scores": _plain(one["scores"]),
        }
        for one in row["outputs"] or ()
    ]
    side: dict[str, Any] = {
        "lls": [rounded(value) for value in row["loglikelihoods"] or ()],
        "tokens": list(row["choice_tokens"] or ()),
        "output": clipped(row["output"], text_limit),
        "outputs": outputs if len(outputs) > 1 else None,
        "end": clipped(row["finish_reason"], text_limit),
        "counts": [row["prompt_tokens"], row["output_tokens"], row["truncated_tokens"]],
        "scores": _plain(row["scores"]),
        "error": clipped(row["error"], text_limit),
    }
    return {name: value for name, value in side.items() if value not in (None, [])}


def _plain(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {visible(name): rounded(value) for name, value in scores.items()}


def data_files(folder: str, listed: Listed) -> Iterator[tuple[str, bytes]]:
    """``(path, content)`` of the chunks, then of the list that names them, below `folder`."""
    chunks, sizes = [], []
    for chunk in _chunks(listed.items):
        name, content = _script(chunk)
        chunks.append(name)
        sizes.append(len(chunk))
        yield f"{folder}/{name}", content
    whole = {**listed.about, "columns": listed.columns, "chunks": chunks, "sizes": sizes}
    name, content = _script(whole)
    yield f"{folder}/{name}", content


def folder_of(page: str) -> str:
    """Where a page's data is: in a folder beside it."""
    return f"{page.removesuffix('.html')}.data"


def _chunks(items: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Items as JSON, so many that a browser reads them at once without a pause that is felt."""
    chunk: list[str] = []
    characters = 0
    for item in items:
        text = json.dumps(item, ensure_ascii=False, allow_nan=False)
        if chunk and (len(chunk) == CHUNK_ITEMS or characters + len(text) > CHUNK_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(text)
        characters += len(text)
    if chunk:
        yield chunk


def _script(value: Sequence[str] | Mapping[str, Any]) -> tuple[str, bytes]:
    """A script's name, which its content gives, and the script."""
    if isinstance(value, Mapping):
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    else:
        text = f"[{','.join(value)}]"
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.js"
    return (
        name,
        f"evalReport({safe(json.dumps(name))}, {safe(json.dumps(text, ensure_ascii=False))});\n".encode(),
    )


def safe(literal: str) -> str:
    """A JSON string as a literal that is the same in any script, in HTML or not."""
    return literal.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
