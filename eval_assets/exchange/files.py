"""The files that the harness writes, found and read; nothing in them is trusted.

Layout of lm_eval 0.4.13 (`EvaluationTracker`): ``<model>/results_<time>.json`` and beside it, of the same
run, ``samples_<task>_<time>.jsonl``; with an output path that ends in .json ``<stem>_<time>.json``.
"""

import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resources.errors import UserError

LARGEST_RESULTS = 256 * 2**20
"""Bytes; a real file with a thousand tasks has a few million."""
LARGEST_SAMPLES = 2 * 2**30
LONGEST_LINE = 64 * 2**20
MOST_SAMPLES = 2_000_000

_TIME = re.compile(r"_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.json$")


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """A results file that was read: its content, and the samples files of its run by the task's name."""

    path: Path
    content: dict[str, Any]
    samples: dict[str, Path]


def find(path: Path) -> list[Path]:
    """The results files at a path: the file itself, or those anywhere below a folder, sorted.

    Raises UserError where there is nothing of the kind.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    found = sorted(
        file
        for file in path.rglob("*.json")
        if (file.name.startswith("results") or _TIME.search(file.name)) and not file.name.startswith(".")
    )
    if not found:
        raise UserError(f"{path}: no results_<time>.json in it; that is what lm_eval writes at --output_path")
    return found


def read(path: Path) -> ResultsFile:
    """One results file. Raises UserError for what is no such file, saying why without naming it."""
    text = _text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is no JSON: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise UserError("it has no 'results': no results file of lm_eval")
    found = {}
    time = _TIME.search(path.name)
    if time is not None:
        ending = f"_{time[1]}.jsonl"
        for file in sorted(path.parent.iterdir()):
            if file.name.startswith("samples_") and file.name.endswith(ending):
                found[file.name.removeprefix("samples_").removesuffix(ending)] = file
    return ResultsFile(path, content, found)


def sanitized(name: str) -> str:
    """A model's or task's name as one of a folder or file, as lm_eval.utils.sanitize_model_name."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)


def time_in_name(path: Path) -> str | None:
    """When the run ended, as the file's name says, in ISO 8601."""
    found = _TIME.search(path.name)
    if found is None:
        return None
    day, _, clock = found[1].partition("T")
    return f"{day}T{clock.replace('-', ':')}"


def _text(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError("it is no ordinary file")
        if status.st_size > LARGEST_RESULTS:
            raise UserError(
                f"it has {status.st_size:,} bytes; a results file has at most {LARGEST_RESULTS:,}"
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"it can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError("it is not UTF-8") from None


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a samples file, one after the other.

    Raises UserError for the first line that is none, and for a file beyond the limits of this module.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path.name} is no ordinary file")
        if status.st_size > LARGEST_SAMPLES:
            raise UserError(f"{path.name} has {status.st_size:,} bytes; at most {LARGEST_SAMPLES:,} are read")
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise UserError(f"{path.name}, line {number}: longer than {LONGEST_LINE:,} bytes")
                if number > MOST_SAMPLES:
                    raise UserError(f"{path.name}: more than {MOST_SAMPLES:,} lines")
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    reason = " ".join(str(error).split())[:120]
                    raise UserError(f"{path.name}, line {number}: no JSON: {reason}") from None
                if not isinstance(value, dict):
                    raise UserError(f"{path.name}, line {number}: no JSON object")
                yield value
    except OSError as error:
        raise UserError(f"{path.name} can't be read: {error.strerror}") from None
