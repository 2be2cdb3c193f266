"""The names of things: model keys, dataset keys, and how both become parts of a path."""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from resources.errors import UserError

MAX_KEY_LENGTH = 200
_MODEL_KEY = re.compile(r"(?P<name>[A-Za-z0-9._/-]+)@(?P<version>[A-Za-z0-9._-]+)")
_DATASET_KEY = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class ModelKey:
    """A model version's name, ``name@version``; the model partition key."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @classmethod
    def parse(cls, text: str) -> "ModelKey":
        """Split ``name@version``.

        Raises UserError where the text breaks the rule: letters, digits and ``. _ / -``, one ``@``,
        no empty or dotted path segment, at most 200 characters. (``|`` separates the dimensions of a
        Dagster partition and ``..`` leaves a folder, so neither may ever be part of a name.)
        """
        shown = repr(text if len(text) <= 80 else text[:77] + "...")
        match = _MODEL_KEY.fullmatch(text)
        if match is None:
            raise UserError(
                f"model key {shown}: expected name@version, with letters, digits and ._/- in the name "
                "and letters, digits and ._- in the version"
            )
        if len(text) > MAX_KEY_LENGTH:
            raise UserError(
                f"model key {shown} has {len(text)} characters; at most {MAX_KEY_LENGTH} are allowed"
            )
        segments = [*match["name"].split("/"), match["version"]]
        if any(not segment.strip(".") for segment in segments) or ".." in text:
            raise UserError(f"model key {shown}: '..' and empty or dot-only segments are not allowed")
        return cls(match["name"], match["version"])


def check_dataset_key(text: str, where: str = "") -> str:
    """Return a benchmark's key unchanged, or raise UserError saying which rule it breaks."""
    if _DATASET_KEY.fullmatch(text) and len(text) <= MAX_KEY_LENGTH and ".." not in text:
        return text
    shown = repr(text if len(text) <= 80 else text[:77] + "...")
    raise UserError(
        f"benchmark key {shown}{f' ({where})' if where else ''}: lower-case letters, digits and _.- only, "
        f"no '..', at most {MAX_KEY_LENGTH} characters"
    )


def path_segment(key: str) -> str:
    """Percent-encode a key so that it is exactly one segment of a path or URL."""
    return quote(key, safe="@._-")


def key_of_segment(segment: str) -> str:
    """The inverse of `path_segment`."""
    return unquote(segment)
