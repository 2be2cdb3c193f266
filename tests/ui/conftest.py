"""A project with its UI and daemon running, a Chromium to look at it, and a backfill launched by clicking."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from eval_assets.commands.runs import Runs
from tests import browser as chromium
from tests.committed import committed_in
from tests.conftest import BENCHMARKS, ROOT
from tests.tiny import make_model
from tests.ui.pages import Console, choose_cells, open_partitions
from tests.ui.server import dagster_dev

DATASETS = ("capitals", "sentences")
MODELS = ("tiny@1", "tiny@2")
BACKFILL_SECONDS = 180.0
REPORT_URL = "http://127.0.0.1:9/report/"
LARGE = 12_000
"""Rows appended to the benchmark whose evaluation is to be cancelled."""
HOSTILE = (
    '<img src=x onerror=document.title="taken"> **b** [a](javascript:alert(1)) ![i](/pixel.png) | `code` \\#'
)
"""A benchmark's text that must be shown and not rendered."""

Save = Callable[[Page, str], None]


@dataclass(frozen=True)
class Site:
    """A running project: its UI's address, and itself as a terminal would open it."""

    url: str
    runs: Runs

    def committed(self) -> set[str]:
        """The cells (``dataset|model``) with a committed evaluation."""
        return {f"{record['dataset']}|{record['model']}" for record in committed_in(self.runs.store)}


def tiny_project(folder: Path, patch: pytest.MonkeyPatch, **settings: str) -> Runs:
    """A project of its own in a folder: tiny@1 and tiny@2 registered, the environment set for it."""
    for version in (1, 2):
        make_model(folder / "models" / "tiny" / str(version), seed=version)
    home = folder / "home"
    home.mkdir()
    shutil.copy(ROOT / "deployments" / "local" / "dagster.yaml", home)
    environment = {
        "DAGSTER_HOME": home,
        "EVAL_STORE": folder / "store",
        "EVAL_REGISTRY": folder / "models",
        "EVAL_DEVICE": "cpu",
        "EVAL_THREADS": "1",
        **settings,
    }
    for name, value in environment.items():
        patch.setenv(name, str(value))
    runs = Runs()
    runs.register(MODELS)
    return runs


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """tiny@1 and tiny@2 registered; capitals, sentences and a large capitals_written prepared."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        settings = {
            "DAGSTER_DISABLE_TELEMETRY": "yes",
            "EVAL_BATCH_TOKENS": "256",
            "EVAL_REPORT_URL": REPORT_URL,
        }
        runs = tiny_project(folder, patch, **settings)
        _prepare(runs)
        with dagster_dev(folder / "dagster-dev.log") as url:
            yield Site(url, runs)
        runs.instance.dispose()


def _prepare(runs: Runs) -> None:
    files = [BENCHMARKS / "capitals.csv", BENCHMARKS / "sentences.jsonl"]
    before = {path: path.read_bytes() for path in files}
    try:
        with files[1].open("a", encoding="utf-8") as file:
            file.write(json.dumps({"text": HOSTILE}) + "\n")
        assert runs.prepare(DATASETS) == {"capitals": None, "sentences": None}
        with files[0].open("a", encoding="utf-8") as file:
            file.writelines(f"Land {i},Town {i},A {i},B {i},C {i},Europe\n" for i in range(LARGE))
        assert runs.prepare(["capitals_written"]) == {"capitals_written": None}
    finally:
        for path, content in before.items():
            path.write_bytes(content)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, headless, that asks nobody outside for anything."""
    path = chromium.find()
    if path is None:
        pytest.fail("no Chromium: run 'make browser' (make test does)")
    quiet = ["gpu", "background-networking", "component-update", "sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                *(f"--disable-{what}" for what in quiet),
                "--no-first-run",
                # Chromium refuses to start with its sandbox as root, which CI often is.
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Save:
    """Save a screenshot of the page under a name, also into the folder of --screenshots."""
    folders = [tmp_path_factory.mktemp("screenshots")]
    if asked := request.config.getoption("--screenshots"):
        folders.append(Path(asked))
        folders[-1].mkdir(parents=True, exist_ok=True)

    def save(page: Page, name: str) -> None:
        image = page.screenshot()
        for folder in folders:
            (folder / f"{name}.png").write_bytes(image)

    return save


@pytest.fixture
def console() -> Console:
    """Errors of the test's page."""
    return Console()


@pytest.fixture
def page(site: Site, browser: Browser, console: Console) -> Iterator[Page]:
    """A fresh page of the UI; at the end no error may have been reported on it."""
    page = _page(site, browser, console)
    yield page
    page.context.close()
    assert console.errors == []


def _page(site: Site, browser: Browser, console: Console) -> Page:
    context = browser.new_context(base_url=site.url, viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    page = context.new_page()
    console.watch(page)
    return page


@pytest.fixture(scope="module")
def backfill(site: Site, browser: Browser, save: Save) -> Console:
    """Four cells materialized as a person would: choose, launch, watch; returns the page's errors."""
    console = Console()
    page = _page(site, browser, console)
    open_partitions(page)
    save(page, "1-grid-before")
    choose_cells(page, DATASETS, MODELS)
    save(page, "2-dialog")
    page.get_by_role("button", name="Launch backfill").click()
    expect(page.get_by_text("Created backfill")).to_be_visible()
    expect(page.get_by_text("Materialized (4)")).to_be_visible(timeout=BACKFILL_SECONDS * 1000)
    save(page, "3-grid-after")
    page.context.close()
    return console
