"""Building the site: what is written, what is kept, and what a build leaves that is interrupted."""

import errno
import hashlib
import html
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq
import pytest

from eval_assets.report import building as building_module
from eval_assets.report.building import Limits, Report, build_report
from resources.catalog import Catalog
from resources.errors import TransientError, UserError
from resources.records import EvaluationRecord
from resources.results import ResultsStore
from resources.retention.texts import without_texts
from resources.storage import parquet
from tests.committed import committed_in
from tests.eval_assets.report.stores import choice_sample, commit, usual_store


@pytest.fixture
def usual(store: ResultsStore) -> ResultsStore:
    """A store of three versions and two benchmarks, with its catalogue."""
    return usual_store(store)


def site_of(store: ResultsStore) -> Path:
    return Path(store.root, "reports")


def contents(store: ResultsStore) -> dict[str, bytes]:
    folder = site_of(store)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def links(page: Path) -> Iterator[Path]:
    """The files that a page points to."""
    for address in re.findall(r'(?:href|src|data-list)="([^"#]+)"', page.read_text()):
        if not urlsplit(address).scheme:
            yield page.parent / unquote(address)


def broken_links(store: ResultsStore) -> list[str]:
    """What a person runs into who follows links from the index."""
    folder = site_of(store)
    found = []
    for name in reachable(store):
        page = folder / name
        found += [f"{page}: {target}" for target in links(page) if not target.resolve().is_file()]
        for address in re.findall(r'data-list="([^"]+)"', page.read_text()):
            listed = page.parent / unquote(address)
            chunks = re.findall(r"[0-9a-f]{16}\.js", listed.read_text() if listed.is_file() else "")
            found += [f"{page}: {chunk}" for chunk in chunks if not (listed.parent / chunk).is_file()]
    return found


def reachable(store: ResultsStore) -> set[str]:
    """The pages that a person gets to by following links from the index."""
    folder = site_of(store).resolve()
    seen: set[Path] = set()
    todo = [folder / "index.html"]
    while todo:
        page = todo.pop()
        if page not in seen and page.is_file():
            seen.add(page)
            todo += [target.resolve() for target in links(page) if target.suffix == ".html"]
    return {str(page.relative_to(folder)) for page in seen}


def test_every_page_is_reached_from_the_index_and_no_link_is_broken(usual: ResultsStore) -> None:
    report = build_report(usual)
    assert report.index == f"{usual.root}/reports/index.html"
    assert broken_links(usual) == []
    pages = {path for path in contents(usual) if path.endswith(".html")}
    assert reachable(usual) == pages
    assert report.pages_written == len(pages) > 6


def test_a_second_build_of_the_same_catalogue_writes_nothing(usual: ResultsStore) -> None:
    """Ten thousand pages written again each night would be as many uploads and a site that is never still."""
    first = build_report(usual)
    times = {path: path.stat().st_mtime_ns for path in site_of(usual).rglob("*")}
    second = build_report(usual)
    assert (second.pages_written, second.pages_kept, second.pages_removed) == (0, first.pages_written, 0)
    assert {path: path.stat().st_mtime_ns for path in site_of(usual).rglob("*")} == times


def test_one_new_evaluation_writes_only_the_pages_that_show_it(usual: ResultsStore) -> None:
    build_report(usual)
    before = contents(usual)
    commit(usual, "capitals", "new@1", [choice_sample(i, True) for i in range(20)], day=9)
    Catalog(usual).refresh()
    report = build_report(usual)
    after = contents(usual)
    changed = {path for path in after if path.endswith(".html") and after[path] != before.get(path)}
    assert {"index.html", "cells/capitals/new@1.html"} <= changed
    assert not any("tiny" in path and path.startswith("cells") for path in changed)
    assert report.pages_written == len(changed)
    assert broken_links(usual) == []


def test_changed_code_makes_every_page_again(usual: ResultsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_report(usual)
    monkeypatch.setattr(building_module, "code_digest", lambda: "another")
    assert build_report(usual).pages_written == first.pages_written


def test_pages_of_what_was_deleted_go_away_and_other_peoples_files_stay(usual: ResultsStore) -> None:
    build_report(usual)
    note = (
        site_of(
            usual,
        )
        / "notes.txt"
    )
    note.write_text("mine")
    [folder] = Path(usual.root, "evaluations", "written", "tiny@3").iterdir()
    for path in folder.iterdir():
        path.unlink()
    Catalog(usual).refresh()
    report = build_report(usual)
    assert report.pages_removed > 0
    assert not [path for path in contents(usual) if "tiny@3" in path]
    assert note.read_text() == "mine"
    assert broken_links(usual) == []


def test_the_leaderboard_is_in_the_order_of_names_whatever_was_asked(usual: ResultsStore) -> None:
    """An order by wins puts on top whoever was asked so few items that nobody can be shown to be better."""
    commit(usual, "capitals", "few@1", [choice_sample(i, False) for i in range(3)], day=9)
    commit(usual, "capitals", "tiny@3", [choice_sample(i, True) for i in range(60)], day=9)
    Catalog(usual).refresh()
    build_report(usual)
    index = text_of(usual, "index.html")
    names = re.findall(r'<th scope="row"><a [^>]*>([^<]+)</a>', index)
    assert names == ["few@1", "org/Other@1", "tiny@3", "tiny@2", "tiny@1"]
    assert 'aria-sort="descending"' not in index


def test_the_badge_of_production_says_that_it_is_what_was_recorded_and_when(usual: ResultsStore) -> None:
    """An alias that somebody moves by hand is not in the store; the page must not claim to know better."""
    move = {"promotion_id": "2", "at": "2026-11-20T14:00:00+02:00", "who": "", "alias": "champion"}
    usual.save_promotion("tiny", {**move, "from": "1", "to": "2", "why": ""})
    build_report(usual)
    note = "In production since 2026-11-20 12:00 UTC, as this results store has recorded it"
    assert note in text_of(usual, "models/tiny@2.html")
    assert "In production" not in text_of(usual, "models/tiny@1.html")
    assert "moved by hand" in text_of(usual, "index.html")


def test_every_chart_has_its_numbers_in_a_table(usual: ResultsStore) -> None:
    """Who can't see a chart has nothing else."""
    build_report(usual)
    for page, table, rows in (
        ("capitals", "Items by their confidence in the likeliest choice", 2),
        ("written", "How many outputs of each version are how long", 2),
    ):
        text = text_of(usual, f"comparisons/{page}/tiny@2.html")
        body = text[text.index(table) :].split("<tbody>", 1)[1].split("</tbody>", 1)[0]
        assert body.count("<tr>") >= rows
        assert {"tiny@1", "tiny@2"} == set(re.findall(r'<th scope="row">([^<]+)</th>', body))
        charts = text.count('role="img"')
        assert text.count('the table below has the same" data-chart') == charts > 1


def third(store: ResultsStore) -> EvaluationRecord:
    """tiny@3 on capitals, which nobody has judged."""
    flipped = [choice_sample(i, i % 4 == 0) for i in range(60)]
    record = commit(store, "capitals", "tiny@3", flipped, day=9)
    Catalog(store).refresh()
    return record


def test_a_version_is_compared_with_the_one_before_it_also_where_nobody_has_judged_it(
    usual: ResultsStore,
) -> None:
    """What changed from one version to the next is asked of models that have no baseline at all, too."""
    record = third(usual)
    first = build_report(usual)
    page = "comparisons/capitals/tiny@3/tiny@2.html"
    [before] = [r for r in committed_in(usual) if (r["dataset"], r["model"]) == ("capitals", "tiny@2")]
    sides = [{s.sample_id: s.scores["acc"] for s in usual.samples(one)} for one in (before, record)]
    wins = sum(sides[1][key] > sides[0][key] for key in sides[0])
    losses = sum(sides[1][key] < sides[0][key] for key in sides[0])
    text = text_of(usual, page)
    assert f"<dd>{wins} / {losses} / {60 - wins - losses}<small>of 60 items" in text
    assert "worse</span>" in text
    assert "Nothing was decided by it" in text
    assert "data-list" in text
    for other in ("models/tiny@3.html", "cells/capitals/tiny@3.html"):
        assert 'tiny@3/tiny@2.html">tiny@2</a>' in text_of(usual, other)
    # What is recorded has its page already.
    assert "Nothing was decided by it" not in text_of(usual, "comparisons/capitals/tiny@2.html")
    assert not (site_of(usual) / "comparisons/capitals/tiny@2").exists()
    assert broken_links(usual) == []
    assert build_report(usual).pages_kept == first.pages_written


def test_pairs_beyond_the_limit_have_neither_page_nor_link(usual: ResultsStore) -> None:
    third(usual)
    build_report(usual, limits=Limits(items=0))
    assert not list((site_of(usual) / "comparisons").glob("*/*/*.html"))
    assert "item by item" not in text_of(usual, "models/tiny@3.html")
    assert broken_links(usual) == []


def test_versions_that_were_asked_other_items_are_not_compared(usual: ResultsStore) -> None:
    """A difference between two benchmarks of one name would read as one between two models."""
    items = [choice_sample(i, i % 4 == 0) for i in range(60)]
    commit(usual, "capitals", "tiny@3", items, day=9, benchmark_fingerprint="other items")
    Catalog(usual).refresh()
    build_report(usual)
    assert not (site_of(usual) / "comparisons/capitals/tiny@3").exists()


def test_a_pair_that_somebody_asked_for_keeps_its_page_in_later_builds(usual: ResultsStore) -> None:
    """The report is refreshed all the time; a page that somebody was sent a link to must stay."""
    third(usual)
    page = "comparisons/capitals/tiny@3/tiny@1.html"
    build_report(usual)
    assert not (site_of(usual) / page).exists()
    build_report(usual, compare=[("tiny@3", "tiny@1")])
    assert "tiny@3 <span>against tiny@1</span>" in text_of(usual, page)
    assert '/tiny@1.html">tiny@1</a>' in text_of(usual, "cells/capitals/tiny@3.html")
    assert build_report(usual).pages_written == 0
    assert build_report(usual, compare=[("tiny@3", "tiny@1")]).pages_written == 0
    assert broken_links(usual) == []
    for pair, message in (
        (("tiny@3", "tiny@9"), "tiny@9 has no evaluation"),
        (("tiny@3", "tiny@3"), "can't be compared with itself"),
        (("tiny@3", "org/Other@1"), "have no benchmark in common"),
    ):
        with pytest.raises(UserError, match=message):
            build_report(usual, compare=[pair])
    (site_of(usual) / "pairs.json").write_text('{"pairs": [3]}')
    assert build_report(usual).pages_removed == 2  # on capitals and written


class Killed(BaseException):
    """Stands for a SIGKILL: nothing that catches exceptions sees it."""


def build_until(store: ResultsStore, writes: int, monkeypatch: pytest.MonkeyPatch) -> Report | None:
    """Build, and be killed at the n-th write; None if so."""
    done = 0
    original = store.put

    def put(path: str, content: bytes, *rest: Any) -> None:
        nonlocal done
        if path.startswith("reports/"):
            done += 1
            if done > writes:
                raise Killed
        original(path, content, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", put)
        try:
            return build_report(store)
        except Killed:
            return None


def test_a_build_killed_at_any_write_leaves_the_old_report_usable_and_the_next_one_whole(
    usual: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that points to data that isn't there (yet, or any more) is an error that a reader sees."""
    build_report(usual)
    writes = 0
    while True:
        # Each round has something new, and something gone: the round's build is cut off at a later write.
        samples = [choice_sample(i, (i + writes) % 3 == 0) for i in range(12)]
        commit(
            usual,
            "capitals",
            "new@1",
            samples,
            fingerprint=hashlib.sha256(b"%d" % writes).hexdigest(),
            day=9 + writes,
        )
        Catalog(usual).refresh()
        report = build_until(usual, writes, monkeypatch)
        assert broken_links(usual) == [], f"after {writes} writes"
        if report is not None:
            break
        writes += 1
    assert writes > 5
    fresh = contents(usual)
    for path in site_of(usual).rglob("*"):
        if path.is_file():
            path.unlink()
    build_report(usual)
    assert fresh == contents(usual)


def test_a_disk_that_fills_up_ends_the_build_in_one_line_and_at_once(
    usual: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_report(usual)
    samples = [choice_sample(i, True) for i in range(12)]
    for version in range(150):
        commit(usual, "capitals", f"new@{version}", samples, day=9)
    Catalog(usual).refresh()
    pages: list[int] = []
    original = usual.put

    def put(path: str, content: bytes, *rest: Any) -> None:
        with usual.writing(path):
            if path.startswith("reports/") and pages:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, content, *rest)

    monkeypatch.setattr(usual, "put", put)
    with pytest.raises(TransientError, match="No space left on device; free some space") as error:
        build_report(usual, on_page=lambda done, total: pages.append(total - done))
    assert "\n" not in str(error.value)
    assert min(pages) > 100
    assert broken_links(usual) == []


def test_a_manifest_that_is_damaged_makes_everything_again(usual: ResultsStore) -> None:
    first = build_report(usual)
    for text in ("{", "[]", '{"pages": {"index.html": 3}}', '{"pages": []}'):
        (site_of(usual) / "manifest.json").write_text(text)
        assert build_report(usual).pages_written == first.pages_written


def test_a_page_whose_data_was_lost_is_written_again(usual: ResultsStore) -> None:
    build_report(usual)
    before = contents(usual)
    chunk = next(path for path in site_of(usual).rglob("*.data/*.js"))
    chunk.unlink()
    (site_of(usual) / "index.html").unlink()
    assert build_report(usual).pages_written == 2
    assert contents(usual) == before


def test_the_same_store_gives_the_same_bytes(usual: ResultsStore) -> None:
    """Otherwise a page is new each time, and nobody can say what changed."""
    build_report(usual)
    before = contents(usual)
    for path in site_of(usual).rglob("*"):
        if path.is_file():
            path.unlink()
    build_report(usual)
    assert contents(usual) == before


def test_another_time_zone_makes_no_other_report(
    usual: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines that build in turn would otherwise write everything each time."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        build_report(usual)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert build_report(usual).pages_written == 0
    assert "2026-11-04 12:00 UTC" in (site_of(usual) / "index.html").read_text()


def test_samples_beyond_the_limit_are_left_out_and_the_page_says_where_they_are(usual: ResultsStore) -> None:
    build_report(usual, limits=Limits(items=40, items_per_page=25))
    site = site_of(usual)
    newest = (site / "cells/written/tiny@3.html").read_text()
    assert "data-list" in newest
    cut = (site / "cells/written/tiny@2.html").read_text()
    assert "The first 25 of 40" in cut
    oldest = (site / "cells/capitals/tiny@1.html").read_text()
    assert "data-list" not in oldest
    assert hinted(usual, oldest) == {"tiny@1": 60}
    [compared] = [
        page.read_text()
        for page in (site / "comparisons").rglob("*.html")
        if "the latest comparisons only" in page.read_text()
    ]
    assert hinted(usual, compared) == {"tiny@1": 60, "tiny@2": 60}
    rows = [json.loads(json.loads(match)) for match in scripts(site / "cells/written/tiny@2.data")]
    assert sum(len(row) for row in rows if isinstance(row, list)) == 25


def hinted(store: ResultsStore, page: str) -> dict[str, int]:
    """Model -> its samples that the query finds which a page gives."""
    query = re.search(r"<code>(SELECT .*?)</code>", page)
    assert query is not None
    with Catalog(store).connect() as connection:
        found = connection.execute(f"SELECT model, count(*) FROM ({html.unescape(query[1])}) GROUP BY ALL")
        return dict(found.fetchall())


def scripts(folder: Path) -> Iterator[str]:
    """The string that each data script hands over."""
    for path in sorted(folder.glob("*.js")):
        match = re.fullmatch(r'evalReport\("[0-9a-f]{16}\.js", (".*")\);\n', path.read_text(), re.DOTALL)
        assert match is not None, path
        yield match[1]


def test_without_a_catalogue_it_says_what_to_do(store: ResultsStore) -> None:
    with pytest.raises(UserError, match="materialize the asset 'leaderboard'"):
        build_report(store)


def test_an_empty_store_has_a_report_that_says_so(store: ResultsStore) -> None:
    Catalog(store).refresh()
    build_report(store)
    assert "No evaluations yet" in (site_of(store) / "index.html").read_text()


def test_on_an_object_store_it_is_a_static_site(bucket: str) -> None:
    """A page without its content type is downloaded by a browser and not shown."""
    store = usual_store(ResultsStore(f"{bucket}/results"))
    report = build_report(store)
    assert report.index == f"{bucket}/results/reports/index.html"
    kinds = {}
    for path in store.filesystem.find(f"{store.root}/reports"):
        store.filesystem.invalidate_cache()
        kinds[path.rsplit(".", 1)[1]] = store.filesystem.info(path)["ContentType"]
    assert kinds == {
        "html": "text/html; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
        "json": "application/json; charset=utf-8",
    }
    assert build_report(store).pages_written == 0


def test_texts_that_retention_removed_are_removed_from_the_report_too(usual: ResultsStore) -> None:
    """Somebody's data that had to go would otherwise stay on a web server."""
    build_report(usual)
    assert any(b"very long" in content for content in contents(usual).values())
    [folder] = Path(usual.root, "evaluations", "written", "tiny@2").iterdir()
    samples = folder / "samples.parquet"
    samples.write_bytes(parquet(without_texts(pq.read_table(samples), "generation")))
    record = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps({**record, "retention": {"at": "now"}}))
    Catalog(usual).refresh()
    build_report(usual)
    assert not any(b"very long" in content for content in contents(usual).values())
    for page in ("cells/written/tiny@2.html", "comparisons/written/tiny@2.html"):
        assert "removed by the retention policy" in (site_of(usual) / page).read_text()
    assert broken_links(usual) == []


def damage(store: ResultsStore, pattern: str) -> dict[Path, bytes]:
    """Cut off the files that the pattern finds, and see what a refresh makes of them; what they were."""
    found = {path: path.read_bytes() for path in Path(store.root).glob(pattern)}
    assert found, pattern
    for path, content in found.items():
        path.write_bytes(content[: len(content) // 2])
    Catalog(store).refresh()
    return found


def text_of(store: ResultsStore, page: str) -> str:
    return html.unescape((site_of(store) / page).read_text())


def test_a_cell_that_cannot_be_read_is_shown_as_missing_and_costs_no_other_page(usual: ResultsStore) -> None:
    """An evaluation that silently isn't there reads as never made."""
    damage(usual, "evaluations/written/tiny@3/*/samples.parquet")
    build_report(usual)
    page = text_of(usual, "cells/written/tiny@3.html")
    assert "can't be read as Parquet" in page
    assert "/samples.parquet" in page
    assert "missing<small" in text_of(usual, "index.html")
    assert (site_of(usual) / "cells/written/tiny@2.html").is_file()
    assert broken_links(usual) == []


def test_a_later_evaluation_that_cannot_be_read_is_told_above_the_earlier_one(usual: ResultsStore) -> None:
    """The earlier score would otherwise pass for the latest one on every page."""
    build_report(usual)
    samples = [choice_sample(i, True) for i in range(20)]
    later = commit(usual, "capitals", "tiny@1", samples, fingerprint="a" * 64, day=9)
    damage(usual, f"evaluations/capitals/tiny@1/{later['evaluation_id']}/metrics.parquet")
    build_report(usual)
    index = text_of(usual, "index.html")
    assert "1 file of the results store can't be read" in index
    assert re.search(r'href="cells/capitals/tiny@1.html"><b>0\.\d+</b>.*?<small>1 unreadable</small>', index)
    for page in ("cells/capitals/tiny@1.html", "models/tiny@1.html", "damaged/files.html"):
        assert f"{later['evaluation_id']}/metrics.parquet" in text_of(usual, page)
    assert "this may not be its latest evaluation" in text_of(usual, "cells/capitals/tiny@1.html")
    for page in ("cells/capitals/tiny@2.html", "models/tiny@2.html"):
        assert "can't be read" not in text_of(usual, page)
    assert broken_links(usual) == []


def test_comparisons_verdicts_and_model_records_that_cannot_be_read_are_told_until_they_can(
    usual: ResultsStore,
) -> None:
    """A verdict that can't be read must not read as a version that nobody has judged."""
    usual.save_model_version("tiny@2", {"model": "tiny@2", "digest": "digest of tiny@2"})
    Catalog(usual).refresh()
    build_report(usual)
    before = contents(usual)
    files: dict[Path, bytes] = {}
    for pattern in ("comparisons/written/tiny@2.json", "verdicts/tiny@2/latest.json", "models/tiny@2.json"):
        files |= damage(usual, pattern)
    build_report(usual)
    assert "3 files of the results store can't be read" in text_of(usual, "index.html")
    found = {
        page: [path.name for path in files if f"/{path.name}</code>" in text_of(usual, page)]
        for page in ("damaged/files.html", "models/tiny@2.html", "cells/written/tiny@2.html")
    }
    assert sorted(found["damaged/files.html"]) == ["latest.json", "tiny@2.json", "tiny@2.json"]
    assert found["models/tiny@2.html"] == found["damaged/files.html"]
    assert "comparisons/written/tiny@2.json" in text_of(usual, "cells/written/tiny@2.html")
    assert "verdicts/" not in text_of(usual, "cells/written/tiny@2.html")
    assert broken_links(usual) == []
    for path, content in files.items():
        path.write_bytes(content)
    Catalog(usual).refresh()
    build_report(usual)
    assert contents(usual) == before
