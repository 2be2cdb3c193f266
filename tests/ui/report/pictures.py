"""The pictures of the report in docs/images, from a results store: what `make demo` has left, say.

python -m tests.ui.report.pictures .eval docs/images
"""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from eval_assets.report import naming
from eval_assets.report.building import build_report
from resources.catalog import Catalog
from resources.results import ResultsStore
from tests import browser as chromium
from tests.ui.report.conftest import ready

WIDE, PHONE = (1280, 800), (390, 844)


@dataclass(frozen=True)
class Picture:
    """A page, what is done on it before it is taken, and how large the window is."""

    name: str
    page: str
    act: Callable[[Page], object] | None = None
    window: tuple[int, int] = WIDE
    height: int | None = None
    """Cut off below this."""


def main(store_root: str, folder: Path) -> None:
    """Build the report of a store and take every picture of it that it has pages for."""
    store = ResultsStore(store_root)
    Catalog(store).refresh()
    root = Path(build_report(store, ui="http://127.0.0.1:3000").index).parent
    comparison = store.comparisons()
    worse = [one for one in comparison if one["verdict"]["name"] == "worse"] or comparison
    dataset, model = worse[-1]["dataset"], worse[-1]["model"]
    folder.mkdir(parents=True, exist_ok=True)
    with _browser() as browser:
        for picture in pictures(dataset, model):
            _take(browser, root, picture, folder)


def pictures(dataset: str, model: str) -> list[Picture]:
    """The pictures, of one comparison among others."""

    def open_item(page: Page) -> None:
        item = page.locator(".items li").nth(3)
        item.locator("summary").click()
        item.locator(".sides, .body table").first.scroll_into_view_if_needed()
        page.evaluate("() => scrollBy(0, -120)")

    comparison = naming.comparison_page(dataset, model)
    return [
        Picture("report-leaderboard", "index.html", height=500),
        Picture("report-phone", "index.html", window=PHONE),
        Picture("report-items", comparison, open_item),
    ]


@contextmanager
def _browser() -> Iterator[Browser]:
    path = chromium.find()
    if path is None:
        sys.exit("error: no Chromium: run 'make browser'")
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        yield playwright.chromium.launch(executable_path=path, args=["--disable-gpu", *sandbox])


def _take(browser: Browser, root: Path, picture: Picture, folder: Path) -> None:
    width, height = picture.window
    with browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="light",
        device_scale_factor=2 if picture.window == PHONE else 1.5,
    ) as context:
        page = context.new_page()
        page.goto((root / picture.page).as_uri())
        ready(page)
        if picture.act is not None:
            picture.act(page)
        image = page.screenshot(clip={"x": 0, "y": 0, "width": width, "height": picture.height or height})
    # 256 colours are enough for text and tables, and a quarter of the bytes.
    small = Image.open(io.BytesIO(image)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(folder / f"{picture.name}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
