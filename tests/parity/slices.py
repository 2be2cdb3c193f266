"""The committed slice: a few items of each work with the harness's answers and the rows that they need."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from eval_assets.suite import BenchmarkSpec, load_suite
from tests.parity.works import Work

PATH = Path(__file__).parent / "harness_values.json"
LARGEST = 300_000
"""Bytes that the slice may take in the repository."""


def write(folder: Path, works: Sequence[Work], path: Path) -> None:
    """Write the harness's answers of a comparison kept in `folder`, with the rows, as one JSON file."""
    suite = load_suite()
    harness = json.loads((folder / "harness.json").read_text(encoding="utf-8"))
    entries = []
    for work in works:
        found = harness["works"][work.name]
        entries.append(
            {
                "name": work.name,
                "rows": _tables(folder / "rows" / work.slug, work.adapt(suite[work.benchmark])),
                "items": [_pack(item) for item in found["items"]],
                "aggregates": found["aggregates"],
            }
        )
    # A line a work, so that a change shows where it is.
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in entries)
    content = f'{{"versions":{json.dumps(harness["versions"])},"works":[\n{lines}\n]}}\n'
    if len(content.encode()) > LARGEST:
        raise SystemExit(f"{path}: {len(content.encode())} bytes, at most {LARGEST}; take fewer items")
    path.write_text(content, encoding="utf-8")


def read(path: Path = PATH) -> dict[str, dict[str, Any]]:
    """The slice's works by name.

    `rows` are lists of ``[hub id, config, split, rows]``; `items` and `aggregates` are what `run_harness.py`
    dumped.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    return {
        entry["name"]: {**entry, "items": [_unpack(item) for item in entry["items"]]}
        for entry in content["works"]
    }


def versions(path: Path = PATH) -> dict[str, str]:
    """The versions of the packages that the slice's values come from."""
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["versions"]
    return found


def _tables(folder: Path, spec: BenchmarkSpec) -> list[Any]:
    """The tables that the benchmark reads; the harness reads more."""
    return [
        [
            str(path.parent.parent.relative_to(folder)),
            path.parent.name,
            path.stem,
            pq.read_table(path).to_pylist(),
        ]
        for path in sorted((folder / str(spec.source.hub)).glob("*/*.parquet"))
        if path.stem in (spec.source.split, spec.fewshot.split)
    ]


def _pack(item: dict[str, Any]) -> dict[str, Any]:
    """An item's requests, with a context that repeats (one for each choice) written once."""
    packed: list[dict[str, Any]] = []
    before: dict[str, Any] = {}
    for request in item["requests"]:
        packed.append({key: value for key, value in request.items() if before.get(key) != value})
        before = request
    return {"requests": packed, "metrics": item["metrics"]}


def _unpack(item: dict[str, Any]) -> dict[str, Any]:
    requests: list[dict[str, Any]] = []
    for request in item["requests"]:
        requests.append({**(requests[-1] if requests else {}), **request})
    return {**item, "requests": requests}
