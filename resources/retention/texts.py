"""Samples without their texts: the columns that this concerns, what is left, the bytes that it frees."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from resources.results import ResultsStore


def removed_columns(task: str) -> list[str]:
    """The columns that lose their content. A perplexity is made of its text's words and bytes: that stays."""
    columns = ["prompt", "choices", "incorrect_references", "output", "outputs.text"]
    return columns if task == "perplexity" else [*columns, "references"]


def without_texts(table: pa.Table, task: str) -> pa.Table:
    """Samples without what a model was shown and wrote; the same rows, columns and types.

    A prompt and an output are null. There are as many choices, each of them empty, as many outputs with an
    empty text, and no references (but of a perplexity, whose statistics need their length).
    """
    removed = removed_columns(task)
    for name in ("prompt", "output"):
        table = _replaced(table, name, lambda _: None)
    table = _replaced(table, "choices", lambda texts: texts and [""] * len(texts))
    for name in ("references", "incorrect_references"):
        if name in removed:
            table = _replaced(table, name, lambda texts: None if texts is None else [])
    return _replaced(table, "outputs", lambda outputs: outputs and [{**o, "text": ""} for o in outputs])


def text_bytes(store: ResultsStore, path: str, task: str) -> int:
    """What removing the texts of a samples file frees: the file itself says how large a column is."""
    removed = removed_columns(task)
    try:
        with store.filesystem.open(f"{store.root}/{path}", "rb") as file:
            metadata = pq.ParquetFile(file).metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            columns = [group.column(number) for group in groups for number in range(group.num_columns)]
            # A list's path has levels of Parquet's own between its name and its fields.
            paths = [(column, column.path_in_schema.split(".")) for column in columns]
            return sum(
                column.total_compressed_size
                for column, parts in paths
                if parts[0] in removed or f"{parts[0]}.{parts[-1]}" in removed
            )
    except (OSError, ValueError):  # gone or damaged: applying it says so
        return 0


def _replaced(table: pa.Table, name: str, change: Callable[[Any], Any]) -> pa.Table:
    if name not in table.column_names:  # written before there were several outputs
        return table
    position = table.column_names.index(name)
    field = table.schema.field(position)
    values = [change(value) for value in table.column(position).to_pylist()]
    return table.set_column(position, field, pa.array(values, field.type))
