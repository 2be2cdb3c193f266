"""axe-core on every kind of page, in light and dark, on a phone and on a desk."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from tests.ui.report.conftest import Report, one_of_each_kind, open_items, ready
from tests.ui.report.test_hostile import hostile

__all__ = ["hostile"]

SEVERE = ("serious", "critical")


def severe(report: Report, name: str, browser: Browser, *, dark: bool, width: int = 1360) -> list[str]:
    """What axe finds on a page, with its first items open."""
    with browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
    ) as context:
        page = context.new_page()
        page.goto(report.address(name))
        ready(page)
        open_items(page, 2)
        results = Axe().run(page, options={"resultTypes": ["violations"]})
    return [
        f"{name}: {one['id']} ({one['impact']}): {one['nodes'][0]['html'][:200]}: "
        f"{one['nodes'][0]['failureSummary']}"
        for one in results.response["violations"]
        if one["impact"] in SEVERE
    ]


DARK = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])


@DARK
def test_axe_finds_nothing_serious_on_any_kind_of_page(
    evaluated: Report, browser: Browser, dark: bool
) -> None:
    pages = [*one_of_each_kind(evaluated), "comparisons/capitals/tiny@2.html"]
    assert [found for name in pages for found in severe(evaluated, name, browser, dark=dark)] == []


@DARK
def test_axe_finds_nothing_serious_where_something_went_wrong(
    hostile: Report, browser: Browser, dark: bool
) -> None:
    """Colours of what went wrong are used on few pages, and forgotten easily."""
    wrong = ("cells/broken", "cells/written", "cells/lost", "damaged", "index.html")
    pages = [name for name in hostile.pages() if name.startswith(wrong)]
    assert len(pages) == 6
    assert [found for name in pages for found in severe(hostile, name, browser, dark=dark)] == []


def test_axe_finds_nothing_serious_on_a_phone(evaluated: Report, browser: Browser) -> None:
    pages = one_of_each_kind(evaluated)
    assert [f for name in pages for f in severe(evaluated, name, browser, dark=False, width=390)] == []


@DARK
def test_axe_finds_nothing_serious_in_a_table_of_differences(
    evaluated: Report, browser: Browser, dark: bool
) -> None:
    assert severe(evaluated, "index.html#from=tiny%401", browser, dark=dark) == []
