"""What models and benchmarks write is shown and does nothing, whatever it is."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import duckdb
import pytest
from playwright.sync_api import Browser, Page, expect

from eval_assets.report.building import Limits
from resources.catalog import Catalog
from resources.records import Output
from resources.results import ResultsStore
from tests.eval_assets.report.stores import choice_sample, commit, compared, judged, text_sample
from tests.ui.pages import Console
from tests.ui.report.conftest import Open, Report, open_items, reported

TAKEN = 'document.title="taken"'
PAYLOADS = {
    "image": f"<img src=x onerror={TAKEN}>",
    "script": f"</script><script>{TAKEN}</script>",
    "attribute": f'" autofocus onfocus="{TAKEN}" x="',
    "quote": f"'); {TAKEN}; //",
    "string": f'\\"); {TAKEN}; //\\',
    "url": f"javascript:{TAKEN}",
    "svg": f"<svg onload={TAKEN}><a href=javascript:{TAKEN}>x</a></svg>",
    "template": "{{7*7}} {% for x in y %} ${7*7} #{7*7}",
    "vega": '"signal": "datum", {"expr": "event"}',
    "comment": "<!--<script>--> ]]> --!>",
    "separators": "a\u2028b\u2029c",
    "direction": "abc\u202egnp.exe\u202c \u2066x\u2069 \u200f",
    "controls": "a\x00b\x1b[31mred\x07\x7f\x9b\ufeffz\ttab\r\nline",
    "prototype": '{"__proto__": {"hidden": true}, "constructor": 1}',
    "entity": "&lt;b&gt; &amp;amp; &#x3c;",
    "style": f"<style>*{{display:none}}</style><link rel=stylesheet href=//example.org>{TAKEN}",
    "arabic": "مرحبا بالعالم, שלום",
}
NAME = f"<img src=x onerror={TAKEN}>/\u202eevil'\"@1"
DATASET = f"<b>{TAKEN}</b>"
LONG = "word <b>bold</b> \u202e" * 50_000
"""A megabyte of output."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Every text of every record is a payload: prompts, outputs, groups, ids, errors, names, reasons."""
    store = ResultsStore(str(tmp_path_factory.mktemp("hostile") / "store"))
    texts = [text.replace("\x00", "") for text in PAYLOADS.values()]
    for model, changed in (("hostile@1", ""), ("plain@1", " changed")):
        choices = [
            choice_sample(
                i, (i + len(changed)) % 3 == 0, sample_id=f"{text}{i}", prompt=text, group=text,
                choices=[text, f"{text}2", "c", "d"],
            )
            for i, text in enumerate(texts)
        ]  # fmt: skip
        record = commit(
            store, "chosen", model, choices, day=len(changed), run_id=f"{texts[0]}", git_revision=texts[1],
            packages={texts[2]: texts[3]}, scoring_version=texts[1],
        )  # fmt: skip
        written = [
            text_sample(i, text + changed, 0.5, prompt=text, references=[text], incorrect_references=[text])
            for i, text in enumerate([*texts, LONG])
        ]
        written += [
            text_sample(99, "x", 0.5, outputs=[Output(text, text, 1, {text: 0.5}) for text in texts]),
        ]
        again = commit(store, "written", model, written, day=len(changed))
        if not changed:
            first, other = record, again
    broken = [choice_sample(0, True), choice_sample(1, False, error=texts[0], scores={}, prompt=texts[1])]
    commit(store, "broken", "hostile@1", broken)
    compared(store, first, record)
    compared(store, other, again)
    judged(store, "hostile@1", "plain@1", "undecided", texts[0])
    Catalog(store).refresh()
    rename(store, {"hostile@1": NAME, "chosen": DATASET})
    for dataset in ("written", "lost"):  # one has an evaluation that can be read, the other has none
        damaged(store, "an id", dataset, NAME, f"evaluations/{dataset}/{texts[0]}", texts[1])
    damaged(store, None, None, texts[2], f"verdicts/{texts[3]}", texts[4])
    return reported(store)


def damaged(store: ResultsStore, *row: str | None) -> None:
    """Say in the catalogue that a file can't be read."""
    with duckdb.connect(f"{store.root}/catalog.duckdb") as connection:
        connection.execute("INSERT INTO damaged VALUES (?, ?, ?, ?, ?)", row)


def rename(store: ResultsStore, names: Mapping[str, str]) -> None:
    """Put other names into the catalogue: the report is not to rely on its refusing them."""
    with duckdb.connect(f"{store.root}/catalog.duckdb") as connection:
        found = connection.execute(
            "SELECT table_schema, table_name, column_name FROM information_schema.columns "
            "JOIN information_schema.tables USING (table_catalog, table_schema, table_name) "
            "WHERE table_type = 'BASE TABLE' AND data_type = 'VARCHAR' "
            "AND column_name IN ('model', 'dataset', 'baseline', 'model_name')"
        ).fetchall()
        for schema, table, column in found:
            for before, after in names.items():
                connection.execute(
                    f'UPDATE "{schema}"."{table}" SET "{column}" = $after WHERE "{column}" = $before',
                    {"before": before, "after": after},
                )
        assert connection.execute("SELECT count(*) FROM leaderboard WHERE model = ?", [NAME]).fetchone() != (
            0,
        )


def untouched(page: Page, title: str) -> None:
    """Nothing in the page has run, has been made an element of, or has been loaded."""
    assert page.title() == title
    assert (
        page.locator("main img, main svg a, main style, main link, main script, main [onerror]").count() == 0
    )
    assert page.locator("main b b, main [autofocus]").count() == 0
    assert page.evaluate("() => ({}).hidden === undefined")


def test_no_text_does_anything_on_any_page(hostile: Report, opened: Open) -> None:
    """Each page is opened, each item on it too; `opened` asserts that nothing was reported or asked for."""
    kinds = set()
    for name in hostile.pages():
        page = opened(hostile.address(name))
        title = re.sub(r"\s+", " ", page.title())
        assert "taken" not in title or TAKEN in title
        before = page.title()
        open_items(page)
        kinds.add(page.locator("body").get_attribute("class"))
        untouched(page, before)
    assert kinds == {"index", "model", "cell", "comparison", "damaged", "damaged cell"}


def test_every_character_is_shown_those_that_would_mislead_by_a_sign(hostile: Report, opened: Open) -> None:
    [name] = [name for name in hostile.pages() if name.startswith("cells/written/plain")]
    page = opened(hostile.address(name))
    for key, shown in {
        "image": PAYLOADS["image"],
        "script": PAYLOADS["script"],
        "string": PAYLOADS["string"],
        "prototype": PAYLOADS["prototype"],
        "entity": PAYLOADS["entity"],
        "arabic": PAYLOADS["arabic"],
        "separators": "a⟨U+2028⟩b⟨U+2029⟩c",
        "direction": "abc⟨U+202E⟩gnp.exe⟨U+202C⟩ ⟨U+2066⟩x⟨U+2069⟩ ⟨U+200F⟩",
        "controls": "ab␛[31mred␇␡⟨U+009B⟩⟨U+FEFF⟩z",
    }.items():
        item = page.locator(".items li").nth(list(PAYLOADS).index(key))
        item.locator("summary").click()
        expect(item.locator(".text").first).to_contain_text(shown)


def test_a_megabyte_of_output_is_cut_and_the_page_says_so(hostile: Report, opened: Open) -> None:
    [name] = [name for name in hostile.pages() if name.startswith("cells/written/plain")]
    page = opened(hostile.address(name))
    item = page.locator(".items li").nth(len(PAYLOADS))
    item.locator("summary").click()
    text = item.locator(".sides .text").inner_text()
    assert f"{len(LONG) + len(' changed') - Limits().characters:,} more characters" in text
    assert len(text) < 2 * Limits().characters * 8


def test_long_outputs_that_differ_everywhere_are_compared_without_a_freeze(
    tmp_path_factory: pytest.TempPathFactory, opened: Open
) -> None:
    """Comparing by words takes time by the square of what differs; it gives up before anybody notices."""
    store = ResultsStore(str(tmp_path_factory.mktemp("long") / "store"))
    sides = [
        [text_sample(0, " ".join(f"{word}{i * step % 997}" for i in range(3000)), 0.0)]
        for word, step in (("one", 3), ("two", 7))
    ]
    records = [
        commit(store, "written", f"long@{at}", [*side, text_sample(1, "same", 1.0)], day=at)
        for at, side in enumerate(sides)
    ]
    compared(store, records[0], records[1])
    Catalog(store).refresh()
    page = opened(reported(store).address("comparisons/written/long@1.html"))
    started = page.evaluate("() => performance.now()")
    page.locator(".items summary").first.click()
    expect(page.locator(".sides del").first).to_be_visible()
    assert page.evaluate("() => performance.now()") - started < 3000
    assert page.locator(".sides ins").first.inner_text()[:3] == "two"


def test_the_policy_of_every_page_forbids_what_is_not_the_reports_own(hostile: Report) -> None:
    for name in hostile.pages():
        text = Path(hostile.folder, name).read_text()
        [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', text)
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' data:",
            "base-uri": "'none'",
            "form-action": "'none'",
        }
        # Nothing that could carry a script comes before the policy takes effect.
        assert "<script" not in text[: text.index("Content-Security-Policy")]
        assert re.findall(r"<script(?![^>]* src=)", text) == []
        assert " style=" not in re.sub(r"&lt;.*?&gt;", "", text)


def test_data_scripts_hold_one_string_and_no_markup(hostile: Report) -> None:
    """Whatever includes them, an HTML page too, sees no tag in them and runs nothing but the one call."""
    scripts = list(hostile.folder.rglob("*.data/*.js"))
    assert len(scripts) > 6
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        match = re.fullmatch(r'evalReport\("[0-9a-f]{16}\.js", ("(?:[^"\\]|\\.)*")\);\n', text, re.DOTALL)
        assert match is not None
        assert "<" not in text
        assert not {"\u2028", "\u2029", "\u202e"} & set(text)
        json.loads(json.loads(match[1]))


def test_the_policy_stops_a_script_that_got_in_all_the_same(hostile: Report, browser: Browser) -> None:
    """The last line of defence is tried, too: a page that a fault has let markup into."""
    with browser.new_context() as context:
        page = context.new_page()
        console = Console()
        console.watch(page)
        page.goto(hostile.address())
        page.evaluate(
            """() => { const made = document.createElement("div");
            made.innerHTML = `<img src="data:," onerror="document.title='taken'">`;
            document.body.append(made); }"""
        )
        page.wait_for_function("() => document.images.length === 1 && document.images[0].complete")
        page.evaluate("() => new Promise((done) => setTimeout(done))")
        assert page.title() == "Evaluation report"
        assert [error for error in console.errors if "Content Security Policy" in error]
