"""Reports opened in a real Chromium, one of them of a tiny model that was really evaluated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request

from eval_assets.report.building import build_report
from resources.results import ResultsStore
from tests.ui.conftest import MODELS, tiny_project
from tests.ui.pages import Console

DATASETS = ("capitals", "capitals_written", "sentences")
A4_LANDSCAPE = 1032
"""The width of its 273 mm between the margins, in pixels of 1/96 inch."""


@dataclass(frozen=True)
class Report:
    """A built report and the store that it is of."""

    store: ResultsStore

    @property
    def folder(self) -> Path:
        """Where its index is."""
        return Path(self.store.root, "reports")

    def address(self, page: str = "index.html") -> str:
        """A page's address without a server; what follows a # in it stays."""
        path, sign, rest = page.partition("#")
        return (self.folder / path).as_uri() + sign + rest

    def pages(self) -> list[str]:
        """Every page, by its path in the report."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*.html"))


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two versions of a tiny model on three benchmarks, evaluated, judged and reported as in production."""
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        runs = tiny_project(folder, patch)
        assert not any(runs.prepare(DATASETS).values())
        for model in MODELS:
            runs.evaluate_cells(model, DATASETS)
        list(runs.judge(MODELS))
        runs.refresh_leaderboard()
        runs.instance.dispose()
    return Report(ResultsStore(str(folder / "store")))


def reported(store: ResultsStore) -> Report:
    """A store's report."""
    build_report(store, ui="http://127.0.0.1:9/dagster")
    return Report(store)


Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens addresses in fresh pages; at the end none may have reported an error or asked for more."""
    consoles: list[Console] = []
    asked: list[str] = []
    contexts = []

    def note(request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "http://127.0.0.1:")):
            asked.append(request.url)

    def open_page(
        address: str, *, width: int = 1360, dark: bool = False, scripts: bool = True, missing: bool = False
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
        )
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        console = Console()
        console.watch(page)
        page.on("request", note)
        if not missing:  # a file that isn't there is an error, and meant to be one
            consoles.append(console)
        page.goto(address)
        if scripts:
            ready(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [error for console in consoles for error in console.errors] == []
    assert asked == []


def ready(page: Page) -> None:
    """Wait until the page's scripts have done what they do at first: tables, items and charts."""
    page.wait_for_function(
        """() => document.documentElement.dataset.ready === "yes"
            && [...document.querySelectorAll("[data-items]")].every((one) => one.dataset.ready === "yes")
            && [...document.querySelectorAll("[data-chart]")].every((one) => one.dataset.drawn === "yes")"""
    )


def open_items(page: Page, most: int = 40) -> None:
    """Open everything on the page that can be opened, at most so many items."""
    page.evaluate(
        """(most) => [...document.querySelectorAll("main details")].slice(0, most)
            .forEach((one) => { one.open = true; })""",
        most,
    )
    page.wait_for_function(
        """() => [...document.querySelectorAll(".items details[open]")]
            .every((one) => one.querySelector(".body"))"""
    )


def one_of_each_kind(report: Report) -> list[str]:
    """The index, and the last page of each other kind."""
    last = {name.split("/")[0]: name for name in report.pages()}
    assert set(last) == {"index.html", "models", "comparisons", "cells"}
    return list(last.values())
