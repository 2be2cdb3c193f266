"""What the pages name is there: files, headings, make targets and settings."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval_assets.metrics import METRICS
from resources.settings import VARIABLES
from tests.conftest import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "deployments/**/*.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and GitLab make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links and pictures within the repository."""
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if not re.match(r"[a-z]+:", link):
            yield link


@pytest.mark.parametrize("name", PAGES)
def test_every_link_of_a_page_leads_somewhere(name: str) -> None:
    page = ROOT / name
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("name", PAGES)
def test_every_file_target_and_setting_that_a_page_names_is_there(name: str) -> None:
    text = (ROOT / name).read_text()
    for path in re.findall(r"`((?:eval_assets|resources|tests|deployments|docs)/[\w/.-]*\w)", text):
        assert any((ROOT / f"{path}{ending}").exists() for ending in ("", ".py")), path
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^ *)(?:[A-Z]\w+=\S+ )*make (?:-s )?([a-z][a-z-]+)", text, re.M)) <= targets
    settings = {variable.name for variable in VARIABLES.values()}
    assert set(re.findall(r"\bEVAL_[A-Z_]+[A-Z]\b", text)) <= settings


def test_every_picture_is_on_a_page() -> None:
    shown = {(ROOT / name).parent / link for name in PAGES for link in links(ROOT / name)}
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture in {path.resolve() for path in shown}, picture.name


def test_the_page_on_benchmarks_lists_every_metric_with_what_it_is() -> None:
    page = (ROOT / "docs" / "adding-a-benchmark.md").read_text()
    table = page.partition("## Metrics\n")[2].partition("\n## ")[0]
    rows = {row.split(" | ")[0].strip("|` "): row for row in table.splitlines() if row.startswith("| `")}
    assert list(rows) == list(METRICS)
    assert all(metric.description in rows[name] for name, metric in METRICS.items())
    for name, metric in METRICS.items():
        assert set(re.findall(r"`(\w+)`", rows[name].split(" | ")[1])) == set(metric.tasks)
