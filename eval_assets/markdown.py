"""Text and tables as Markdown, for Dagster's UI and pull requests, in which no text is markup."""

import string
from collections.abc import Iterable, Sequence

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_INERT = str.maketrans({mark: _ENTITIES.get(mark, "\\" + mark) for mark in string.punctuation})


def inert(text: str) -> str:
    """Text on one line that renders as itself: no link, image, emphasis, code, HTML or table's column."""
    return " ".join(text.split()).translate(_INERT)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, each taken literally."""
    lines = [columns, *rows]
    head, *body = ["| " + " | ".join(inert(text) or " " for text in line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(columns), *body])
