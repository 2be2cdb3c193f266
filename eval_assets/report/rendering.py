"""Templates, styles and scripts: what a page looks like, and the digest of all that decides it."""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined

from eval_assets.report import naming, text

_PACKAGE = Path(__file__).parent
_STATIC = ("report.css", "report.js", "items.js", "icon.svg")
VEGA = "vega.js"
_FILTERS = (
    text.number, text.signed, text.interval, text.signed_interval, text.count, text.moment, text.duration,
    text.size,
)  # fmt: skip


def render(template: str, page: str, **values: Any) -> bytes:
    """A page's HTML. What is put into it is escaped, and shows its control characters (`text.visible`)."""
    addresses = {name: naming.link(page, path) for name, path in _paths().items()}
    return (
        _environment()
        .get_template(template)
        .render(asset=addresses, home=naming.link(page, naming.INDEX), **values)
        .encode()
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("eval_assets.report"),
        autoescape=True,
        finalize=text.finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in _FILTERS:
        environment.filters[function.__name__] = function
    return environment


@cache
def _paths() -> Mapping[str, str]:
    """Each asset's path; its content's digest is part of it, so that a page keeps what it was made with."""
    paths = {}
    for name in _STATIC:
        stem, _, ending = name.rpartition(".")
        digest = hashlib.sha256((_PACKAGE / "static" / name).read_bytes()).hexdigest()[:10]
        paths[name] = f"assets/{stem}-{digest}.{ending}"
    paths[VEGA] = f"assets/vega-{vl_convert.get_vega_version()}-{version('vl-convert-python')}.js"
    return paths


class Assets(Mapping[str, bytes]):
    """The site's styles and scripts: path -> content, made when it is asked for (Vega's takes seconds)."""

    def __iter__(self) -> Any:
        return iter(_paths().values())

    def __len__(self) -> int:
        return len(_paths())

    def __getitem__(self, path: str) -> bytes:
        name = next(name for name, one in _paths().items() if one == path)
        # The bundle declares names of one letter, which are not to meet those of other scripts.
        return _vega() if name == VEGA else (_PACKAGE / "static" / name).read_bytes()


@cache
def _vega() -> bytes:
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"(() => {{{bundle}}})();\n".encode()


@cache
def code_digest() -> str:
    """SHA-256 over all code, templates and packages that decide what a page is."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*")):
        if path.suffix in (".py", ".j2", ".js", ".css", ".svg"):
            digest.update(f"{path.relative_to(_PACKAGE)}\0".encode() + path.read_bytes())
    for package in ("metrics", "statistics"):  # what compares pairs
        for path in sorted((_PACKAGE.parent / package).glob("*.py")):
            digest.update(f"{package}/{path.name}\0".encode() + path.read_bytes())
    for package in ("altair", "jinja2", "vl-convert-python"):
        digest.update(f"{package}={version(package)}".encode())
    return digest.hexdigest()
