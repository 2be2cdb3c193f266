"""Rows from files, from a mirror and from the hub's library."""

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resources.datasets import RowSource, read_rows
from resources.errors import UserError

ROWS = [
    {"question": "Größter Planet?", "choices": ["Mars", "Jupiter"], "answer": 1},
    {"question": 'A "quoted", long\nquestion', "choices": ["a", "b", "c"], "answer": 0},
]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def message_for(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_rows(RowSource(path=path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows.jsonl.gz"])
def test_a_file_gives_its_rows_as_plain_values_in_order(tmp_path: Path, name: str) -> None:
    write = write_parquet if name.endswith("parquet") else write_jsonl
    assert read_rows(RowSource(path=write(tmp_path / name, ROWS))) == ROWS


def test_a_csv_cell_may_hold_commas_quotes_and_line_ends_and_is_always_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    cells = [["question", "answer"], ['A "quoted", long\nquestion', "1"], ["Größe?", ""]]
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # with the mark that Excel writes
        csv.writer(file).writerows(cells)
    assert read_rows(RowSource(path=path)) == [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def test_a_csv_cell_may_be_longer_than_a_passage(tmp_path: Path) -> None:
    """The csv module refuses cells above 128 KiB unless told otherwise, which a long document exceeds."""
    path = tmp_path / "long.csv"
    path.write_text("text\n" + "x" * 200_000 + "\n")
    before = csv.field_size_limit()
    assert len(read_rows(RowSource(path=path))[0]["text"]) == 200_000
    assert csv.field_size_limit() == before


def test_a_given_format_wins_over_the_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("a,b\n1,2\n")
    assert "format" in message_for(path)
    assert read_rows(RowSource(path=path, format="csv")) == [{"a": "1", "b": "2"}]


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert "no such file" in message_for(tmp_path / "absent.csv")
    assert "not a file" in message_for(tmp_path)


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl", "e.parquet", "e.jsonl.gz"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "empty" in message_for(tmp_path / name)


def test_a_file_that_holds_no_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "header.csv").write_text("question,answer\n")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "none.parquet")
    for name in ("header.csv", "blank.jsonl", "none.parquet"):
        assert "no rows" in message_for(tmp_path / name)


@pytest.mark.parametrize("keep", [4, 40, -1])
def test_a_truncated_parquet_file_is_named(tmp_path: Path, keep: int) -> None:
    path = write_parquet(tmp_path / "cut.parquet", ROWS * 50)
    path.write_bytes(path.read_bytes()[:keep])
    assert "not a readable Parquet file" in message_for(path)


def test_a_broken_json_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2\n')
    assert "line 3: not valid JSON" in message_for(path)
    path.write_text('{"a": 1}\n[1, 2]\n')
    assert "line 2: a JSON list" in message_for(path)


def test_a_cut_off_gzip_stream_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl.gz", ROWS * 50)
    path.write_bytes(path.read_bytes()[:-20])
    assert "gzip" in message_for(path)
    path.write_bytes(b"no gzip at all")
    assert "gzip" in message_for(path)


@pytest.mark.parametrize("name", ["latin.csv", "latin.jsonl"])
def test_another_encoding_than_utf_8_is_said(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = "question,answer\nGröße,1\n" if name.endswith("csv") else '{"question": "Größe"}\n'
    path.write_bytes(text.encode("latin-1"))
    message = message_for(path)
    assert "not UTF-8" in message
    assert "0xf6" in message


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a,b\n1,2\n1,2,3\n", "line 3: 3 cells where the header has 2"),
        ("a,b\n1\n", "line 2: 1 cells where the header has 2"),
        ("a,,c\n1,2,3\n", "without a name"),
        ("a,b,a\n1,2,3\n", "two columns are called 'a'"),
        ('a,b\n"1,2\n', "not valid CSV"),
    ],
)
def test_a_ragged_or_broken_csv_is_named_by_its_line(tmp_path: Path, text: str, rule: str) -> None:
    path = tmp_path / "ragged.csv"
    path.write_text(text)
    assert rule in message_for(path)


def test_the_mirror_is_read_before_the_hub_is_asked(tmp_path: Path) -> None:
    """An air-gapped cluster evaluates from its mirror alone."""
    write_parquet(tmp_path / "acme/quiz/hard/test.parquet", ROWS)
    source = RowSource(hub="acme/quiz", config="hard", split="test")
    assert read_rows(source, mirror=tmp_path) == ROWS
    assert "datasets" not in sys.modules or "acme" not in str(sys.modules["datasets"])


def test_a_mirror_may_hold_the_hubs_own_shards_but_not_a_part_of_them(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        write_parquet(tmp_path / f"acme/quiz/default/test-0000{number}-of-00002.parquet", [row])
    source = RowSource(hub="acme/quiz", split="test")
    assert read_rows(source, mirror=tmp_path) == ROWS
    (tmp_path / "acme/quiz/default/test-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="1 of 2 files"):
        read_rows(source, mirror=tmp_path)


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        (RowSource(hub="../secrets", split="test"), "hub '../secrets'"),
        (RowSource(hub="acme/quiz", config="../../etc", split="test"), "config '../../etc'"),
        (RowSource(hub="acme/quiz", split="../test"), "split '../test'"),
        (RowSource(hub="acme/quiz", split="test[:100]"), "set 'limit'"),
        (RowSource(), "give one of them"),
    ],
)
def test_names_that_leave_the_mirror_or_slice_a_split_are_refused(
    tmp_path: Path, source: RowSource, rule: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_rows(source, mirror=tmp_path)
    assert rule in str(caught.value)


def run_with_datasets(code: str, folder: Path, **environment: str) -> str:
    """The library reads its settings when imported, so each of these tests gives it a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={
            **os.environ,
            "HF_HOME": str(folder / "home"),
            "PYTHONPATH": os.pathsep.join(sys.path),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_hub_data_set_that_cannot_be_had_is_one_line_that_says_where_it_was_looked_for(
    tmp_path: Path,
) -> None:
    """Nothing listens at the address, as in a cluster without a way out: no traceback, no endless retry."""
    code = (
        "from pathlib import Path\n"
        "from resources.datasets import RowSource, read_rows\n"
        "from resources.errors import UserError\n"
        "try: read_rows(RowSource(hub='acme/quiz', split='test'), mirror=Path('mirror'))\n"
        "except UserError as error: print(error)\n"
    )
    output = run_with_datasets(code, tmp_path, HF_ENDPOINT="http://127.0.0.1:9").splitlines()
    [message] = [line for line in output if "acme/quiz" in line]
    assert "not in the mirror mirror" in message
    assert "not to be had from the hub" in message


def test_the_library_gives_class_labels_as_numbers_and_lists_as_lists(tmp_path: Path) -> None:
    """The library reads a data set's repository; here it lies in the folder of the same name."""
    (tmp_path / "acme/quiz").mkdir(parents=True)
    code = (
        "import datasets\n"
        "text = datasets.Value('string')\n"
        "label = datasets.ClassLabel(names=['no', 'yes'])\n"
        "features = datasets.Features({'text': text, 'tags': datasets.List(text), 'label': label})\n"
        "rows = datasets.Dataset.from_list([{'text': 'x', 'tags': ['a'], 'label': 1}], features=features)\n"
        "rows.to_parquet('acme/quiz/test.parquet')\n"
        "from resources.datasets import RowSource, read_rows\n"
        "print(read_rows(RowSource(hub='acme/quiz', split='test')))\n"
    )
    output = run_with_datasets(code, tmp_path, HF_HUB_OFFLINE="1")
    assert output.splitlines()[-1] == "[{'text': 'x', 'tags': ['a'], 'label': 1}]"
