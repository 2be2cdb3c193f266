"""The benchmarks that exist: reading, merging and validating their YAML files.

This runs whenever definitions load, so it must be quick and import nothing heavy. Every mistake in a file is
one line that names the file, the field and the rule.
"""

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from eval_assets.suite.spec import (
    BenchmarkSpec,
    Chat,
    Extract,
    FewShot,
    Generation,
    MetricSpec,
    Source,
    WrittenExample,
)
from resources.errors import UserError
from resources.keys import check_dataset_key

SUITE_FOLDER = Path(__file__).parent

_SECTIONS: Mapping[str, type[BaseModel]] = {
    "source": Source,
    "fewshot": FewShot,
    "examples": WrittenExample,
    "chat": Chat,
    "generation": Generation,
    "metrics": MetricSpec,
    "extract": Extract,
}
_SET_BY_THE_LOADER = frozenset({"key", "folder"})


def load_suite(folders: str | Iterable[Path] = ()) -> Mapping[str, BenchmarkSpec]:
    """Every benchmark by its key: the files of this package, then those of the given folders.

    `folders` may be the text of ``EVAL_BENCHMARKS``: paths separated by ``os.pathsep``. A file may start from
    another one with ``extends: key``, whose mappings it merges into and whose other values it replaces; null
    takes a value away. Raises UserError for the first file that breaks a rule.
    """
    paths = [Path(p) for p in folders.split(os.pathsep) if p] if isinstance(folders, str) else list(folders)
    documents: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder in (SUITE_FOLDER, *paths):
        for path in _yaml_files(folder):
            key = check_dataset_key(path.stem, str(path))
            if key in documents:
                raise UserError(
                    f"{path}: benchmark '{key}' exists already ({documents[key][0]}); rename the file"
                )
            documents[key] = (path, _read(path))
    specs = {}
    for key in sorted(documents):
        path, _ = documents[key]
        spec = _validate(path, {**_merged(key, documents, ()), "key": key, "folder": path.parent})
        _check_metrics(path, spec)
        specs[key] = spec
    return specs


def _yaml_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of benchmarks; correct EVAL_BENCHMARKS")
    return sorted(p for p in folder.iterdir() if p.suffix in {".yaml", ".yml"} and not p.name.startswith("."))


def _parse(text: str) -> Any:
    """YAML's safe subset, without fields written twice, of which YAML would silently keep the last."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _refuse_repeated_fields(root, set())
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _refuse_repeated_fields(node: yaml.Node, visited: set[int]) -> None:
    if id(node) in visited or not isinstance(node, yaml.CollectionNode):
        return
    visited.add(id(node))
    seen = set()
    for child in node.value:
        if isinstance(node, yaml.SequenceNode):
            _refuse_repeated_fields(child, visited)
            continue
        name, value = child
        if isinstance(name.value, str) and name.value in seen:
            raise yaml.MarkedYAMLError(
                problem=f"'{name.value}' is written twice", problem_mark=name.start_mark
            )
        seen.add(name.value if isinstance(name.value, str) else id(name))
        _refuse_repeated_fields(value, visited)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = _parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{path}{place}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UserError(
            f"{path}: expected a mapping of fields, found {'nothing' if document is None else 'no mapping'}"
        )
    reserved = next((name for name in document if name in _SET_BY_THE_LOADER), None)
    if reserved is not None:
        raise UserError(f"{path}: {reserved}: unknown field; a benchmark's key is its file's name")
    for section in ("source", "fewshot"):
        _anchor_path(document.get(section), path.parent)
    return document


def _anchor_path(section: Any, folder: Path) -> None:
    """Make a relative path absolute: it starts at its own file's folder even where it is inherited."""
    if isinstance(section, dict) and isinstance(section.get("path"), str) and section["path"]:
        section["path"] = str((folder / section["path"]).resolve())


def _merged(
    key: str, documents: Mapping[str, tuple[Path, dict[str, Any]]], children: tuple[str, ...]
) -> dict[str, Any]:
    path, document = documents[key]
    base_key = document.get("extends")
    if base_key is None:
        return document
    if not isinstance(base_key, str) or base_key not in documents:
        raise UserError(
            f"{path}: extends: there is no benchmark '{base_key}'{_did_you_mean(str(base_key), documents)}"
        )
    if base_key in (key, *children):
        raise UserError(f"{path}: extends: '{base_key}' extends '{key}' in turn; break the circle")
    own = {name: value for name, value in document.items() if name != "extends"}
    return _merge(_merged(base_key, documents, (key, *children)), own)


def _merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**base}
    for name, value in own.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merge(merged[name], value)
        else:
            merged[name] = value
    return merged


def _validate(path: Path, document: dict[str, Any]) -> BenchmarkSpec:
    try:
        return BenchmarkSpec.model_validate(document)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=True)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        # A misspelt field is also a missing one: name the cause first.
        first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        place, rule = _explain(dict(first))
        raise UserError(f"{path}: {f'{place}: ' if place else ''}{rule}{more}") from None


def _explain(problem: Mapping[str, Any]) -> tuple[str, str]:
    """Where and what, of one of pydantic's errors."""
    section: type[BaseModel] = BenchmarkSpec
    place = ""
    for part in problem["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part in section.model_fields or problem["type"] == "extra_forbidden":
            place += f".{part}" if place else str(part)
        # Anything else is a tag that pydantic adds for a member of a union.
        if isinstance(part, str) and part in section.model_fields:
            section = _SECTIONS.get(part, section)
    if problem["type"] == "extra_forbidden":
        fields = section.model_fields.keys() - _SET_BY_THE_LOADER
        hint = _did_you_mean(str(problem["loc"][-1]), fields)
        return place, f"unknown field{hint or '; the fields are ' + ', '.join(sorted(fields))}"
    if problem["type"] == "missing":
        return place, "this field is required"
    message = " ".join(str(problem["msg"]).removeprefix("Value error, ").split())
    value = problem["input"]
    shown = (
        f", not {value!r}" if isinstance(value, (str, int, float, bool)) and len(repr(value)) <= 60 else ""
    )
    return place, message + ("" if problem["type"] == "value_error" else shown)


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def prepared_spec(record: Mapping[str, Any] | None) -> BenchmarkSpec | None:
    """The declaration that a benchmark was prepared with, from `ResultsStore.benchmark`.

    None without a record, and for one of another version of this code that can't be read now.
    """
    try:
        return None if record is None else BenchmarkSpec.model_validate(record.get("spec"))
    except ValidationError:
        return None


def _check_metrics(path: Path, spec: BenchmarkSpec) -> None:
    from eval_assets.metrics import METRICS, check_metrics  # their types come from this package

    declared = [name for name in BenchmarkSpec.model_fields if getattr(spec, name) is not None]
    check_metrics(spec.task, spec.metrics, f"{path}: metrics", declared, spec.generation.outputs)
    primary = next(metric for metric in spec.metrics if metric.name == spec.primary_metric)
    if METRICS[primary.metric].higher_is_better is None:
        raise UserError(
            f"{path}: primary_metric: '{primary.metric}' is neither better nor worse; choose another"
        )
