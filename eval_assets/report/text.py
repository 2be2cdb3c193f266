"""Text and numbers as people read them; what a model or a benchmark wrote can do no more than be read."""

import re
from datetime import datetime

from markupsafe import Markup

# All controls but tab, line feed and carriage return; marks and overrides of direction, separators that no
# editor shows, the byte order mark, tags and other invisible characters. Joiners stay: scripts need them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
_MINUS, _DASH = "\u2212", "\u2013"
_PICTURES = 0x2400
"""Where Unicode has a picture of each ASCII control character."""


def visible(text: str) -> str:
    """The text with every control and direction character replaced by something that shows.

    A direction override makes a reader see another text than the one that was scored, an escape another than
    was written; ASCII controls become their pictures (``␛``), others their number (``⟨U+202E⟩``).
    """
    return _INVISIBLE.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(_PICTURES + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"


def finalize(value: object) -> object:
    """What a template puts out: `visible` text; markup that this package made stays as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def clipped(text: str | None, limit: int) -> str | None:
    """The text as it is shown, cut after `limit` characters with a word on how much is left out."""
    if text is None:
        return None
    if len(text) <= limit:
        return visible(text)
    return (
        f"{visible(text[:limit])}\n… {len(text) - limit:,} more characters; the whole is in samples.parquet"
    )


def number(value: float | None) -> str:
    """A score: three decimals, fewer for what is large."""
    if value is None:
        return "none"
    if abs(value) < 100:
        return f"{value:.3f}"
    return f"{value:,.1f}" if abs(value) < 1e6 else f"{value:.3g}"


def signed(value: float | None) -> str:
    """A difference, with its sign; a true minus, which is as wide as a plus."""
    if value is None:
        return "none"
    text = number(abs(value))
    return text if float(f"{value:.3g}") == 0 else f"{'+' if value > 0 else _MINUS}{text}"


def interval(low: float | None, high: float | None) -> str:
    """A score's interval."""
    return "no interval" if low is None or high is None else f"{number(low)} {_DASH} {number(high)}"


def signed_interval(low: float | None, high: float | None) -> str:
    """A difference's interval."""
    return "no interval" if low is None or high is None else f"{signed(low)} to {signed(high)}"


def count(value: int | None) -> str:
    """A number of things."""
    return "none" if value is None else f"{value:,}"


def moment(value: datetime | None) -> str:
    """A point in time, to the minute, with its zone."""
    return "" if value is None else f"{value:%Y-%m-%d %H:%M %Z}".strip()


def duration(seconds: float | None) -> str:
    """A span of time in the unit that suits it."""
    if seconds is None:
        return "none"
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(value: int | None) -> str:
    """Bytes."""
    if value is None:
        return "none"
    return f"{value / 2**30:.2f} GB" if value >= 2**30 else f"{value / 2**20:.0f} MB"
