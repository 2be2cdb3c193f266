"""Where a page is, and how one page points to another."""

import hashlib
import posixpath
import re
from urllib.parse import quote

INDEX = "index.html"
DAMAGED = "damaged/files.html"
"""The list of what can't be read."""
_PLAIN = re.compile(r"[a-z0-9_@][a-z0-9_@.-]{0,99}")


def slug(key: str) -> str:
    """One segment of a path for a key, different for different keys, also where case doesn't count.

    What a web server or a file system may read in two ways (percent signs, slashes, capitals, long names)
    becomes a hyphen, and the key's digest follows; a tilde, which no key holds, comes before that.
    """
    if _PLAIN.fullmatch(key):
        return key
    plain = re.sub(r"[^a-z0-9_@.-]+", "-", key.lower()).strip(".-")[:80]
    return f"{plain or 'key'}~{hashlib.sha256(key.encode()).hexdigest()[:10]}"


def model_page(model: str) -> str:
    """The page of a model version."""
    return f"models/{slug(model)}.html"


def cell_page(dataset: str, model: str) -> str:
    """The page of a model version on a benchmark."""
    return f"cells/{slug(dataset)}/{slug(model)}.html"


def comparison_page(dataset: str, model: str) -> str:
    """The page of a cell against its baseline's."""
    return f"comparisons/{slug(dataset)}/{slug(model)}.html"


def pair_page(dataset: str, model: str, baseline: str) -> str:
    """The page of a cell against another version's than the one that it was judged against."""
    return f"comparisons/{slug(dataset)}/{slug(model)}/{slug(baseline)}.html"


def address(site: str, page: str) -> str:
    """Where people open a page of the report whose index is at the URL `site`."""
    if page == INDEX:
        return site
    return f"{site.removesuffix(INDEX).rstrip('/')}/{quote(page, safe='/@~')}"


def link(page: str, target: str) -> str:
    """The address of `target` as `page` writes it: relative, so that the site may stand anywhere."""
    return quote(posixpath.relpath(f"/{target}", f"/{posixpath.dirname(page)}"), safe="/@~")
