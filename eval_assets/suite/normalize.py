"""From a benchmark's declaration and rows to its items; a row that can't be one is named in one line."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from eval_assets.suite.fewshot import Candidate, ExamplePool
from eval_assets.suite.items import Example, Item, Items, content_id
from eval_assets.suite.spec import BenchmarkSpec
from eval_assets.suite.templates import MissingColumnError, RowTemplate, TemplateError, joined
from resources.datasets import Row, RowSource, local_files
from resources.errors import UserError

ReadRows: TypeAlias = Callable[[RowSource], list[Row]]
"""`resources.datasets.read_rows` with its mirror filled in."""

T = TypeVar("T")

CONFIG_COLUMN = "__config__"
_LONGEST_CLUSTER = 64


def normalize(spec: BenchmarkSpec, read: ReadRows) -> Items:
    """All items of a benchmark (`limit` is not applied), each with its few-shot examples.

    Exact duplicates stay, under ids of their own, with a warning: real benchmarks have some, and leaving
    them out would change published scores. Raises UserError for the first row that can't be an item.
    """
    reader = _ItemReader(spec)
    own_rows = [pair for source in _sources(spec, spec.source.split) for pair in _rows(source, read)]
    items: list[Item] = []
    first_seen: dict[str, str] = {}
    copies: dict[str, int] = {}
    warning = ""
    for where, row in own_rows:
        item = reader.item(where, row, len(items))
        if item is None:
            continue
        copy = copies[item.sample_id] = copies.get(item.sample_id, 0) + 1
        if copy == 1:
            first_seen[item.sample_id] = where
        else:
            warning = warning or f"{spec.key}: {where} repeats {first_seen[item.sample_id]}"
            item = replace(item, sample_id=f"{item.sample_id}-{copy}")
        items.append(item)
    if not items:
        raise UserError(f"{spec.file}: filter: no row is left; loosen the filter or remove it")
    repeated = len(items) - len(copies)
    if warning:
        more = f" ({repeated} rows of {len(items)} repeat another)" if repeated > 1 else ""
        warning += f"{more}; all are kept, under ids that end in -2, -3 and so on"
    if spec.fewshot.count:
        pool = _example_pool(spec, reader, own_rows, read)
        items = [replace(item, examples=pool.examples_for(item)) for item in items]
    return Items(tuple(items), (warning,) if warning else ())


def _sources(spec: BenchmarkSpec, split: str | None) -> list[RowSource]:
    source = spec.source
    if source.path is not None:
        return [RowSource(path=spec.folder / source.path, format=source.format)]
    return [
        RowSource(hub=source.hub, config=config, split=split, revision=source.revision)
        for config in source.configs
    ]


def _rows(source: RowSource, read: ReadRows) -> Iterable[tuple[str, Row]]:
    """Each row with its place, as errors name it."""
    extra = {} if source.path is not None else {CONFIG_COLUMN: source.config}
    for number, row in enumerate(read(source), start=1):
        yield f"{source}, row {number}", {**row, **extra}


def _example_pool(
    spec: BenchmarkSpec, reader: "_ItemReader", own_rows: list[tuple[str, Row]], read: ReadRows
) -> ExamplePool:
    fewshot = spec.fewshot
    if fewshot.examples:
        written = (Example(example.query, example.answer) for example in fewshot.examples)
        return ExamplePool(spec, (Candidate(example, (example.query,), None) for example in written))
    if fewshot.path is not None:
        source = RowSource(path=spec.folder / fewshot.path)
        return ExamplePool(spec, (reader.foreign_candidate(where, row) for where, row in _rows(source, read)))
    if fewshot.split is not None and fewshot.split != spec.source.split:
        sources = _sources(spec, fewshot.split)
        own_rows = [pair for source in sources for pair in _rows(source, read)]
    candidates = (reader.candidate(where, row) for where, row in own_rows)
    return ExamplePool(spec, (candidate for candidate in candidates if candidate is not None))


class _BadRowError(Exception):
    """What is wrong with a row, and what to do about it."""


class _ItemReader:
    """A benchmark's compiled templates, and the rules that its rows must keep."""

    def __init__(self, spec: BenchmarkSpec) -> None:
        self._spec = spec
        texts = {
            "description": spec.description,
            "prompt": spec.prompt,
            "chat.system": spec.chat.system if spec.chat is not None else None,
            "chat.prefill": spec.chat.prefill if spec.chat is not None else None,
            "fewshot.prompt": spec.fewshot.prompt,
            "fewshot.answer": spec.fewshot.answer,
        }
        values = ("choices", "target", "labels", "references", "incorrect_references", "text", "counted_text")
        expressions = {name: getattr(spec, name) for name in (*values, "group", "cluster", "filter")}
        self._templates = {
            **{name: RowTemplate(source, expression=False) for name, source in texts.items() if source},
            **{name: RowTemplate(source, expression=True) for name, source in expressions.items() if source},
        }

    def item(self, where: str, row: Row, index: int) -> Item | None:
        """The row's item without few-shot examples, or None where the filter leaves it out."""
        return self._at(where, lambda: self._item(row, index) if self._passes(row) else None)

    def candidate(self, where: str, row: Row) -> Candidate | None:
        """A row of the benchmark's own source as a few-shot example."""

        def build() -> Candidate | None:
            if not self._passes(row):
                return None
            item = self._item(row, 0)
            query = self._text("fewshot.prompt", row) if self._spec.fewshot.prompt else item.query
            answer = self._text("fewshot.answer", row) if self._spec.fewshot.answer else self._answer(item)
            return Candidate(self._example(query, answer, row), (item.query, query), item.group)

        return self._at(where, build)

    def foreign_candidate(self, where: str, row: Row) -> Candidate:
        """A row of another file, which may have other columns, as a few-shot example."""

        def build() -> Candidate:
            fewshot = self._spec.fewshot
            query = self._text("fewshot.prompt" if fewshot.prompt else "prompt", row)
            answer = self._text("fewshot.answer", row) if fewshot.answer else self._answer(self._item(row, 0))
            group = self._label("group", row) if fewshot.per_group else None
            return Candidate(self._example(query, answer, row), (query,), group)

        return self._at(where, build)

    def _at(self, where: str, build: Callable[[], T]) -> T:
        spec = self._spec
        try:
            return build()
        except MissingColumnError as error:
            raise UserError(f"{spec.file}: {error} (in {where})") from None
        except (_BadRowError, TemplateError) as error:
            raise UserError(f"{spec.key}: {where}: {error}; correct the row, or {spec.file.name}") from None

    def _item(self, row: Row, index: int) -> Item:
        spec = self._spec
        query = self._text("prompt", row)
        if spec.prompt and not query.strip():
            raise _BadRowError("prompt: the context is empty, so there is nothing to ask")
        choices = self._texts("choices", row)
        labels: tuple[int, ...] = ()
        target = None
        references: tuple[str, ...] = ()
        if spec.task == "multiple_choice":
            _check_choices(choices)
            labels = self._labels(row, choices)
            target = self._target(row, choices)
        elif spec.task == "perplexity":
            references = self._perplexity_texts(row)
        else:
            references = self._references(row)
        incorrect = self._texts("incorrect_references", row)
        group = self._label("group", row)
        try:
            sample_id = content_id(query, choices, target, labels, references, incorrect, group)
        except UnicodeEncodeError:
            raise _BadRowError("a text holds half of a surrogate pair, which is no character") from None
        return Item(
            sample_id=sample_id,
            index=index,
            group=group,
            cluster=self._label("cluster", row),
            description=self._text("description", row),
            system=self._text("chat.system", row) or None,
            examples=(),
            query=query,
            choices=choices,
            target=target,
            labels=labels,
            references=references,
            incorrect_references=incorrect,
            prefill=self._text("chat.prefill", row),
        )

    def _example(self, query: str, answer: str, row: Row) -> Example:
        for part, text in (("question", query), ("answer", answer)):
            if not text.strip():
                raise _BadRowError(f"fewshot: the example's {part} is empty")
        # One space whatever the benchmark's delimiter is: the harness's rule (`build_qa_turn`).
        return Example(query, joined(self._text("chat.prefill", row), answer, " "))

    def _answer(self, item: Item) -> str:
        """What a few-shot example shows as solved."""
        if self._spec.task != "multiple_choice":
            if not item.references:
                raise _BadRowError("references: an example needs an answer; or set fewshot.answer")
            return item.references[0]
        target = item.target if item.target is not None else item.labels.index(1)
        return item.choices[target]

    def _value(self, field: str, row: Row) -> Any:
        template = self._templates.get(field)
        if template is None:
            return None
        try:
            return template(row)
        except TemplateError as error:
            raise type(error)(f"{field}: {error}") from None

    def _passes(self, row: Row) -> bool:
        return "filter" not in self._templates or bool(self._value("filter", row))

    def _text(self, field: str, row: Row) -> str:
        return self._value(field, row) or ""

    def _texts(self, field: str, row: Row) -> tuple[str, ...]:
        value = self._value(field, row)
        return () if value is None else tuple(_as_text(field, entry) for entry in _as_list(field, value))

    def _label(self, field: str, row: Row) -> str | None:
        value = self._value(field, row)
        if value is None or value == "":
            return None
        label = _as_text(field, value)
        if field == "cluster" and len(label) > _LONGEST_CLUSTER:  # a passage is known by its hash as well
            return hashlib.sha256(label.encode(errors="surrogatepass")).hexdigest()[:16]
        return label

    def _target(self, row: Row, choices: tuple[str, ...]) -> int | None:
        if self._spec.target is None:
            return None
        value = self._value("target", row)
        if value is None or value == "" or value == -1:  # -1 is how the hub writes a missing class label
            raise _BadRowError("target: there is no label; evaluate a split that is labelled")
        target = _index_of(value, choices)
        if not 0 <= target < len(choices):
            raise _BadRowError(
                f"target: the label is {target}, and the choices are numbered 0 to {len(choices) - 1}"
            )
        return target

    def _labels(self, row: Row, choices: tuple[str, ...]) -> tuple[int, ...]:
        value = self._value("labels", row)
        if self._spec.labels is None:
            return ()
        labels = tuple(_as_list("labels", value if value is not None else ()))
        if any(label not in (0, 1) for label in labels):
            raise _BadRowError("labels: each must be 1 (true) or 0 (false)")
        if len(labels) != len(choices):
            raise _BadRowError(f"labels: {len(labels)} of them for {len(choices)} choices")
        if 1 not in labels:
            raise _BadRowError("labels: no choice is marked as true; evaluate a split that is labelled")
        return tuple(int(label) for label in labels)

    def _references(self, row: Row) -> tuple[str, ...]:
        if self._spec.references is None:
            return ()
        value = self._value("references", row)
        # A list may say with '' that no answer is the right one; a lone empty cell is a forgotten one.
        if value is None or (isinstance(value, str) and not value.strip()):
            raise _BadRowError("references: the reference is missing")
        references = (value,) if isinstance(value, str) else self._texts_of("references", value)
        if not references:
            raise _BadRowError("references: the list of references is empty")
        return references

    def _texts_of(self, field: str, value: Any) -> tuple[str, ...]:
        if isinstance(value, (int, float)):
            return (_as_text(field, value),)
        return tuple(_as_text(field, entry) for entry in _as_list(field, value))

    def _perplexity_texts(self, row: Row) -> tuple[str, ...]:
        texts = [
            _as_text(field, self._value(field, row))
            for field in ("text", "counted_text")
            if field in self._templates
        ]
        if not all(text.strip() for text in texts):
            raise _BadRowError("text: the text is empty")
        return tuple(texts)


def _check_choices(choices: tuple[str, ...]) -> None:
    if not choices:
        raise _BadRowError("choices: there are no choices")
    if len(choices) == 1:
        raise _BadRowError("choices: there is only one choice, so every model is right")
    if not all(choices):
        raise _BadRowError(f"choices: choice {choices.index('')} is empty")


def _index_of(value: Any, choices: tuple[str, ...]) -> int:
    """A label as the index of a choice: a number, the text of a number, or the text of the choice."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        raise _BadRowError(
            f"target: {type(value).__name__} {value!r} is neither a choice's number nor its text"
        )
    number = int(value) if value.strip().isdecimal() else None
    matches = [index for index, choice in enumerate(choices) if choice == value]
    if number is not None and matches not in ([], [number]):
        raise _BadRowError(
            f"target: '{value}' is the text of a choice and the number of another; write target as a number"
        )
    if number is not None:
        return number
    if not matches:
        raise _BadRowError(f"target: '{value[:80]}' is none of the choices")
    if len(matches) > 1:
        raise _BadRowError(
            f"target: '{value[:80]}' is the text of {len(matches)} choices; write target as a number"
        )
    return matches[0]


def _as_list(field: str, value: Any) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        hint = f" (take its list, such as {field}.text)" if isinstance(value, Mapping) else ""
        raise _BadRowError(f"{field}: expected a list, found {type(value).__name__}{hint}")
    return list(value)


def _as_text(field: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise _BadRowError(f"{field}: expected a text, found {'null' if value is None else type(value).__name__}")


def benchmark_files(spec: BenchmarkSpec, mirror: Path | None = None) -> tuple[Path, ...]:
    """The local files that a benchmark is made from besides its YAML; empty for one that only the hub has."""
    splits = {spec.source.split, spec.fewshot.split or spec.source.split}
    sources = [source for split in sorted(splits, key=str) for source in _sources(spec, split)]
    if spec.fewshot.path is not None:
        sources.append(RowSource(path=spec.folder / spec.fewshot.path))
    return tuple(dict.fromkeys(file for source in sources for file in local_files(source, mirror)))
