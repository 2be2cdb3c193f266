"""Jinja2 over the columns of a row, in the sandbox: templates give a text, expressions any value.

The environment renders as the reference harness's does (lm_eval 0.4.13, `lm_eval/utils.py`: undefined names
are errors, a trailing newline is kept, nothing is escaped), so that its templates give the same text here.
"""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.meta
import jinja2.sandbox


class TemplateError(Exception):
    """What is wrong with a template or with a row that it was given: one line without the place."""


class MissingColumnError(TemplateError):
    """A template names a column that the rows do not have: the declaration's mistake, not a row's."""


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)


def _regex_findall(text: str, pattern: str) -> list[Any]:
    return re.findall(pattern, text)


def _end_with(text: str, suffix: str) -> str:
    return text if text.endswith(suffix) else text + suffix


def _with_item(items: list[Any], item: Any) -> list[Any]:
    return items if item in items else [*items, item]


def wikitext_detokenize(page: str) -> str:
    """Undo WikiText's tokenization, rule by rule as lm_eval 0.4.13 (tasks/wikitext) does."""
    text = page.replace("s '", "s'")
    # The slashes were once meant as delimiters; the rule is kept as the harness has it.
    text = re.sub(r"/' [0-9]/", r"/'[0-9]/", text)
    for tokenized, written in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")):
        text = text.replace(tokenized, written)
    for mark in ":;.!?,":
        text = text.replace(f" {mark} ", f"{mark} ")
    text = re.sub(r"\(\s*([^\)]*?)\s*\)", r"(\1)", text)
    text = re.sub(r"\[\s*([^\]]*?)\s*\]", r"[\1]", text)
    text = re.sub(r"{\s*([^}]*?)\s*}", r"{\1}", text)
    text = re.sub(r"\"\s*([^\"]*?)\s*\"", r'"\1"', text)
    text = re.sub(r"'\s*([^']*?)\s*'", r"'\1'", text)
    for tokenized, written in (
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ):
        text = text.replace(tokenized, written)
    return text


FILTERS: Mapping[str, Callable[..., Any]] = {
    "regex_replace": _regex_replace,
    "regex_findall": _regex_findall,
    "end_with": _end_with,
    "with_item": _with_item,
    "wikitext_detokenize": wikitext_detokenize,
}
"""Filters beyond Jinja2's own; docs/adding-a-benchmark.md lists them."""


def _no_null(value: Any) -> Any:
    # A null cell would otherwise be shown to the model as the word "None".
    if value is None:
        raise TemplateError(
            "a value is null; fill it in, or write {{ column or '' }} where it may be missing"
        )
    return value


@lru_cache(maxsize=1)
def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_no_null
    )
    environment.filters.update(FILTERS)
    return environment


class RowTemplate:
    """A compiled template (`expression` false: the value is a text) or expression (any value).

    Called with a row, whose columns are variables; the whole row is the variable `row`, for columns whose
    names are not identifiers. Raises TemplateError, also when constructed with a wrong syntax.
    """

    def __init__(self, source: str, *, expression: bool) -> None:
        self._source = source
        self._expression = expression
        try:
            if expression:
                compiled = _environment().compile_expression(source, undefined_to_none=False)
                self._call: Callable[[dict[str, Any]], Any] = lambda context: compiled(context)
            else:
                self._call = _environment().from_string(source).render
        except jinja2.TemplateSyntaxError as error:
            kind = "expression" if expression else "template"
            raise TemplateError(f"not a valid Jinja2 {kind}: {error.message}") from None
        # A template without variables gives one text for all rows; most descriptions are such.
        self._constant = None if expression or "{" in source else source

    def __call__(self, row: Mapping[str, Any]) -> Any:
        if self._constant is not None:
            return self._constant
        try:
            value = self._call({"row": row, **row})
            if isinstance(value, jinja2.Undefined):
                str(value)  # raises, with the reason
            return value
        except TemplateError:
            raise
        except jinja2.UndefinedError as error:
            raise self._why_undefined(row, error) from None
        except jinja2.exceptions.SecurityError as error:
            raise TemplateError(f"not allowed in a benchmark's template: {one_line(error)}") from None
        except Exception as error:  # whatever an expression does to a row's value: divide, index, look up
            raise TemplateError(f"can't be computed: {type(error).__name__}: {one_line(error)}") from None

    def _why_undefined(self, row: Mapping[str, Any], error: jinja2.UndefinedError) -> TemplateError:
        template = "{% set _ = (" + self._source + ") %}" if self._expression else self._source
        environment = _environment()
        named = jinja2.meta.find_undeclared_variables(environment.parse(template))
        missing = sorted(named - set(row) - set(environment.globals) - {"row"})
        if not missing:
            return TemplateError(one_line(error))
        close = get_close_matches(missing[0], list(row), n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        return MissingColumnError(
            f"there is no column '{missing[0]}'{hint}; the columns are {', '.join(row)}"
        )


def joined(first: str, second: str, delimiter: str) -> str:
    """Both texts; the delimiter only where there is no white space between them already.

    The harness's `maybe_delimit` (lm_eval 0.4.13, `lm_eval/api/utils.py`).
    """
    if not first or not second:
        return first or second
    touching = first[-1].isspace() or second[0].isspace()
    return first + ("" if touching else delimiter) + second


def one_line(error: BaseException) -> str:
    """An exception's text as one line of at most 200 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
