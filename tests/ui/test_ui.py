"""Dagster's web UI on a running project, driven by clicking in a real Chromium."""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
from playwright.sync_api import Page, Request, expect

from eval_assets.gates import check_specs
from eval_assets.leaderboard import leaderboard
from eval_assets.publishing import report
from resources.records import EvaluationRecord
from tests.committed import committed_in
from tests.ui.conftest import DATASETS, HOSTILE, MODELS, REPORT_URL, Save, Site
from tests.ui.pages import Console, choose_cells, metadata, metadata_keys, open_partitions

CHECKS = sorted(spec.name for spec in check_specs())
CELLS = {f"{dataset}|{model}" for dataset in DATASETS for model in MODELS}


def record(site: Site, cell: str) -> EvaluationRecord:
    """The committed record of a cell."""
    dataset, model = cell.split("|")
    return next(r for r in committed_in(site.runs.store) if (r["dataset"], r["model"]) == (dataset, model))


def until(condition: Callable[[], bool], seconds: float, page: Page) -> None:
    """Wait for a condition outside the page, which goes on living."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        page.evaluate("() => 0")
        threading.Event().wait(0.1)


def test_a_backfill_launched_by_clicking_commits_exactly_the_chosen_cells(
    site: Site, backfill: Console
) -> None:
    assert site.committed() == CELLS
    materialized = site.runs.instance.get_materialized_partitions(dg.AssetKey("evaluation"))
    assert set(materialized) == CELLS
    assert backfill.errors == []


def test_a_cell_shows_its_score_what_it_rests_on_and_its_run(
    site: Site, backfill: Console, page: Page, save: Save
) -> None:
    """Whoever opens a cell looks for the number first; it must not be below the fold."""
    committed = record(site, "capitals|tiny@1")
    open_partitions(page, "capitals|tiny@1")
    expect(page.get_by_text("Materialized", exact=True)).to_be_visible()
    expect(metadata(page, "score")).to_have_text(str(committed["metrics"]["acc"]))
    expect(metadata(page, "primary_metric")).to_have_text("acc")
    expect(metadata(page, "items")).to_have_text("12 of 12")
    expect(metadata(page, "interval_95")).to_have_text(re.compile(r"^0\.\d{4} to 0\.\d{4}$"))
    assert metadata_keys(page)[:3] == ["score", "primary_metric", "interval_95"]
    link = metadata(page, "report").get_by_role("link").first
    expect(link).to_have_attribute("href", f"{REPORT_URL}cells/capitals/tiny@1.html")
    save(page, "4-cell")
    samples = metadata(page, "example_samples").locator("table")
    expect(samples.locator("th")).to_have_text(["item", "prompt", "answer", "expected", "scores"])
    expect(samples.locator("tbody tr")).to_have_count(5)
    first = samples.locator("tbody tr").first
    expect(first).to_contain_text("Question: What is the capital of France? Answer:")
    expect(first.locator("td").nth(3)).to_have_text("Paris")
    samples.scroll_into_view_if_needed()
    save(page, "5-cell-samples")
    run = metadata(page, "computed_by").get_by_role("link")
    expect(run).to_have_text(str(committed["run_id"]))
    run.click()
    expect(page).to_have_url(re.compile(f"/runs/{committed['run_id']}"))
    expect(page.get_by_text("Success", exact=True)).to_be_visible()


def test_a_benchmarks_text_is_shown_and_never_rendered(
    site: Site, backfill: Console, page: Page, save: Save
) -> None:
    """Benchmarks come from strangers: a rendered image tells them who looks, a script does worse."""
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    page.on("request", note)
    open_partitions(page, "sentences|tiny@1")
    samples = metadata(page, "example_samples").locator("table")
    hostile = samples.locator("tbody tr").last.locator("td").nth(1)
    expect(hostile).to_have_text(HOSTILE)
    assert hostile.locator("img, a, strong, code").count() == 0
    assert not any("pixel.png" in url for url in asked)
    assert page.title() != "taken"
    hostile.scroll_into_view_if_needed()
    save(page, "6-perplexity-samples")


def test_the_checks_of_a_cell_are_listed_with_their_outcome(
    site: Site, backfill: Console, page: Page, save: Save
) -> None:
    """Dagster shows a cell's check only while it points at the cell's latest materialization."""
    page.goto("/assets/evaluation?view=checks")
    expect(page.get_by_text(f"Checks ({len(CHECKS)})")).to_be_visible()
    for name in CHECKS:
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    store = site.runs.store
    for name in ("complete", "above_chance"):
        page.goto(f"/assets/evaluation?view=checks&checkDetail={name}")
        page.get_by_role("button", name="Execution history").or_(
            page.get_by_role("tab", name="Execution history")
        ).click()
        for cell in CELLS:
            row = page.locator("tr").filter(has_text=cell)
            score = record(site, cell)["score"]
            chance = cell.startswith("capitals") and score is not None and score["value"] <= 0.25
            expect(row).to_contain_text("Failed" if name == "above_chance" and chance else "Passed")
    save(page, "7-check-history")
    page.get_by_role("tab", name="Partitions").last.click()
    scores = [r["score"] for r in committed_in(store) if r["dataset"] == "capitals"]
    guessing = sum(score is not None and score["value"] <= 0.25 for score in scores)
    expect(page.get_by_text(f"Passed ({4 - guessing})")).to_be_visible()
    expect(page.get_by_text(f"Failed ({guessing})", exact=True)).to_be_visible()
    save(page, "8-check-partitions")


def test_the_score_and_each_metric_are_plotted_over_the_partitions(
    site: Site, backfill: Console, page: Page, save: Save
) -> None:
    page.goto("/assets/evaluation?view=overview")
    page.get_by_role("button", name="Plots").click()
    expect(page.get_by_role("button", name="Partitions")).to_be_visible()
    for name in ("metric/acc", "metric/word_perplexity", "score"):
        title = page.get_by_text(name, exact=True)
        expect(title).to_be_visible()
        plot = title.locator("xpath=following::canvas[1]")
        expect(plot).to_be_visible()
        box = plot.bounding_box()
        assert box is not None
        assert box["height"] > 50
    page.get_by_text("metric/acc", exact=True).scroll_into_view_if_needed()
    save(page, "9-plots")


def test_the_asset_says_what_it_is(site: Site, page: Page, save: Save) -> None:
    page.goto("/assets/evaluation?view=overview")
    expect(page.get_by_text("One model version on one benchmark")).to_be_visible()
    expect(page.get_by_text("What the model was shown.")).to_be_visible()
    save(page, "10-overview")
    page.goto("/assets/evaluation?view=lineage")
    for name in ("model_version", "benchmark", "leaderboard"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    save(page, "11-lineage")


def test_the_report_shows_its_table_a_picture_and_where_it_is(
    site: Site, backfill: Console, page: Page, save: Save
) -> None:
    """Who looks at the UI decides there whether to open the report at all."""
    dg.materialize(
        [leaderboard, report, dg.AssetSpec("evaluation")],
        resources={"store": site.runs.store, "settings": site.runs.settings},
        instance=site.runs.instance,
    )
    page.goto("/assets/report?view=events")
    expect(metadata(page, "report").get_by_role("link").first).to_have_attribute("href", REPORT_URL)
    table = metadata(page, "leaderboard").locator("table")
    expect(table.locator("tbody tr")).to_have_count(4)
    save(page, "14-report")
    # As long a text as a picture is folded away; a click shows it.
    metadata(page, "picture").get_by_text("[Show Markdown]").click()
    picture = page.get_by_role("img", name="The leaderboard")
    expect(picture).to_be_visible()
    assert picture.evaluate("(one) => one.complete && one.naturalWidth") > 400
    save(page, "15-report-picture")


def test_the_registering_job_can_be_launched_from_its_page(site: Site, page: Page, save: Save) -> None:
    page.goto("/locations/evaluation/jobs/register_models")
    expect(page.get_by_text("Look at the registry: verify, measure and record")).to_be_visible()
    page.get_by_role("link", name="Launchpad").or_(page.get_by_role("tab", name="Launchpad")).first.click()
    expect(page.get_by_role("button", name="Launch Run")).to_be_enabled()
    expect(page.get_by_text("No errors")).to_be_visible()
    save(page, "12-launchpad")


def test_a_run_terminated_in_the_ui_stops_at_once_and_keeps_its_finished_samples(
    site: Site, page: Page, save: Save
) -> None:
    open_partitions(page)
    choose_cells(page, ["capitals_written"], ["tiny@2"])
    page.get_by_role("button", name="Launch 1 run").click()
    expect(page.get_by_text("Launched run")).to_be_visible()
    page.get_by_text("View", exact=True).click()
    expect(page).to_have_url(re.compile("/runs/"))
    run_id = page.url.rsplit("/", 1)[1].split("?")[0]
    store, instance = site.runs.store, site.runs.instance
    progress = Path(store.root, "evaluations", "capitals_written")
    until(lambda: any(progress.glob("**/part-*.parquet")), 120, page)

    page.get_by_role("button", name="Terminate").click()
    page.get_by_role("button", name="Terminate 1 run").click()
    until(lambda: instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.CANCELED, 15, page)  # type: ignore[union-attr]  # the run exists
    page.reload()  # its header follows the run's status with a delay
    expect(page.get_by_text("Canceled", exact=True).first).to_be_visible()
    save(page, "13-terminated")

    assert "capitals_written|tiny@2" not in site.committed()
    [cell] = site.runs.cells(["tiny@2"], ["capitals_written"])
    # Its successor gets the lease at once and finds what was finished.
    with store.writer(cell) as writer:
        finished, damaged = writer.finished()
    assert damaged == []
    assert len({sample.sample_id for sample in finished}) == len(finished) > 0
