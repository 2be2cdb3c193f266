"""Readings that Prometheus takes whatever is in them: one bad line would cost the whole scrape."""

import math
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from resources.telemetry import FAMILIES, Readings
from tests.conftest import ROOT
from tests.prometheus import program

HOSTILE = [
    'quote " and backslash \\',
    "two\nlines\r\n# HELP llm_evaluation_score forged\n",
    "</script><script>alert(1)</script>",
    '{model_name="x"} 1',
    "\u202eright to left\u202c, \x00 and \x1b[31m",
    "a lone surrogate \ud800",
    "é" * 5000,
]


def parsed(readings: Readings) -> list[tuple[str, dict[str, str], float]]:
    families = text_string_to_metric_families(readings.text().decode())
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def test_hostile_labels_are_values_and_nothing_else() -> None:
    readings = Readings()
    for number, text in enumerate(HOSTILE):
        readings.add("llm_evaluation_score", number, text, "1", "squad", "f1")
    found = parsed(readings)
    assert [value for _, _, value in found] == list(range(len(HOSTILE)))
    assert [labels["model_name"] for _, labels, _ in found][:5] == HOSTILE[:5]
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=readings.text(), capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@given(st.lists(st.text(st.characters(), max_size=300), min_size=1, max_size=5))
def test_any_text_is_told_apart_from_any_other(texts: list[str]) -> None:
    """Two series with the same labels, and Prometheus refuses all of them."""
    readings = Readings()
    for text in texts:
        readings.add("llm_evaluation_committed", 1, text)
    names = [labels["model_name"] for _, labels, _ in parsed(readings)]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 200 for name in names)


def test_texts_that_are_cut_at_the_same_place_stay_two() -> None:
    readings = Readings()
    for end in ("a", "b"):
        readings.add("llm_evaluation_committed", 1, "x" * 400 + end)
    assert len(parsed(readings)) == 2


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_absent(value: float | None) -> None:
    """A NaN in a score would be neither above nor below any alert's threshold."""
    readings = Readings()
    readings.add("llm_evaluation_cost", value, "m", "1", "squad")
    assert len(readings) == 0


def test_a_reading_has_the_labels_of_its_family() -> None:
    with pytest.raises(ValueError, match="llm_evaluation_committed has the labels"):
        Readings().add("llm_evaluation_committed", 1)


def test_names_keep_the_rules_of_prometheus() -> None:
    """`promtool check metrics` knows them: counters end in _total, and so on."""
    readings = Readings()
    for name, family in FAMILIES.items():
        readings.add(name, 1, *(f"a {label}" for label in family.labels))
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=readings.text(), capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_metrics_of_the_article_keep_their_names() -> None:
    """Dashboards that people bring select by these names and labels."""
    assert {"model_name", "dataset", "metric"} <= set(FAMILIES["llm_evaluation_score"].labels)
    assert {"model_name", "dataset"} <= set(FAMILIES["llm_evaluation_duration_seconds"].labels)


def test_the_page_lists_every_metric_with_its_labels_and_meaning() -> None:
    """A metric that nobody explains is one that somebody misreads."""
    page = (ROOT / "docs" / "monitoring.md").read_text()
    listed = [line for line in page.splitlines() if line.startswith("| `llm_evaluation_")]
    assert listed == [
        f"| `{name}` | {', '.join(f'`{label}`' for label in family.labels)} | {family.meaning} |"
        for name, family in FAMILIES.items()
    ]
