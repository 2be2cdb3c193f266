"""What a person does in Dagster's web UI, as functions on a playwright page."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from playwright.sync_api import ConsoleMessage, Locator, Page, expect


@dataclass
class Console:
    """The errors of a page: its console's, those that no code caught, and refused requests.

    Dagster's own noise (Apollo's "An error occurred!", a query that ended with its page) is at the level
    of warnings, which are not kept.
    """

    errors: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        """Collect the errors of this page from now on."""
        page.on("console", self._message)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("response", lambda r: self.errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)

    def _message(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location['url']})")


def open_partitions(page: Page, cell: str | None = None) -> None:
    """Open the partitions of the evaluation asset, or one cell (``dataset|model``) of them."""
    page.goto("/assets/evaluation?view=partitions" + (f"&partition={cell}" if cell else ""))
    expect(page.get_by_text(re.compile(r"^Missing \(\d+\)$"))).to_be_visible()


def choose_cells(page: Page, datasets: Sequence[str], models: Sequence[str]) -> None:
    """Open the dialog "Materialize…" and tick these datasets and models."""
    page.get_by_role("button", name="Materialize…").click()
    # Nothing is selected at first; a chosen dimension shows its values in place of the invitation.
    for keys in (datasets, models):
        page.get_by_text("Select a partition or create one").first.click()
        wanted = page.get_by_placeholder("Filter partitions")
        for key in keys:
            wanted.fill(key)
            page.locator("label").filter(has=page.get_by_title(key, exact=True)).click()
        page.get_by_text("Launch runs to materialize evaluation").click()
        expect(wanted).to_be_hidden()
    count = len(datasets) * len(models)
    expect(page.get_by_text(f"{count} partition" + ("s" if count > 1 else ""), exact=True)).to_be_visible()


def metadata(page: Page, key: str) -> Locator:
    """The value beside a key in a table of metadata."""
    row = page.locator("tr").filter(has=page.locator("td:first-child").get_by_text(key, exact=True))
    return row.locator("td").nth(1)


def metadata_keys(page: Page) -> list[str]:
    """The keys of the open cell's metadata, in the order shown."""
    table = page.locator("table").filter(has=page.get_by_text("primary_metric", exact=True)).first
    return [text.strip() for text in table.locator("> tbody > tr > td:first-child").all_inner_texts()]
