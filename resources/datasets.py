"""Rows of a data set, from a hub data set (a local mirror first) or from a Parquet, JSONL or CSV file."""

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from resources.errors import UserError

Row: TypeAlias = dict[str, Any]
Format: TypeAlias = Literal["parquet", "jsonl", "csv"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_CONFIG = re.compile(r"[\w][\w .+-]*")
_SPLIT = re.compile(r"\w+(\.\w+)*")
_FORMATS: dict[str, Format] = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


@dataclass(frozen=True, slots=True)
class RowSource:
    """One split of a hub data set (`hub`, `config`, `split`, `revision`), or one file (`path`).

    A file's format is told by its name (``.parquet``, ``.jsonl``, ``.csv``; JSONL also with ``.gz``)
    unless `format` says it.
    """

    hub: str | None = None
    config: str = "default"
    split: str | None = None
    revision: str | None = None
    path: Path | None = None
    format: Format | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        config = "" if self.config == "default" else f", config {self.config}"
        return f"{self.hub}{config}, split {self.split}"


def read_rows(source: RowSource, mirror: Path | None = None) -> list[Row]:
    """All rows of a source, in order, as plain Python values; a class label is its number.

    A hub data set is looked for as ``<mirror>/<hub id>/<config>/<split>.parquet`` (or, as the hub itself
    names its files, ``<split>-00000-of-00002.parquet`` and so on), and only then asked for from the hub.

    Raises UserError, in one line, for whatever a user can put right: a file that is missing, empty,
    truncated, in another encoding or format; an unknown data set, config or split; no network.
    """
    if source.path is not None:
        rows = _read_file(source.path, source.format)
    elif source.hub is not None:
        _check_hub_names(source)
        files = _mirrored(source, mirror) if mirror is not None else []
        rows = [row for file in files for row in _read_parquet(file)] if files else _read_hub(source, mirror)
    else:
        raise UserError("a data source needs a hub id or a file's path; give one of them")
    if not rows:
        raise UserError(
            f"{source}: there are no rows in it; check that it is the right file and was written fully"
        )
    return rows


def local_files(source: RowSource, mirror: Path | None = None) -> list[Path]:
    """The files on this machine that `read_rows` would read; empty where it would ask the hub."""
    if source.path is not None:
        return [source.path]
    return _mirrored(source, mirror) if mirror is not None and source.hub is not None else []


def _read_file(path: Path, file_format: Format | None) -> list[Row]:
    if not path.exists():
        raise UserError(
            f"{path}: no such file; check the path (a relative one starts at the YAML file's folder)"
        )
    if not path.is_file():
        raise UserError(f"{path}: is not a file; name one Parquet, JSONL or CSV file")
    chosen = file_format or _FORMATS.get(path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix)
    if chosen is None:
        raise UserError(
            f"{path}: the name does not tell the format; end it in .parquet, .jsonl or .csv, or set 'format'"
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; write it again")
    readers: dict[Format, Callable[[Path], list[Row]]] = {
        "parquet": _read_parquet,
        "jsonl": _read_jsonl,
        "csv": _read_csv,
    }
    try:
        return readers[chosen](path)
    except PermissionError:
        raise UserError(f"{path}: may not be read; change its permissions") from None


def _read_parquet(path: Path) -> list[Row]:
    try:
        # A dataset reader would take 'config=x' in a parent folder's name for a column.
        with pq.ParquetFile(path) as file:
            rows: list[Row] = file.read().to_pylist()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise UserError(
            f"{path}: not a readable Parquet file (truncated, or another format); write or copy it again "
            f"[{_first_line(error)}]"
        ) from None
    return rows


@contextmanager
def _one_line_for_broken_text(path: Path) -> Iterator[None]:
    """Turn what a broken encoding or gzip stream raises into a UserError that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x} can't be decoded); save it as UTF-8"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: the gzip stream is broken or cut off; copy it again [{_first_line(error)}]"
        ) from None


def _read_jsonl(path: Path) -> list[Row]:
    compressed = path.suffix == ".gz"
    rows: list[Row] = []
    with (
        _one_line_for_broken_text(path),
        gzip.open(path, "rt", encoding="utf-8-sig")
        if compressed
        else path.open(encoding="utf-8-sig") as lines,
    ):
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number}: not valid JSON ({_first_line(error)}); "
                    "write one JSON object a line"
                ) from None
            if not isinstance(row, dict):
                raise UserError(
                    f"{path}, line {number}: a JSON {type(row).__name__}, not an object; "
                    "write one JSON object a line"
                )
            rows.append(row)
    return rows


def _read_csv(path: Path) -> list[Row]:
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a passage may be longer than csv's 128 KiB
    try:
        with _one_line_for_broken_text(path), path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            try:
                header = next(reader, [])
                _check_header(path, header)
                rows: list[Row] = []
                for cells in reader:
                    if not cells:
                        continue
                    if len(cells) != len(header):
                        raise UserError(
                            f"{path}, line {reader.line_num}: {len(cells)} cells where the header has "
                            f"{len(header)}; quote cells that contain a comma"
                        )
                    rows.append(dict(zip(header, cells, strict=True)))
            except csv.Error as error:
                raise UserError(
                    f"{path}, line {reader.line_num}: not valid CSV ({_first_line(error)}); check its quotes"
                ) from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _check_header(path: Path, header: list[str]) -> None:
    if not header or not all(name.strip() for name in header):
        raise UserError(f"{path}, line 1: a column without a name; the first line must name every column")
    doubled = next((name for name in header if header.count(name) > 1), None)
    if doubled is not None:
        raise UserError(f"{path}, line 1: two columns are called '{doubled}'; rename one")


def _check_hub_names(source: RowSource) -> None:
    """These names become parts of a path in the mirror, so none may leave it."""
    for field, value, rule in (("hub", source.hub, _HUB_ID), ("config", source.config, _CONFIG)):
        if value is None or not rule.fullmatch(value):
            raise UserError(f"{field} '{value}': not a name that a hub data set can have; check its spelling")
    if source.split is None or not _SPLIT.fullmatch(source.split):
        raise UserError(
            f"split '{source.split}' of {source.hub}: give a split's plain name, such as 'test'; "
            "to evaluate fewer items set 'limit'"
        )


def _mirrored(source: RowSource, mirror: Path) -> list[Path]:
    folder = mirror / str(source.hub) / source.config
    whole = folder / f"{source.split}.parquet"
    if whole.is_file():
        return [whole]
    shards = sorted(folder.glob(f"{source.split}-[0-9]*-of-[0-9]*.parquet"))
    if shards and len(shards) != (expected := int(shards[0].stem.rsplit("-", 1)[1])):
        raise UserError(
            f"{folder}: {len(shards)} of {expected} files of split '{source.split}'; copy the rest"
        )
    return shards


def _read_hub(source: RowSource, mirror: Path | None) -> list[Row]:
    import datasets  # takes seconds to import, and a mirrored data set never needs it

    looked = f"not in the mirror {mirror} and " if mirror is not None else ""
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(
            str(source.hub),
            None if source.config == "default" else source.config,
            split=source.split,
            revision=source.revision,
        )
        return [dict(row) for row in table]
    except Exception as error:
        # The library and those below it raise a dozen kinds of error; to a user all mean "not to be had".
        raise UserError(
            f"{source}: {looked}not to be had from the hub; check names and network, or put the split "
            f"into the folder that EVAL_DATA_MIRROR names [{type(error).__name__}: {_first_line(error)}]"
        ) from None


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "")
    return line if len(line) <= 200 else line[:197] + "..."
