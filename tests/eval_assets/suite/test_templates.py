"""Templates and expressions over a row, in the sandbox."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_assets.suite.templates import MissingColumnError, RowTemplate, TemplateError


def text(source: str, **row: Any) -> Any:
    return RowTemplate(source, expression=False)(row)


def value(source: str, **row: Any) -> Any:
    return RowTemplate(source, expression=True)(row)


@settings(deadline=None)
@given(st.text(), st.text())
def test_a_columns_text_is_shown_exactly_as_it_is(before: str, column: str) -> None:
    """Escaped or stripped text would be another prompt than the one that was declared."""
    before = before.replace("{", "").replace(
        "\r", ""
    )  # Jinja2 itself turns \r\n into \n in a template's source
    assert text(before + "{{a}}\n", a=column) == before + column + "\n"


def test_an_expression_keeps_the_type_of_its_value() -> None:
    row = {"choices": {"text": ["a", "b"], "label": ["1", "2"]}, "key": "2"}
    assert value("choices.text", **row) == ["a", "b"]
    assert value("choices.label.index(key)", **row) == 1
    assert value("['A', 'B']") == ["A", "B"]
    assert value("result", result=[1]) == [1]
    assert value("absent", absent=None) is None


def test_a_column_whose_name_is_no_identifier_is_reached_through_row() -> None:
    assert text("{{ row['the question'] }}", **{"the question": "why?"}) == "why?"


def test_a_missing_column_is_named_with_those_that_there_are_and_the_closest() -> None:
    for render, source in ((text, "Q: {{qestion}}"), (value, "qestion")):
        with pytest.raises(MissingColumnError) as caught:
            render(source, question="x")
        assert "no column 'qestion' (did you mean 'question'?); the columns are question" in str(caught.value)


def test_a_null_is_never_shown_to_a_model_as_the_word_none() -> None:
    with pytest.raises(TemplateError, match="null"):
        text("Q: {{a}}", a=None)
    assert text("Q: {{a or ''}}", a=None) == "Q: "


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ a.__init__.__globals__ }}",
        "{{ ''.format.__globals__ }}",
        "{{ a.append(1) }}",
    ],
)
def test_a_template_reaches_nothing_but_its_row(source: str) -> None:
    """A benchmark file that someone shares must not be able to run code or change rows."""
    row = [0]
    with pytest.raises(TemplateError):
        text(source, a=row)
    assert row == [0]


def test_what_an_expression_stumbles_over_in_a_row_is_one_line() -> None:
    for source, name in (
        ("a.index(3)", "ValueError"),
        ("1 / 0", "ZeroDivisionError"),
        ("a[0].b.c", "attribute"),
    ):
        with pytest.raises(TemplateError, match=name) as caught:
            value(source, a=[1])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["{{ a", "{% if a %}", "{{ a | no_such_filter }}"])
def test_a_wrong_syntax_is_noticed_when_the_template_is_made(source: str) -> None:
    with pytest.raises(TemplateError, match="not a valid Jinja2 template"):
        RowTemplate(source, expression=False)
    with pytest.raises(TemplateError, match="not a valid Jinja2 expression"):
        RowTemplate("a b", expression=True)


@settings(deadline=None)
@given(st.text(alphabet="ab[]1 "))
def test_the_regex_filters_are_pythons(column: str) -> None:
    assert value("a | regex_replace('\\\\[.*?\\\\]', '')", a=column) == re.sub(r"\[.*?\]", "", column)
    assert value("a | regex_findall('[ab]+')", a=column) == re.findall("[ab]+", column)


def test_the_list_filters() -> None:
    assert value("a | map('end_with', '.') | list", a=["x", "y."]) == ["x.", "y."]
    assert value("a | with_item('y')", a=["x"]) == ["x", "y"]
    assert value("a | with_item('x')", a=["x"]) == ["x"]


def test_wikitext_is_detokenized_as_the_harness_does() -> None:
    """Expected value from lm_eval 0.4.13, tasks/wikitext/preprocess_wikitext.py."""
    page = (
        ' = = Heading = = \n The 1 @,@ 200 @.@ 5 @-@ ton ship ( built 1 ) , said " it , sails " ; '
        "the players ' "
        "goal at 5 ° N was James 's [ sic ] . Then ! Why ? { x } : yes /' 5/ \n "
    )
    assert text("{{a | wikitext_detokenize}}", a=page) == (
        ' == Heading ==\nThe 1,200.5-ton ship (built 1), said "it, sails"; the players\''
        "goal at 5°N was James's [sic]. Then! Why? {x}: yes /'[0-9]/\n"
    )
