"""A benchmark's declaration: the schema of the YAML files in this folder and in ``EVAL_BENCHMARKS``.

Text fields (`prompt`, `description`, ...) are Jinja2 templates over a row's columns; value fields
(`choices`, `target`, ...) are Jinja2 *expressions* whose value is used as it is, so that a list stays a
list. A plain column name is such an expression. docs/adding-a-benchmark.md explains every field.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from eval_assets.suite.templates import RowTemplate, TemplateError

TaskType: TypeAlias = Literal["multiple_choice", "generation", "perplexity"]


def _template(source: str) -> str:
    return _compiles(source, expression=False)


def _expression(source: str) -> str:
    return _compiles(source, expression=True)


def _compiles(source: str, *, expression: bool) -> str:
    try:
        RowTemplate(source, expression=expression)
    except TemplateError as error:
        raise ValueError(str(error)) from None
    return source


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a valid regular expression: {error}") from None
    return pattern


Template: TypeAlias = Annotated[
    str, AfterValidator(_template), Field(description="Jinja2 template over the columns of a row")
]
Expression: TypeAlias = Annotated[
    str, AfterValidator(_expression), Field(description="Jinja2 expression over the columns of a row")
]
Pattern: TypeAlias = Annotated[
    str, AfterValidator(_regular_expression), Field(description="Python regular expression")
]
Text: TypeAlias = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """Where rows come from: a hub dataset (looked up in ``EVAL_DATA_MIRROR`` first) or one file.

    A relative `path` starts at the YAML file's folder. `config` may be a list: the rows of all of them, one
    after the other. Every row of a hub dataset has a column ``__config__`` holding its config's name.
    """

    hub: Text | None = None
    config: Text | Annotated[tuple[Text, ...], Field(min_length=1)] = "default"
    revision: Text | None = None
    path: Text | None = None
    format: Literal["parquet", "jsonl", "csv"] | None = None
    split: Text | None = None

    @property
    def configs(self) -> tuple[str, ...]:
        return (self.config,) if isinstance(self.config, str) else self.config

    @model_validator(mode="after")
    def _one_place(self) -> "Source":
        if (self.hub is None) == (self.path is None):
            raise ValueError("give exactly one of 'hub' and 'path'")
        if self.hub is not None and self.split is None:
            raise ValueError("a hub source needs a 'split'")
        for field in ("config", "revision", "split") if self.path is not None else ("format",):
            if field in self.model_fields_set:
                raise ValueError(f"'{field}' does not go with '{'hub' if self.path is None else 'path'}'")
        return self


class WrittenExample(_Strict):
    """One few-shot example written out in the YAML."""

    query: str
    answer: str


class FewShot(_Strict):
    """Solved examples before the question.

    They come from another `split` of the source, from a file (`path`), from the `examples` written out, or
    else from the benchmark's own rows. `pick: first` takes the first `n`, `seeded` draws `n` for each item
    from a generator seeded with `seed` and the item's id. An item is never its own example. With `per_group`
    the examples come from rows of the item's own group. `prompt` and `answer` replace the benchmark's own
    prompt and right answer in examples. Without `n`, all written-out examples are shown, and no others.
    """

    n: Annotated[int, Field(ge=0)] | None = None
    split: Text | None = None
    path: Text | None = None
    pick: Literal["first", "seeded"] = "first"
    seed: int = 1234
    per_group: bool = False
    examples: tuple[WrittenExample, ...] = ()
    prompt: Template | None = None
    answer: Template | None = None

    @property
    def count(self) -> int:
        """How many examples each item is shown."""
        return len(self.examples) if self.n is None else self.n

    @model_validator(mode="after")
    def _one_place(self) -> "FewShot":
        places = [f for f in ("split", "path", "examples") if getattr(self, f)]
        if len(places) > 1:
            raise ValueError(f"'{places[0]}' and '{places[1]}' are two places for examples; keep one")
        if self.examples and self.count > len(self.examples):
            raise ValueError(f"n is {self.n}, but only {len(self.examples)} examples are written out")
        if self.examples and (self.per_group or self.prompt or self.answer):
            raise ValueError(
                "'per_group', 'prompt' and 'answer' do not go with 'examples' that are written out"
            )
        return self


class Chat(_Strict):
    """Ask through the model's chat template.

    `prefill` is the beginning of the assistant's answer: the model goes on from there. Examples from rows
    show it before their answers; written-out ones are shown as they are. `fewshot_as_turns`: each example
    is a user and an assistant turn; otherwise all are in one user turn.
    """

    system: Template | None = None
    prefill: Template | None = None
    fewshot_as_turns: bool = True


class Generation(_Strict):
    """How an answer is generated: until one of `stop` or `max_new_tokens`; greedily without a `temperature`.

    With one, tokens are drawn at random, `outputs` times for each item; `top_k` 0 and `top_p` 1 leave all.
    """

    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    stop: tuple[Text, ...] = ("\n\n",)
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1234
    outputs: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _sampling_needs_a_temperature(self) -> "Generation":
        for field in ("outputs", "top_p", "top_k", "seed"):
            if not self.temperature and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"'{field}' needs a 'temperature' above 0; without one decoding is greedy")
        return self


class Extract(_Strict):
    """Take the answer out of an output: the `pick`-th match of `regex` (its first non-empty group)."""

    regex: Pattern
    pick: Literal["first", "last"] = "first"


class MetricSpec(_Strict):
    """One metric of a benchmark. `name` is what results call it and defaults to `metric` (k 10: pass@10).

    `of` is the name of the metric that says which of an item's outputs are right, `k` how many are looked at.
    """

    metric: Text
    name: Text = ""
    extract: Extract | None = None
    ignore_case: bool = False
    ignore_punctuation: bool = False
    ignore_patterns: tuple[Pattern, ...] = ()
    stem: bool = False
    of: Text | None = None
    k: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, str):
            value = {"metric": value}
        if isinstance(value, Mapping) and "metric" in value:
            name = f"pass@{value['k']}" if value["metric"] == "pass@k" and "k" in value else value["metric"]
            return {"name": name, **value}
        return value


_TASK_FIELDS: Mapping[TaskType, frozenset[str]] = {
    "multiple_choice": frozenset({"choices", "target", "labels"}),
    "generation": frozenset({"references", "incorrect_references", "generation"}),
    "perplexity": frozenset({"text", "counted_text"}),
}


class BenchmarkSpec(_Strict):
    """One benchmark, as its YAML file declares it."""

    key: str
    version: int | str
    title: Text
    source: Source
    task: TaskType
    tags: tuple[str, ...] = ()
    licence: str | None = None
    citation: str | None = None

    description: Template = ""
    prompt: Template = ""
    delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    fewshot: FewShot = FewShot()
    chat: Chat | None = None

    choices: Expression | None = None
    target: Expression | None = None
    labels: Expression | None = None
    references: Expression | None = None
    incorrect_references: Expression | None = None
    text: Expression | None = None
    counted_text: Expression | None = None
    group: Expression | None = None
    cluster: Expression | None = None
    filter: Expression | None = None

    generation: Generation = Generation()
    metrics: Annotated[tuple[MetricSpec, ...], Field(min_length=1)]
    primary_metric: str
    limit: Annotated[int, Field(ge=1)] | None = None

    folder: Annotated[Path, Field(exclude=True)] = Path()
    """The folder of the YAML file, for relative paths; no part of the benchmark's identity."""

    @property
    def file(self) -> Path:
        """The YAML file, as errors name it."""
        return self.folder / f"{self.key}.yaml"

    @model_validator(mode="after")
    def _fields_fit_the_task(self) -> "BenchmarkSpec":
        for task, fields in _TASK_FIELDS.items():
            foreign = sorted(fields & self.model_fields_set) if task != self.task else []
            if foreign:
                raise ValueError(f"'{foreign[0]}' is for task {task}, and this one is {self.task}")
        if self.task != "perplexity" and not self.prompt:
            raise ValueError(f"task {self.task} needs a 'prompt'")
        if self.task == "multiple_choice" and self.choices is None:
            raise ValueError("task multiple_choice needs 'choices'")
        if self.task == "multiple_choice" and self.target is None and self.labels is None:
            raise ValueError("task multiple_choice needs a 'target', or 'labels'")
        if self.task == "perplexity":
            self._check_perplexity()
        return self

    def _check_perplexity(self) -> None:
        if self.text is None:
            raise ValueError("task perplexity needs a 'text'")
        context = [f for f in ("description", "chat") if getattr(self, f)]
        if self.fewshot.count:
            context.append("fewshot")
        if context and not self.prompt:
            raise ValueError(f"'{context[0]}' needs a 'prompt': without one a text is read from its start")

    @model_validator(mode="after")
    def _fewshot_has_rows(self) -> "BenchmarkSpec":
        if self.fewshot.split is not None and self.source.path is not None:
            raise ValueError("fewshot.split: a file has no splits; name another file in 'fewshot.path'")
        if self.fewshot.per_group and self.group is None:
            raise ValueError("fewshot.per_group needs a 'group'")
        return self

    @model_validator(mode="after")
    def _primary_metric_is_there(self) -> "BenchmarkSpec":
        names = [metric.name for metric in self.metrics]
        if self.primary_metric not in names:
            raise ValueError(
                f"primary_metric '{self.primary_metric}' is none of the metrics: {', '.join(names)}"
            )
        return self
