"""Rows become items; a row that can't be one is named in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval_assets.suite import BenchmarkSpec, Items, benchmark_files, normalize
from resources.datasets import RowSource, read_rows
from resources.errors import UserError
from tests.eval_assets.suite.quiz import ANSWER, CHOICE, TEXT

ROW: dict[str, Any] = {"question": "Largest planet?", "options": ["Mars", "Jupiter"], "answer": 1}
SOLVED: dict[str, Any] = {"question": "Largest planet?", "answers": ["Jupiter", "the planet Jupiter"]}

Normalized = Callable[..., Items]


def refusal(normalized: Normalized, rows: Any, base: dict[str, Any] = CHOICE, **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        normalized(rows, base, **fields)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_row_becomes_an_item(normalized: Normalized) -> None:
    [item] = normalized([{**ROW, "area": "space", "passage": "p"}], group="area", cluster="passage").items
    assert (item.index, item.query, item.choices, item.target) == (
        0,
        "Q: Largest planet?\nA:",
        ("Mars", "Jupiter"),
        1,
    )
    assert (item.group, item.cluster, item.description, item.system) == ("space", "p", "", None)
    assert (item.examples, item.labels, item.references) == ((), (), ())


def test_description_and_system_prompt_are_templates_over_the_row(normalized: Normalized) -> None:
    fields = {"description": "About {{area}}.\n\n", "chat": {"system": "You know {{area}}."}}
    [item] = normalized([{**ROW, "area": "space"}], **fields).items
    assert (item.description, item.system) == ("About space.\n\n", "You know space.")


def test_a_prefill_is_a_template_over_the_row_and_begins_the_answers_of_examples(
    normalized: Normalized,
) -> None:
    """As lm_eval's gen_prefix: an example that doesn't show it teaches the model another way to answer."""
    rows = [{"question": q, "answers": [a], "unit": u} for q, a, u in (("Q1", "7", "km"), ("Q2", "\n8", "m"))]
    chat = {"prefill": "In {{unit}}:"}
    first, second = normalized(rows, ANSWER, chat=chat, fewshot={"n": 1}).items
    assert (first.prefill, second.prefill) == ("In km:", "In m:")
    assert [example.answer for example in (*first.examples, *second.examples)] == ["In m:\n8", "In km: 7"]


def test_examples_that_are_written_out_are_shown_as_they_are(normalized: Normalized) -> None:
    written = {"examples": [{"query": "Q1", "answer": "In km: 7"}]}
    [item] = normalized([SOLVED], ANSWER, chat={"prefill": "In km:"}, fewshot=written).items
    assert item.examples[0].answer == "In km: 7"


def test_a_prefill_that_names_a_missing_column_is_said(normalized: Normalized) -> None:
    message = refusal(normalized, [SOLVED], ANSWER, chat={"prefill": "{{unit}}"})
    assert "chat.prefill: there is no column 'unit'" in message


def test_references_may_be_one_text_a_number_or_a_list(normalized: Normalized) -> None:
    for value, references in (("x", ("x",)), (["x", "y"], ("x", "y")), (7, ("7",)), (["", "x"], ("", "x"))):
        [item] = normalized([{**SOLVED, "answers": value}], ANSWER).items
        assert item.references == references


def test_a_list_may_say_that_no_answer_is_the_right_one(normalized: Normalized) -> None:
    """SQuAD v2's unanswerable questions; a lone empty cell, though, is a forgotten answer."""
    [item] = normalized([{**SOLVED, "answers": []}], ANSWER, references="answers or ['']").items
    assert item.references == ("",)


def test_incorrect_references_are_kept_apart(normalized: Normalized) -> None:
    [item] = normalized([{**SOLVED, "wrong": ["Mars"]}], ANSWER, incorrect_references="wrong").items
    assert (item.references[0], item.incorrect_references) == ("Jupiter", ("Mars",))


def test_a_text_is_scored_in_one_form_and_counted_in_another(normalized: Normalized) -> None:
    [item] = normalized(
        [{"page": "a @-@ b"}], TEXT, text="page | wikitext_detokenize", counted_text="page"
    ).items
    assert (item.references, item.query) == (("a-b", "a @-@ b"), "")


@pytest.mark.parametrize("label", [1, "1", "Jupiter", 1.0])
def test_a_label_is_a_choices_number_or_its_text(normalized: Normalized, label: Any) -> None:
    assert normalized([{**ROW, "answer": label}]).items[0].target == 1


def test_several_true_choices_are_marked(normalized: Normalized) -> None:
    [item] = normalized([{**ROW, "truth": [0, 1]}], labels="truth").items
    assert (item.labels, item.target) == ((0, 1), 1)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"question": ""}, "prompt: the context is empty"),
        ({"question": None}, "prompt: a value is null"),
        ({"options": []}, "choices: there are no choices"),
        ({"options": ["Mars"]}, "choices: there is only one choice"),
        ({"options": ["Mars", ""]}, "choices: choice 1 is empty"),
        ({"options": "Mars"}, "choices: expected a list, found str"),
        ({"options": {"text": ["a", "b"]}}, "choices: expected a list, found dict (take its list, such as"),
        ({"options": ["Mars", None]}, "choices: expected a text, found null"),
        ({"answer": 2}, "target: the label is 2, and the choices are numbered 0 to 1"),
        ({"answer": -2}, "target: the label is -2"),
        ({"answer": "9"}, "target: the label is 9"),
        ({"answer": -1}, "target: there is no label; evaluate a split that is labelled"),
        ({"answer": None}, "target: there is no label"),
        ({"answer": ""}, "target: there is no label"),
        ({"answer": "Venus"}, "target: 'Venus' is none of the choices"),
        ({"answer": True}, "target: bool True is neither"),
        (
            {"options": ["1", "2"], "answer": "1"},
            "target: '1' is the text of a choice and the number of another",
        ),
        ({"options": ["x", "x"], "answer": "x"}, "target: 'x' is the text of 2 choices"),
        ({"question": "\ud800"}, "a text holds half of a surrogate pair"),
    ],
)
def test_a_row_that_is_no_multiple_choice_item_is_named(
    normalized: Normalized, change: dict[str, Any], rule: str
) -> None:
    prompt = "{{question}}" if change.get("question") == "" else CHOICE["prompt"]
    message = refusal(normalized, [ROW, {**ROW, **change}], prompt=prompt)
    assert message.startswith(f"quiz: acme/quiz, split test, row 2: {rule}")
    assert message.endswith("quiz.yaml")


@pytest.mark.parametrize(
    ("labels", "rule"),
    [([0, 0], "no choice is marked"), ([1], "1 of them for 2"), ([0, 2], "must be 1"), (None, "0 of them")],
)
def test_labels_that_do_not_fit_the_choices_are_refused(
    normalized: Normalized, labels: Any, rule: str
) -> None:
    assert rule in refusal(normalized, [{**ROW, "truth": labels}], labels="truth")


@pytest.mark.parametrize("answers", [None, "", "  ", []])
def test_a_missing_reference_is_named(normalized: Normalized, answers: Any) -> None:
    message = refusal(normalized, [SOLVED, {**SOLVED, "answers": answers}], ANSWER)
    assert "row 2: references: the " in message


@pytest.mark.parametrize("page", [None, "", " \n"])
def test_an_empty_text_is_named(normalized: Normalized, page: Any) -> None:
    assert "row 1: text: " in refusal(normalized, [{"page": page}], TEXT)


def test_a_missing_column_is_a_mistake_of_the_file_and_names_the_columns(normalized: Normalized) -> None:
    message = refusal(normalized, [ROW], prompt="Q: {{qestion}}")
    assert "quiz.yaml: prompt: there is no column 'qestion' (did you mean 'question'?)" in message
    assert "the columns are question, options, answer" in message


def test_the_rows_of_several_configs_follow_each_other_and_know_their_config(normalized: Normalized) -> None:
    source = {"hub": "acme/quiz", "config": ["space", "sea"], "split": "test"}
    rows = {
        ("space", "test"): [ROW],
        ("sea", "test"): [{**ROW, "answer": 0}, {**ROW, "question": "Deepest?"}],
    }
    items = normalized(rows, source=source, group="__config__").items
    assert [(item.index, item.group, item.target) for item in items] == [
        (0, "space", 1),
        (1, "sea", 0),
        (2, "sea", 1),
    ]
    rows["sea", "test"][1]["answer"] = 5
    assert "acme/quiz, config sea, split test, row 2: target" in refusal(normalized, rows, source=source)


def test_a_filter_leaves_rows_out_and_may_not_leave_out_all(normalized: Normalized) -> None:
    rows = [{**ROW, "keep": 0}, {**ROW, "keep": 1, "options": ["a", "b"]}]
    [item] = normalized(rows, filter="keep == 1").items
    assert (item.index, item.choices) == (0, ("a", "b"))
    assert "filter: no row is left" in refusal(normalized, rows, filter="keep == 2")


def test_exact_duplicates_stay_under_ids_of_their_own_with_one_warning(normalized: Normalized) -> None:
    """Real MMLU repeats 27 of its questions; leaving them out would change every published score."""
    normalized_items = normalized([ROW, {**ROW, "answer": 0}, ROW, ROW])
    ids = [item.sample_id for item in normalized_items.items]
    assert ids[2:] == [f"{ids[0]}-2", f"{ids[0]}-3"]
    assert len(set(ids)) == 4
    [warning] = normalized_items.warnings
    assert "row 3 repeats acme/quiz, split test, row 1 (2 rows of 4 repeat another)" in warning
    assert normalized([ROW]).warnings == ()


def test_a_long_cluster_is_known_by_its_hash(normalized: Normalized) -> None:
    """Every question of a passage would otherwise carry the passage again."""
    rows = [{**ROW, "passage": "p" * 1000}, {**ROW, "passage": "p" * 1000}, {**ROW, "passage": "q" * 1000}]
    first, second, third = (item.cluster for item in normalized(rows, cluster="passage").items)
    assert first == second != third
    assert len(str(first)) == 16


def test_a_benchmark_over_files_reads_them_beside_its_yaml(
    build: Callable[..., BenchmarkSpec], tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("question,a,b,answer\nLargest?,Mars,Jupiter,Jupiter\n")
    (tmp_path / "solved.csv").write_text("q,solution\nSmallest?,Mercury\n")
    fewshot = {"n": 1, "path": "solved.csv", "prompt": "Q: {{q}}\nA:", "answer": "{{solution}}"}
    spec = build(source={"path": "rows.csv"}, choices="[a, b]", fewshot=fewshot)
    [item] = normalize(spec, read_rows).items
    assert (item.choices, item.target) == (("Mars", "Jupiter"), 1)
    assert (item.examples[0].query, item.examples[0].answer) == ("Q: Smallest?\nA:", "Mercury")
    assert benchmark_files(spec) == (tmp_path / "rows.csv", tmp_path / "solved.csv")
    (tmp_path / "rows.csv").write_text("question,a,b,answer\nLargest?,Mars,Jupiter,Venus\n")
    with pytest.raises(UserError, match=r"rows\.csv, row 1: target: 'Venus' is none of the choices"):
        normalize(spec, read_rows)


def test_the_reader_is_asked_for_exactly_what_the_file_declares(build: Callable[..., BenchmarkSpec]) -> None:
    asked: list[RowSource] = []

    def read(source: RowSource) -> list[dict[str, Any]]:
        asked.append(source)
        return [ROW] if source.split == "test" else [{**ROW, "question": "Smallest?"}]

    source = {"hub": "acme/quiz", "config": "c", "split": "test", "revision": "abc"}
    normalize(build(source=source, fewshot={"n": 1, "split": "train"}), read)
    assert asked == [RowSource("acme/quiz", "c", split, "abc") for split in ("test", "train")]
