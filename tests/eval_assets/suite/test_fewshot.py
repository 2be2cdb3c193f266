"""Which solved examples an item is shown: never itself, always the same ones."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval_assets.suite import Items
from resources.errors import UserError
from tests.eval_assets.suite.quiz import ANSWER, TEXT

Normalized = Callable[..., Items]


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"question": f"q{n}", "options": ["no", "yes"], "answer": n % 2, "area": "ab"[n % 2]}
        for n in range(start, start + count)
    ]


def shown(item: Any) -> list[str]:
    return [example.query for example in item.examples]


def test_the_first_rows_of_another_split_are_shown_with_their_right_choices(normalized: Normalized) -> None:
    items = normalized({"test": rows(2), "dev": rows(3, 10)}, fewshot={"n": 2, "split": "dev"}).items
    for item in items:
        assert [(e.query, e.answer) for e in item.examples] == [("Q: q10\nA:", "no"), ("Q: q11\nA:", "yes")]


def test_items_that_share_their_examples_share_the_object(normalized: Normalized) -> None:
    """MMLU has 14,042 items and 57 prompts; one copy an item would take a gigabyte."""
    first, second = normalized({"test": rows(2), "dev": rows(3, 10)}, fewshot={"n": 2, "split": "dev"}).items
    assert first.examples is second.examples


def test_examples_from_the_own_rows_skip_the_item(normalized: Normalized) -> None:
    items = normalized(rows(4), fewshot={"n": 2}).items
    assert [shown(item) for item in items] == [
        ["Q: q1\nA:", "Q: q2\nA:"],
        ["Q: q0\nA:", "Q: q2\nA:"],
        ["Q: q0\nA:", "Q: q1\nA:"],
        ["Q: q0\nA:", "Q: q1\nA:"],
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    own=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    pool=st.lists(st.integers(0, 12), min_size=8, max_size=14),
    n=st.integers(1, 3),
    pick=st.sampled_from(["first", "seeded"]),
    elsewhere=st.booleans(),
)
def test_an_item_is_never_its_own_example_even_where_rows_repeat(
    normalized: Normalized, own: list[int], pool: list[int], n: int, pick: str, elsewhere: bool
) -> None:
    """An item that sees its own answer scores as if the model knew it."""
    test = [rows(1, number)[0] for number in (own if elsewhere else pool)]
    dev = [rows(1, number)[0] for number in pool]
    fewshot = {"n": n, "pick": pick, **({"split": "dev"} if elsewhere else {})}
    data = {"test": test, "dev": dev}
    asked = own if elsewhere else pool
    if any(sum(number != other for other in pool) < n for number in asked):
        with pytest.raises(UserError, match="usable examples"):
            normalized(data, fewshot=fewshot)
        return
    items = normalized(data, fewshot=fewshot).items
    assert len(items) == len(asked)
    for item in items:
        assert len(item.examples) == n
        assert item.query not in shown(item)


def test_seeded_examples_depend_on_seed_and_item_only(normalized: Normalized) -> None:
    """The place of an item, or the items around it, must not change its prompt."""
    dev = rows(50, 100)
    fewshot: dict[str, Any] = {"n": 3, "split": "dev", "pick": "seeded"}
    items = normalized({"test": rows(6), "dev": dev}, fewshot=fewshot).items
    backwards = normalized({"test": rows(6)[::-1], "dev": dev}, fewshot=fewshot).items
    assert {i.sample_id: i.examples for i in items} == {i.sample_id: i.examples for i in backwards}
    assert len({i.examples for i in items}) == 6
    reseeded = normalized({"test": rows(6), "dev": dev}, fewshot={**fewshot, "seed": 7}).items
    assert [i.examples for i in items] != [i.examples for i in reseeded]


def test_a_seeded_draw_gives_the_same_examples_on_every_machine(normalized: Normalized) -> None:
    """Recorded once; a change makes every seeded benchmark incomparable with its past."""
    [item] = normalized(
        {"test": rows(1), "dev": rows(50, 100)}, fewshot={"n": 3, "split": "dev", "pick": "seeded"}
    ).items
    assert shown(item) == RECORDED_DRAW


RECORDED_DRAW = ["Q: q144\nA:", "Q: q114\nA:", "Q: q133\nA:"]


def test_examples_of_the_own_group_only(normalized: Normalized) -> None:
    items = normalized(
        {"test": rows(2), "dev": rows(6, 10)},
        group="area",
        fewshot={"n": 2, "split": "dev", "per_group": True},
    ).items
    assert [shown(item) for item in items] == [["Q: q10\nA:", "Q: q12\nA:"], ["Q: q11\nA:", "Q: q13\nA:"]]


def test_too_few_usable_rows_are_one_line(normalized: Normalized) -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (rows(3), {"n": 3}, "only 2 usable examples (the benchmark's own rows)"),
        (
            {"test": rows(2), "dev": rows(1, 10)},
            {"n": 2, "split": "dev"},
            "only 1 usable examples (split 'dev')",
        ),
        (
            {"test": rows(2), "dev": rows(3, 10)},
            {"n": 2, "split": "dev", "per_group": True},
            "only 1 usable examples of group 'b' (split 'dev')",
        ),
    ]
    for data, fewshot, rule in cases:
        with pytest.raises(UserError) as caught:
            normalized(data, fewshot=fewshot, group="area")
        assert rule in str(caught.value)
        assert "lower n or add examples" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_examples_may_be_written_out(normalized: Normalized) -> None:
    written = [{"query": "Q: x\nA:", "answer": "yes"}, {"query": "Q: y\nA:", "answer": "no"}]
    [item] = normalized(rows(1), fewshot={"examples": written}).items
    assert [(e.query, e.answer) for e in item.examples] == [("Q: x\nA:", "yes"), ("Q: y\nA:", "no")]
    [item] = normalized(rows(1), fewshot={"examples": written, "n": 1}).items
    assert shown(item) == ["Q: x\nA:"]


def test_prompt_and_answer_of_examples_may_differ_from_the_benchmarks(normalized: Normalized) -> None:
    fewshot = {
        "n": 1,
        "split": "dev",
        "prompt": "Example {{question}}:",
        "answer": "It is {{options[answer]}}.",
    }
    [item] = normalized({"test": rows(1), "dev": rows(2)}, fewshot=fewshot).items
    # Row q0 asks what the item asks, whatever the example's own wording.
    assert [(e.query, e.answer) for e in item.examples] == [("Example q1:", "It is yes.")]


def test_an_example_shows_the_first_reference_or_the_text(normalized: Normalized) -> None:
    data = {"test": [{"question": "a", "answers": ["x"]}], "dev": [{"question": "b", "answers": ["y", "z"]}]}
    [item] = normalized(data, ANSWER, fewshot={"n": 1, "split": "dev"}).items
    assert item.examples[0].answer == "y"
    texts = {"test": [{"page": "a b"}], "dev": [{"page": "c d"}]}
    fields = {"prompt": "{{page.split()[0]}}", "text": "page.split()[1]", "fewshot": {"n": 1, "split": "dev"}}
    [item] = normalized(texts, TEXT, **fields).items
    assert (item.examples[0].query, item.examples[0].answer) == ("c", "d")


def test_an_example_without_an_answer_is_named(normalized: Normalized) -> None:
    data = {"test": [{"question": "a", "answers": ["x"]}], "dev": [{"question": "b", "answers": [""]}]}
    with pytest.raises(UserError, match="split dev, row 1: fewshot: the example's answer is empty"):
        normalized(data, ANSWER, fewshot={"n": 1, "split": "dev"})


def test_a_row_that_the_filter_leaves_out_is_no_example_either(normalized: Normalized) -> None:
    data = {"test": rows(1), "dev": rows(4, 10)}
    [item] = normalized(data, filter="area == 'a'", fewshot={"n": 2, "split": "dev"}).items
    assert shown(item) == ["Q: q10\nA:", "Q: q12\nA:"]
