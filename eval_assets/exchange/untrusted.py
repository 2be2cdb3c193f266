"""Single values of JSON that nobody vouches for, taken for what they should be or for nothing."""

import math
from collections.abc import Mapping
from typing import Any

_MOST_ENTRIES = 10_000


def section(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object of that name; an empty one where there is none."""
    found = content.get(name)
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, or None for anything else; a bool counts as 0 or 1."""
    if isinstance(value, (bool, int, float)):
        try:
            found = float(value)
        except OverflowError:
            return None
        return found if math.isfinite(found) else None
    return None


def whole(value: Any, largest: int = 2**53) -> int | None:
    """A whole number from 0 on, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= largest else None


def text_number(value: Any) -> float | None:
    """A finite number, also one that is written as text (as the harness writes log-likelihoods)."""
    if isinstance(value, str) and len(value) < 64:
        try:
            value = float(value)
        except ValueError:
            return None
    return number(value)


def short(value: Any, most: int = 80) -> str:
    """The beginning of a text; an empty one for anything else."""
    text = value if isinstance(value, str) else ""
    return text.encode("utf-8", "replace").decode()[:most]


def finite(value: Any) -> Any:
    """JSON data without NaN and infinities, which a record may not hold."""
    if isinstance(value, dict):
        return {short(name, 200): finite(entry) for name, entry in list(value.items())[:_MOST_ENTRIES]}
    if isinstance(value, (str, type(None))):
        return None if value is None else short(value, 400)
    if isinstance(value, bool):
        return value
    return number(value) if not isinstance(value, int) or abs(value) > 2**53 else value
