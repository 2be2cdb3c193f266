"""The report as people use it: found, read, sorted, filtered, compared, with mouse and keyboard."""

import re
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from eval_assets.report.text import visible
from resources.records import EvaluationRecord
from tests.committed import committed_in
from tests.servers import free_port, serving
from tests.ui.conftest import Save
from tests.ui.report.conftest import A4_LANDSCAPE, Open, Report, one_of_each_kind, open_items, ready


def column(page: Page, name: str) -> list[str]:
    """The scores of a benchmark's column, from top to bottom."""
    head = page.locator("#leaderboard thead th").filter(has_text=name).first
    position = head.evaluate("(head) => head.cellIndex")
    return page.locator(f"#leaderboard tbody tr td:nth-child({position + 1}) b").all_inner_texts()


def test_a_report_opens_from_a_folder_and_leads_to_every_kind_of_page(
    evaluated: Report, opened: Open, save: Save
) -> None:
    """Somebody gets it as a zip: no server, no network, and each page must still work."""
    page = opened(evaluated.address())
    save(page, "report-1-index")
    expect(page.locator("#status")).to_have_text("2 of 2 versions, 3 of 3 benchmarks")
    page.get_by_role("link", name="tiny@2").click()
    ready(page)
    expect(page.get_by_role("heading", level=1)).to_contain_text("tiny@2")
    save(page, "report-2-model")
    page.get_by_role("link", name=re.compile("equivalent|not worse|worse|better|undecided")).first.click()
    ready(page)
    expect(page.get_by_role("heading", level=1)).to_have_text("tiny@2 against tiny@1")
    save(page, "report-3-comparison")
    page.get_by_role("navigation").get_by_role("link").nth(2).click()
    ready(page)
    page.locator(".items summary").first.click()
    expect(page.get_by_role("heading", name="Prompt", exact=True)).to_be_visible()
    save(page, "report-4-cell")
    page.get_by_role("link", name="Leaderboard").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Evaluation report")


def test_it_works_behind_a_web_server_too(evaluated: Report, opened: Open, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    url = f"http://127.0.0.1:{port}"
    with serving(command, url, tmp_path / "log", folder=evaluated.folder):
        for name in one_of_each_kind(evaluated):
            page = opened(f"{url}/{name}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            open_items(page, 2)
            # Its icon comes last: a page still asking when the server ends would report an error.
            page.wait_for_load_state("networkidle")
            page.close()


def test_without_scripts_every_number_can_still_be_read(evaluated: Report, opened: Open) -> None:
    page = opened(evaluated.address(), scripts=False)
    expect(page.locator("#leaderboard tbody tr")).to_have_count(2)
    assert all(re.fullmatch(r"[\d.,]+", text) for text in column(page, "capitals"))


def test_on_a_phone_the_column_that_the_table_is_sorted_by_can_be_seen(
    evaluated: Report, opened: Open
) -> None:
    """A link that somebody sent has its order; an order by what isn't there looks like none."""
    page = opened(evaluated.address(), width=390)
    expect(page.locator("#leaderboard thead th").nth(1)).to_be_hidden()
    page = opened(evaluated.address("index.html#sort=1+descending"), width=390)
    expect(page.get_by_role("columnheader", name=re.compile("^Unbeaten"))).to_be_visible()
    expect(page.locator("#leaderboard tbody tr td:nth-child(2)").first).to_be_visible()


def test_who_hears_the_table_hears_what_a_verdict_is_against(evaluated: Report, opened: Open) -> None:
    page = opened(evaluated.address())
    cell = page.locator("#leaderboard tbody tr").filter(has=page.get_by_role("link", name="tiny@2"))
    name = re.compile(r"\d\.\d{3} . [a-z ]+ against tiny@1 0\.")
    expect(cell.get_by_role("link", name=name)).to_have_count(2)


def test_the_table_sorts_by_mouse_and_keyboard_and_says_how(evaluated: Report, opened: Open) -> None:
    """Who hears the table instead of seeing it knows its order by aria-sort alone."""
    page = opened(evaluated.address())
    head = page.get_by_role("columnheader", name=re.compile("^sentences"))
    expect(head).to_have_attribute("aria-sort", "none")
    head.get_by_role("button").click()
    # Perplexity: lower is better, so the best comes first in ascending order.
    expect(head).to_have_attribute("aria-sort", "ascending")
    up = [float(text.replace(",", "")) for text in column(page, "sentences")]
    assert up == sorted(up)
    page.keyboard.press("Enter")
    expect(head).to_have_attribute("aria-sort", "descending")
    assert [float(text.replace(",", "")) for text in column(page, "sentences")] == up[::-1]
    page.get_by_role("columnheader", name="Version").get_by_role("button").press("Space")
    expect(head).to_have_attribute("aria-sort", "none")
    assert page.locator("#leaderboard tbody th a").all_inner_texts() == ["tiny@1", "tiny@2"]


def test_versions_and_benchmarks_are_filtered_by_text_and_the_address_keeps_it(
    evaluated: Report, opened: Open
) -> None:
    page = opened(evaluated.address())
    page.get_by_label("Versions", exact=True).fill("@2")
    page.get_by_label("Benchmarks", exact=True).fill("written")
    expect(page.locator("#status")).to_have_text("1 of 2 versions, 1 of 3 benchmarks")
    expect(page.locator("#leaderboard tbody tr:visible")).to_have_count(1)
    expect(page.get_by_role("columnheader", name=re.compile("^sentences"))).to_be_hidden()
    again = opened(page.url)
    expect(again.locator("#status")).to_have_text("1 of 2 versions, 1 of 3 benchmarks")
    expect(again.get_by_label("Versions", exact=True)).to_have_value("@2")


def test_differences_from_a_pinned_version_are_those_that_were_recorded(
    evaluated: Report, opened: Open, save: Save
) -> None:
    """An unpaired difference beside a paired verdict would contradict it."""
    [row] = [r for r in evaluated.store.comparisons() if r["dataset"] == "capitals"]
    recorded = row["comparison"]["difference"]
    for pinned, other, sign in (("tiny@1", "tiny@2", 1), ("tiny@2", "tiny@1", -1)):
        page = opened(evaluated.address())
        page.get_by_label("Differences from", exact=True).select_option(label=pinned)
        first = page.locator("#leaderboard tbody tr").first
        expect(first.locator("th a")).to_have_text(pinned)
        cell = page.locator("#leaderboard tbody tr").filter(
            has=page.get_by_role("link", name=other, exact=True)
        )
        cell = cell.locator("td").nth(1)
        shown = cell.locator("b").inner_text().replace("\u2212", "-")
        assert float(shown) == pytest.approx(sign * recorded, abs=0.0006)
        better = row["verdict"]["name"] in ("better", "worse")
        assert cell.locator("i").count() == (1 if better else 0)
        save(page, f"report-5-from-{pinned}")
    page.get_by_label("Differences from", exact=True).select_option("")
    assert all(re.fullmatch(r"[\d.,]+", text) for text in column(page, "capitals"))


def test_items_that_differ_are_shown_side_by_side_word_by_word(
    evaluated: Report, opened: Open, save: Save
) -> None:
    page = opened(evaluated.address("comparisons/capitals_written/tiny@2.html"))
    shown = page.locator(".items li")
    assert shown.count() > 0
    shown.first.locator("summary").click()
    sides = shown.first.locator(".sides > div")
    expect(sides).to_have_count(2)
    expect(sides.nth(0).locator("h3")).to_have_text("tiny@1")
    before = {s.sample_id: s for r in records(evaluated, "tiny@1") for s in evaluated.store.samples(r)}
    after = {s.sample_id: s for r in records(evaluated, "tiny@2") for s in evaluated.store.samples(r)}
    identity = shown.first.locator(".facts-line").last.inner_text().split()[1]
    outputs = [before[identity].output, after[identity].output]
    assert outputs[0] != outputs[1]
    for side, output, tag in zip(sides.all(), outputs, ("del", "ins"), strict=True):
        if output:
            assert side.locator(".text").evaluate("(one) => one.textContent") == visible(output)
            assert side.locator(tag).count() > 0
    save(page, "report-6-differing")


def records(report: Report, model: str) -> list[EvaluationRecord]:
    every = committed_in(report.store)
    return [r for r in every if (r["dataset"], r["model"]) == ("capitals_written", model)]


def test_samples_are_filtered_by_score_group_and_text(evaluated: Report, opened: Open) -> None:
    page = opened(evaluated.address("cells/capitals/tiny@1.html"))
    [record] = [
        r for r in committed_in(evaluated.store) if (r["dataset"], r["model"]) == ("capitals", "tiny@1")
    ]
    samples = evaluated.store.samples(record)
    status = page.locator(".items [role=status]")
    expect(status).to_have_text(f"{len(samples)} of {len(samples)} items")
    right = [sample for sample in samples if sample.scores["acc"] == 1]
    page.get_by_label("Score", exact=True).select_option(label="1 (right)")
    expect(status).to_have_text(f"{len(right)} of {len(samples)} items")
    page.get_by_label("Score", exact=True).select_option("")
    page.get_by_label("Group", exact=True).select_option(label="Europe")
    europe = [sample for sample in samples if sample.group == "Europe"]
    expect(status).to_have_text(f"{len(europe)} of {len(samples)} items")
    page.get_by_label("Group", exact=True).select_option("")
    page.get_by_label("Search", exact=True).fill("capital of FRANCE")
    expect(status).to_have_text(f"1 of {len(samples)} items")
    again = opened(page.url)
    expect(again.locator(".items [role=status]")).to_have_text(f"1 of {len(samples)} items")
    page.get_by_label("Search", exact=True).fill("no such text")
    expect(status).to_have_text(f"0 of {len(samples)} items")


def test_an_item_opens_by_keyboard_alone(evaluated: Report, opened: Open) -> None:
    page = opened(evaluated.address("cells/capitals/tiny@1.html"))
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.tagName") == "SUMMARY":
            break
    expect(page.locator(".items summary").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Choices")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Choices")).to_be_hidden()


def test_charts_are_drawn_and_say_their_numbers_under_the_mouse(evaluated: Report, opened: Open) -> None:
    page = opened(evaluated.address("models/tiny@2.html"))
    points = page.locator(".chart .mark-symbol.role-mark path")
    assert points.count() == 6
    points.first.scroll_into_view_if_needed()
    points.first.hover(force=True)
    expect(page.locator("#vg-tooltip-element")).to_be_visible()
    expect(page.locator("#vg-tooltip-element")).to_contain_text("95 % interval")


@pytest.mark.parametrize("width", [390, 1360])
def test_no_page_is_wider_than_the_screen(evaluated: Report, opened: Open, width: int) -> None:
    """On a phone a page that scrolls sideways as a whole can't be read; wide tables scroll by themselves."""
    for name in one_of_each_kind(evaluated):
        page = opened(evaluated.address(name), width=width)
        open_items(page, 1)
        assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0, name


def test_on_paper_nothing_is_cut_off_and_no_control_is_printed(evaluated: Report, opened: Open) -> None:
    for name in one_of_each_kind(evaluated):
        page = opened(evaluated.address(name), width=A4_LANDSCAPE, dark=True)
        page.emulate_media(media="print")
        assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0, name
        assert page.locator(".tools:visible, .pager:visible, .top:visible").count() == 0
        cut = page.evaluate(
            """() => [...document.querySelectorAll(".scroll, .text")]
                .filter((one) => getComputedStyle(one).overflowY !== "visible").length"""
        )
        assert cut == 0
        assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert all(page.locator(".paper").evaluate_all("(all) => all.map((one) => one.checkVisibility())"))
        # What is folded away on the screen is there on paper.
        tables = page.locator("main .fold table").evaluate_all("(all) => all.map((one) => one.offsetHeight)")
        assert all(height > 0 for height in tables)
        assert page.pdf()[:5] == b"%PDF-"
