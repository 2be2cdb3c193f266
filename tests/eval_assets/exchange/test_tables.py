"""Tables of the catalogue, written to files and read back by the tools that people use."""

import csv
import json
import math
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval_assets.exchange.tables import FORMATS, export_table
from resources.catalog import Catalog
from resources.errors import UserError
from resources.records import Estimate, MetricRow, Output, Sample
from resources.results import Cell, ResultsStore
from tests.conftest import ROOT
from tests.resources.test_results import findings

HOSTILE = 'a "quoted", text;\nwith lines\r\n\t=cmd()|<script>\u202e\x07 NaN Infinity 😀'


@pytest.fixture
def catalog(store: ResultsStore) -> Catalog:
    for model, dataset, day in (("m@1", "squad", 1), ("m@2", "squad", 2), ("other@1", "quiz", 3)):
        samples = [
            Sample(
                f"id{i}", i, None if i else "g", None, HOSTILE if i == 0 else f"prompt {i}",
                choices=["a", HOSTILE], loglikelihoods=[-1.5, -math.inf], output="o",
                outputs=[Output(HOSTILE, "stop", 1, {"f1": 0.5})], scores={"f1": i / 3, "odd": math.nan},
            )
            for i in range(4)
        ]  # fmt: skip
        record = findings(
            model_name=model[:-2], model_version=model[-1], samples=4, items_available=4,
            started_at=f"2026-01-0{day}T00:00:00+00:00", finished_at=f"2026-01-0{day}T12:00:00+00:00",
            score={"value": 0.5, "stderr": 0.1, "ci_low": 0.3, "ci_high": 0.7},
        )  # fmt: skip
        with store.writer(Cell(dataset, model, f"{day}" * 64)) as writer:
            rows = [MetricRow(name, None, Estimate(0.1 + 0.2, None, None, None, 4)) for name in ("f1", "odd")]
            writer.commit(samples, rows, record)
    catalog = Catalog(store)
    catalog.refresh()
    return catalog


@pytest.mark.parametrize(
    "table", ["samples", "metrics", "evaluations", "leaderboard", "history", "sample_scores"]
)
def test_parquet_and_arrow_hold_what_the_catalogue_holds(
    catalog: Catalog, tmp_path: Path, table: str
) -> None:
    with catalog.connect() as connection:
        whole = connection.sql(f"FROM {table}").to_arrow_table()
    for suffix in ("parquet", "arrow"):
        done = export_table(catalog, table, tmp_path / f"{table}.{suffix}")
        assert (done.format, done.rows, done.bytes) == (suffix, whole.num_rows, done.path.stat().st_size)
    parquet = pq.read_table(tmp_path / f"{table}.parquet")
    arrow = pa.ipc.open_file(tmp_path / f"{table}.arrow").read_all()
    rows = [sorted(map(str, one.to_pylist())) for one in (whole, arrow, parquet)]  # a view has no order
    assert rows[0] == rows[1] == rows[2]
    assert arrow.schema.equals(whole.schema)


def test_pandas_polars_and_duckdb_read_the_files(catalog: Catalog, tmp_path: Path) -> None:
    """A file that only the tool that wrote it can read is no export."""
    paths = {name: export_table(catalog, "samples", tmp_path / f"s.{name}").path for name in FORMATS}
    frames = {
        "pandas parquet": pd.read_parquet(paths["parquet"]),
        "pandas arrow": pd.read_feather(paths["arrow"]),
        "pandas csv": pd.read_csv(paths["csv"]),
        "pandas jsonl": pd.read_json(paths["jsonl"], lines=True),
        "polars parquet": pl.read_parquet(paths["parquet"]).to_pandas(),
        "polars arrow": pl.read_ipc(paths["arrow"]).to_pandas(),
        "polars csv": pl.read_csv(paths["csv"]).to_pandas(),
        "polars jsonl": pl.read_ndjson(paths["jsonl"]).to_pandas(),
        "duckdb parquet": duckdb.from_parquet(str(paths["parquet"])).df(),
        "duckdb csv": duckdb.from_csv_auto(str(paths["csv"]), header=True).df(),
        "duckdb jsonl": duckdb.read_json(str(paths["jsonl"])).df(),
    }
    for name, frame in frames.items():
        assert len(frame) == 12, name
        assert frame["sample_id"].tolist() == ["id0", "id1", "id2", "id3"] * 3, name
        shown = frame["prompt"].tolist()[0]
        assert shown.replace("\r\n", "\n") == HOSTILE.replace("\r\n", "\n"), name
        assert frame["group"].isna().tolist()[:2] == [False, True], name


def test_csv_has_lists_and_maps_as_json_and_jsonl_is_json_throughout(
    catalog: Catalog, tmp_path: Path
) -> None:
    path = export_table(catalog, "samples", tmp_path / "s.csv", models=["m@1"]).path
    row = pd.read_csv(path).iloc[0]
    assert json.loads(row["choices"]) == ["a", HOSTILE]
    assert json.loads(row["outputs"])[0]["scores"] == {"f1": 0.5}

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    assert json.loads(row["loglikelihoods"], parse_constant=refuse) == [-1.5, None]
    assert json.loads(row["scores"], parse_constant=refuse) == {"f1": 0.0, "odd": None}
    assert row["prompt"] == HOSTILE
    path = export_table(catalog, "samples", tmp_path / "s.jsonl", models=["m@1"]).path
    rows = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert rows[1]["loglikelihoods"] == [-1.5, None]
    assert rows[1]["scores"] == {"f1": 1 / 3, "odd": None}
    assert rows[0]["choices"] == ["a", HOSTILE]


@pytest.mark.parametrize("text", ["a\rb", "\r", "a\nb", "a\r\nb", 'a"b', "a,b", " a "])
def test_a_text_with_any_end_of_line_is_one_field_of_csv(
    store: ResultsStore, tmp_path: Path, text: str
) -> None:
    """What a reader takes for the end of a row moves everything after it into other columns."""
    Catalog(store).refresh()
    path = tmp_path / "store" / "catalog.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE notes AS SELECT ? AS first, 'b' AS second", [text])
    file = export_table(Catalog(store), "notes", tmp_path / "notes.csv").path
    assert pd.read_csv(file, lineterminator="\n" if "\r" in text else None).iloc[0].tolist() == [text, "b"]
    with file.open(newline="") as lines:
        assert list(csv.reader(lines)) == [["first", "second"], [text, "b"]]


def test_filters_choose_the_rows_and_columns(catalog: Catalog, tmp_path: Path) -> None:
    def keys(**options: Any) -> list[tuple[str, ...]]:
        path = export_table(catalog, "metrics", tmp_path / "m.parquet", **options).path
        return sorted({(row["model"], row["metric"]) for row in pq.read_table(path).to_pylist()})

    assert keys(models=["m@*"], metrics=["f1"]) == [("m@1", "f1"), ("m@2", "f1")]
    assert keys(benchmarks=["quiz"]) == [("other@1", "f1"), ("other@1", "odd")]
    assert keys(models=["m_1", "m%", "m@?"], metrics=["o*"]) == [("m@1", "odd"), ("m@2", "odd")]
    assert keys(models=["m@[23]"], metrics=["f1"]) == [("m@2", "f1")]
    second = datetime(2026, 1, 2, 12, tzinfo=UTC)
    assert keys(since=second, metrics=["f1"]) == [("m@2", "f1"), ("other@1", "f1")]
    assert keys(until=second, metrics=["f1"]) == [("m@1", "f1")]
    assert len(keys(current=True)) == 6
    path = export_table(catalog, "leaderboard", tmp_path / "l.csv", columns=["value", "model"]).path
    assert path.read_text().splitlines()[0] == "value,model"


@pytest.mark.parametrize("text", ["x' OR '1'='1", '" OR 1=1 --', "*'; DROP TABLE samples; --", "%", "m@_"])
def test_no_filter_is_ever_taken_for_sql(catalog: Catalog, tmp_path: Path, text: str) -> None:
    cases: list[dict[str, Any]] = [{"models": [text]}, {"benchmarks": [text]}, {"metrics": [text]}]
    for filters in cases:
        assert export_table(catalog, "metrics", tmp_path / "x.csv", **filters).rows == 0
    with pytest.raises(UserError, match="no table"):
        export_table(catalog, f"samples {text}", tmp_path / "x.csv")
    with pytest.raises(UserError, match="has no column"):
        export_table(catalog, "samples", tmp_path / "x.csv", columns=[text])


def test_what_can_not_be_done_is_one_line(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"path": tmp_path / "x.xlsx"}, "no format for that name"),
        ({"table": "nothing"}, "no table 'nothing' in the catalogue; there are .*leaderboard"),
        ({"table": "verdicts", "metrics": ["f1"]}, "no column 'metric' to choose by"),
        ({"table": "verdicts", "current": True}, "no evaluations to choose by"),
        ({"path": tmp_path / "file" / "x.csv"}, "can't be written"),
        ({"file_format": "xml"}, "no format"),
    ]
    for options, reason in cases:
        with pytest.raises(UserError, match=reason) as raised:
            export_table(**{"catalog": catalog, "table": "samples", "path": tmp_path / "x.csv", **options})
        assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.glob("*")) == ["file", "store"]


def test_a_file_that_is_there_stays_until_the_new_one_is_whole(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads the file while it is written again would see half of it."""
    path = export_table(catalog, "samples", tmp_path / "s.parquet").path
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        export_table(catalog, "metrics", path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name != "store"] == ["s.parquet"]


def test_a_large_table_is_written_without_being_held_in_memory(tmp_path: Path) -> None:
    """A million samples have more text than a laptop has memory."""
    store = ResultsStore(str(tmp_path / "store"))
    Catalog(store).refresh()
    with duckdb.connect(str(tmp_path / "store" / "catalog.duckdb")) as connection:
        connection.execute(
            "INSERT INTO stored.evaluations BY NAME SELECT range AS number, 'e' || range AS evaluation_id, "
            "'d' AS dataset, 'm' AS model FROM range(10)"
        )
        connection.execute(
            "INSERT INTO stored.items BY NAME SELECT range AS item, 'd' AS dataset, "
            "range::VARCHAR AS sample_id, range AS index, md5(range::VARCHAR) || repeat('x', 6000) AS prompt "
            "FROM range(7500)"
        )
        connection.execute(
            "INSERT INTO stored.answers BY NAME SELECT number, item FROM stored.evaluations, stored.items"
        )
    # Of its own process, since a peak is a process's; VmHWM, since getrusage's counts what forked it, too.
    program = f"""
import re
from pathlib import Path
from eval_assets.exchange.tables import export_table
from resources.catalog import Catalog
from resources.results import ResultsStore
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
catalog = Catalog(ResultsStore({str(tmp_path / "store")!r}))
folder = Path({str(tmp_path)!r})
export_table(catalog, "metrics", folder / "nothing.parquet")
before = peak()
done = [export_table(catalog, "samples", folder / f"s.{{name}}").rows for name in ("parquet", "jsonl")]
print(done, peak() - before)
"""
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    ).stdout
    rows, _, grown = told.strip().rpartition(" ")
    assert rows == "[75000, 75000]"
    assert float(grown) < 350, "the texts have 450 MB"
