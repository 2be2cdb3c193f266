"""Texts and numbers on pages, and the names of pages."""

import posixpath
import unicodedata
from urllib.parse import unquote, urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from eval_assets.report.naming import cell_page, link, slug
from eval_assets.report.text import clipped, finalize, interval, number, signed, visible

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXTS)
def test_no_control_or_direction_character_survives(text: str) -> None:
    """What a reader sees is then what was scored."""
    hidden = {
        char
        for char in visible(text)
        if (unicodedata.category(char) == "Cc" and char not in "\t\n\r")
        or unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    }  # fmt: skip
    assert hidden == set()


@given(st.text(st.characters(categories=["L", "N", "P", "S", "M"])))
def test_ordinary_text_of_any_language_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_joiners_of_emoji_and_of_persian_stay() -> None:
    for text in ("👩\u200d💻", "\u0645\u06cc\u200c\u062e"):
        assert visible(text) == text


def test_templates_show_text_and_leave_the_reports_own_markup() -> None:
    assert finalize("a\u202eb") == "a⟨U+202E⟩b"
    assert finalize(Markup("<b>")) == Markup("<b>")
    assert finalize(3) == 3


def test_a_long_text_is_cut_with_a_word_on_what_is_missing() -> None:
    assert clipped("abc", 3) == "abc"
    cut = clipped("abcd" * 1000, 3)
    assert cut is not None
    assert cut.splitlines() == ["abc", "… 3,997 more characters; the whole is in samples.parquet"]
    assert clipped(None, 3) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.4375, "0.438"), (1234.56, "1,234.6"), (2e9, "2e+09"), (None, "none"), (-3, "-3.000")],
)
def test_numbers_have_as_many_digits_as_people_read(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_differences_have_a_sign_unless_they_are_nothing() -> None:
    assert [signed(value) for value in (0.01, -0.01, 0.0, None)] == ["+0.010", "\u22120.010", "0.000", "none"]
    assert interval(None, 1) == "no interval"


KEYS = st.one_of(
    TEXTS, st.sampled_from(["../../etc", ".", "..", "a/b@1", "A/b@1", "a%2Fb@1", "CON", "x" * 300])
)


@given(KEYS, KEYS)
def test_different_keys_have_different_pages_also_where_case_does_not_count(one: str, other: str) -> None:
    """Two models on one page would show one's samples as the other's."""
    if one != other:
        assert slug(one).lower() != slug(other).lower()


@given(KEYS, KEYS)
def test_a_page_is_one_file_below_the_report(dataset: str, model: str) -> None:
    path = cell_page(dataset, model)
    assert posixpath.normpath(path) == path
    assert len(path.split("/")) == 3
    assert all(len(segment) < 120 and not segment.startswith(".") for segment in path.split("/"))


@given(KEYS, KEYS)
def test_a_link_leads_from_any_page_to_any_other(dataset: str, model: str) -> None:
    page, target = cell_page(dataset, model), cell_page(model, dataset)
    base = "https://example.org/some/place/"
    found = urljoin(base + link("index.html", page), link(page, target))
    assert unquote(found) == base + target
