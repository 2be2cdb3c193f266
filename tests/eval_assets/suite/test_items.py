"""Ids, fingerprints, selection, and the way to Parquet and back."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval_assets.suite import (
    BenchmarkSpec,
    Example,
    Item,
    Items,
    items_fingerprint,
    items_from_table,
    items_to_table,
    load_suite,
    select_items,
)
from eval_assets.suite.items import ITEM_SCHEMA, content_id
from tests.eval_assets.suite.quiz import ANSWER, CHOICE

Build = Callable[..., BenchmarkSpec]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TEXTS = st.lists(TEXT, max_size=4).map(tuple)
ITEMS = st.builds(
    Item,
    sample_id=st.text("0123456789abcdef", min_size=16, max_size=16),
    index=st.integers(0, 2**40),
    group=st.none() | TEXT,
    cluster=st.none() | TEXT,
    description=TEXT,
    system=st.none() | TEXT,
    examples=st.lists(st.builds(Example, TEXT, TEXT), max_size=3).map(tuple),
    query=TEXT,
    choices=TEXTS,
    target=st.none() | st.integers(0, 10),
    labels=st.lists(st.integers(0, 1), max_size=4).map(tuple),
    references=TEXTS,
    incorrect_references=TEXTS,
    prefill=TEXT,
)
ITEM = Item(
    sample_id="0" * 16,
    index=0,
    group="g",
    cluster="c",
    description="d",
    system="s",
    examples=(Example("q", "a"),),
    query="q0",
    choices=("x", "y"),
    target=1,
    labels=(0, 1),
    references=("r",),
    incorrect_references=("w",),
    prefill="p",
)
RECORDED_FINGERPRINTS = {
    "gsm8k": "cfa7964034b903d0b7d99a0ae96d26f01b3618fe0ba1b9d0b14f7154888e0030",
    "mmlu": "8d6d2ddaefb8c04dab30d871519c76e8af294c02e8b6ba50d77fa78ae48770ac",
}
CHANGES: dict[str, Any] = {
    "group": "h",
    "cluster": None,
    "description": "e",
    "system": None,
    "examples": (Example("q", "b"),),
    "query": "q1",
    "choices": ("x", "z"),
    "target": 0,
    "labels": (1, 1),
    "references": ("r", "r2"),
    "incorrect_references": (),
    "prefill": "",
}


@settings(deadline=None)
@given(st.lists(ITEMS, max_size=5))
def test_items_survive_a_table_unchanged(items: list[Item]) -> None:
    assert items_from_table(items_to_table(items)) == tuple(items)


def test_items_survive_a_parquet_file_and_share_their_examples_again(tmp_path: Path) -> None:
    items = tuple(dataclasses.replace(ITEM, index=n, query=f"q{n}") for n in range(600))
    pq.write_table(items_to_table(items), tmp_path / "items.parquet")
    table = pq.read_table(tmp_path / "items.parquet")
    assert table.schema.equals(ITEM_SCHEMA)
    back = items_from_table(table)
    assert back == items
    assert len({id(item.examples) for item in back}) == 1


def test_a_sample_id_is_the_same_today_as_when_it_was_first_written() -> None:
    """Samples are compared between versions and over years by this id."""
    assert content_id("Q: Größe?", ["a", "b"], 1, [0, 1], ["r"], ["w"], "g") == RECORDED_ID


RECORDED_ID = "d3f94e8b17b6a00d"


def test_every_part_of_the_content_is_in_the_id_and_few_shot_examples_are_not() -> None:
    def id_of(item: Item) -> str:
        return content_id(
            item.query,
            item.choices,
            item.target,
            item.labels,
            item.references,
            item.incorrect_references,
            item.group,
        )

    outside = {"cluster", "description", "system", "examples", "prefill"}
    for field, value in CHANGES.items():
        changed = dataclasses.replace(ITEM, **{field: value})
        assert (id_of(changed) == id_of(ITEM)) == (field in outside), field
    # Texts must not flow into each other.
    assert content_id("q", ["ab", "c"], 0, [], [], [], None) != content_id(
        "q", ["a", "bc"], 0, [], [], [], None
    )


def test_whatever_may_change_a_score_changes_the_fingerprint(build: Build) -> None:
    """Equal fingerprint, reused evaluation: a change that it missed would show old scores as new ones."""
    spec = build()
    before = items_fingerprint(spec, [ITEM, ITEM])
    assert before == items_fingerprint(spec, [ITEM, ITEM])
    assert len(before) == 64
    for field, value in {**CHANGES, "sample_id": "1" * 16, "index": 7}.items():
        assert items_fingerprint(spec, [ITEM, dataclasses.replace(ITEM, **{field: value})]) != before, field
    assert items_fingerprint(spec, [ITEM]) != before
    changes: tuple[dict[str, Any], ...] = (
        {"version": 2},
        {"delimiter": "\n"},
        {"fewshot_delimiter": "\n"},
        {"chat": {}},
        {"metrics": ["acc", "acc_norm"]},
    )
    for change in changes:
        assert items_fingerprint(build(**change), [ITEM, ITEM]) != before, change
    both = ["acc", "acc_norm"]
    by_acc, by_acc_norm = (build(metrics=both, primary_metric=name) for name in both)
    assert items_fingerprint(by_acc, [ITEM]) != items_fingerprint(by_acc_norm, [ITEM])
    turns = build(chat={"fewshot_as_turns": False})
    assert items_fingerprint(turns, [ITEM]) != items_fingerprint(build(chat={}), [ITEM])


def test_how_an_answer_is_generated_and_extracted_is_in_the_fingerprint(build: Build) -> None:
    before = items_fingerprint(build(ANSWER), [ITEM])
    changes: tuple[dict[str, Any], ...] = (
        {"generation": {"max_new_tokens": 9}},
        {"generation": {"stop": ["."]}},
        {"metrics": [{"metric": "exact_match", "ignore_case": True}]},
        {"metrics": [{"metric": "exact_match", "extract": {"regex": "x"}}]},
        {"metrics": ["exact_match", {"metric": "pass@k", "of": "exact_match", "k": 1}]},
        *(
            {"generation": DRAWN, "metrics": ["exact_match", "squad_exact_match", {**PASS, **option}]}
            for option in ({}, {"k": 2}, {"of": "squad_exact_match"})
        ),
        *({"generation": {"temperature": 0.8, **more}} for more in SAMPLING),
    )
    prints = [items_fingerprint(build(ANSWER, **change), [ITEM]) for change in changes]
    assert len({before, *prints}) == len(changes) + 1


DRAWN = {"temperature": 0.8, "outputs": 2}
PASS = {"metric": "pass@k", "name": "pass", "of": "exact_match", "k": 1}
SAMPLING: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.9},
    {"top_p": 0.95},
    {"top_k": 40},
    {"seed": 1},
    {"outputs": 10},
)


def test_a_benchmark_keeps_its_fingerprint_when_fields_are_added_that_it_does_not_use() -> None:
    """Another fingerprint here means that an upgrade evaluates every model again for nothing.

    If you changed one of these two benchmarks on purpose, put the new value here.
    """
    plain = dataclasses.replace(ITEM, prefill="")
    found = {key: items_fingerprint(load_suite()[key], [plain]) for key in RECORDED_FINGERPRINTS}
    assert found == RECORDED_FINGERPRINTS


def test_items_from_before_there_was_a_prefill_are_still_read() -> None:
    plain = dataclasses.replace(ITEM, prefill="")
    assert items_from_table(items_to_table([plain]).drop_columns(["prefill"])) == (plain,)


def test_what_only_describes_a_benchmark_is_not_in_the_fingerprint(build: Build) -> None:
    """Correcting a title must not re-evaluate every model."""
    before = items_fingerprint(build(), [ITEM])
    source = {"hub": "acme/mirror-of-quiz", "split": "test"}
    changes = {"title": "B", "tags": ["t"], "licence": "MIT", "citation": "c", "limit": 3, "source": source}
    assert items_fingerprint(build(CHOICE, **changes), [ITEM]) == before


def numbered(count: int) -> list[Item]:
    return [
        dataclasses.replace(ITEM, index=n, sample_id=content_id(f"q{n}", [], None, [], [], [], None))
        for n in range(count)
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 60), st.integers(1, 70), st.integers(1, 70))
def test_a_smaller_limits_items_are_among_a_larger_ones(count: int, one: int, other: int) -> None:
    """Raising the limit must only add items, so that those scored already count."""
    items = numbered(count)
    small, large = (select_items(items, limit) for limit in sorted((one, other)))
    assert set(small) <= set(large)
    assert len(small) == min(count, one, other)
    assert [item.index for item in large] == sorted(item.index for item in large)


def test_the_selection_depends_on_the_content_and_not_on_the_order_of_rows() -> None:
    items = numbered(50)
    ids = {item.sample_id for item in select_items(items, 10)}
    backwards = [dataclasses.replace(item, index=49 - item.index) for item in reversed(items)]
    assert {item.sample_id for item in select_items(backwards, 10)} == ids
    assert ids != {item.sample_id for item in items[:10]}
    more = select_items(
        [*items, *(dataclasses.replace(i, index=i.index + 50) for i in numbered(60)[50:])], 10
    )
    assert len(ids & {item.sample_id for item in more}) >= 6


def test_no_limit_gives_every_item() -> None:
    items = numbered(5)
    assert select_items(items, None) == tuple(items) == select_items(items, 99)


def test_a_selection_is_spread_over_the_rows() -> None:
    """The first rows of a benchmark are often one source or one subject."""
    chosen = [item.index for item in select_items(numbered(1000), 200)]
    counts = [sum(low <= index < low + 250 for index in chosen) for low in range(0, 1000, 250)]
    assert all(30 <= count <= 70 for count in counts)


@pytest.mark.parametrize("limit", [1, 3])
def test_duplicates_are_selected_like_other_items(normalized: Callable[..., Items], limit: int) -> None:
    row = {"question": "q", "options": ["a", "b"], "answer": 0}
    assert len(select_items(normalized([row, row, row]).items, limit)) == limit
