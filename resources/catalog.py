"""The DuckDB catalogue: a reader's view of the results store, made from its files at any time.

`Catalog.refresh` copies the present catalogue, adds and removes what the committed evaluations say, and
puts the result in its place by one rename: readers keep the file that they have open and never wait.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import pyarrow as pa

from resources.errors import UserError
from resources.keys import key_of_segment
from resources.results import RECORD, CurrentInputs, ResultsStore
from resources.storage import listing_sign

CATALOG = "catalog.duckdb"
SCHEMA_VERSION = 6

Place: TypeAlias = tuple[str, str, str]
"""Dataset, model and evaluation id: two versions with the same files have evaluations of the same id."""

_EVALUATION_FIELDS = {
    "evaluation_id": pa.string(),
    "dataset": pa.string(),
    "model": pa.string(),
    "model_name": pa.string(),
    "model_version": pa.string(),
    "model_digest": pa.string(),
    "model_parameters": pa.int64(),
    "fingerprint": pa.string(),
    "content_digest": pa.string(),
    "benchmark_version": pa.string(),
    "benchmark_fingerprint": pa.string(),
    "task": pa.string(),
    "status": pa.string(),
    "origin": pa.string(),
    "run_id": pa.string(),
    "started_at": pa.string(),
    "finished_at": pa.string(),
    "items_available": pa.int64(),
    "samples": pa.int64(),
    "samples_resumed": pa.int64(),
    "interruptions": pa.int64(),
    "parts_discarded": pa.int64(),
    "samples_with_error": pa.int64(),
    "samples_truncated": pa.int64(),
    "prompt_tokens": pa.int64(),
    "output_tokens": pa.int64(),
    "prompt_tokens_computed": pa.int64(),
    "output_tokens_computed": pa.int64(),
    "batch_sequences": pa.int64(),
    "primary_metric": pa.string(),
    "higher_is_better": pa.bool_(),
    "peak_memory_bytes": pa.int64(),
    "peak_device_bytes": pa.int64(),
    "accelerator_class": pa.string(),
    "accelerator_count": pa.int64(),
    "accelerator_seconds": pa.float64(),
    "spot": pa.bool_(),
    "price_per_hour": pa.float64(),
    "cost": pa.float64(),
    "team": pa.string(),
    "scoring_version": pa.string(),
    "python": pa.string(),
    "git_revision": pa.string(),
}
_ENGINE_FIELDS = {
    "engine": pa.string(),
    "device": pa.string(),
    "dtype": pa.string(),
    "threads": pa.int64(),
    "seed": pa.int64(),
}
_PHASES = ("load", "prefill", "decode", "score")
_SCORE_FIELDS = ("value", "stderr", "ci_low", "ci_high")

_TABLES = """
CREATE TABLE catalog_version AS SELECT $version::INTEGER AS version;
CREATE TABLE evaluations ({evaluations});
CREATE TABLE metrics (
    evaluation_id VARCHAR, dataset VARCHAR, model VARCHAR, metric VARCHAR, "group" VARCHAR,
    value DOUBLE, stderr DOUBLE, ci_low DOUBLE, ci_high DOUBLE, n BIGINT, sampling_share DOUBLE);
CREATE TABLE samples (
    evaluation_id VARCHAR, dataset VARCHAR, model VARCHAR, sample_id VARCHAR, "index" BIGINT,
    "group" VARCHAR, cluster VARCHAR, prompt VARCHAR, target INTEGER, choices VARCHAR[], labels TINYINT[],
    "references" VARCHAR[], incorrect_references VARCHAR[], loglikelihoods DOUBLE[],
    choice_tokens INTEGER[], is_greedy BOOLEAN[], output VARCHAR, finish_reason VARCHAR,
    prompt_tokens INTEGER, output_tokens INTEGER, truncated_tokens INTEGER,
    outputs STRUCT("text" VARCHAR, finish_reason VARCHAR, tokens INTEGER, scores MAP(VARCHAR, DOUBLE))[],
    scores MAP(VARCHAR, DOUBLE), error VARCHAR);
CREATE TABLE records (dataset VARCHAR, model VARCHAR, evaluation_id VARCHAR, sign VARCHAR);
CREATE TABLE current_models (model VARCHAR, digest VARCHAR);
CREATE TABLE comparisons (
    dataset VARCHAR, model VARCHAR, baseline VARCHAR, metric VARCHAR, verdict VARCHAR, difference DOUBLE,
    stderr DOUBLE, stderr_unpaired DOUBLE, ci_low DOUBLE, ci_high DOUBLE, tolerance DOUBLE, detectable DOUBLE,
    p_worse DOUBLE, p_not_worse DOUBLE, n BIGINT, wins VARCHAR[], losses VARCHAR[], ties BIGINT,
    method VARCHAR, reason VARCHAR, candidate_evaluation VARCHAR, baseline_evaluation VARCHAR);
CREATE TABLE verdicts (
    model VARCHAR, baseline VARCHAR, status VARCHAR, reason VARCHAR, action VARCHAR, moved BOOLEAN,
    family VARCHAR[], missing VARCHAR[], judged_at TIMESTAMPTZ, run_id VARCHAR);
CREATE TABLE deleted_models (model VARCHAR);
CREATE TABLE judged (digest VARCHAR);
CREATE TABLE current_benchmarks (dataset VARCHAR, fingerprint VARCHAR);
"""

_VIEWS = """
CREATE VIEW sample_scores AS
SELECT evaluation_id, dataset, model, sample_id, "index", "group", cluster,
       score.key AS metric, score.value AS value
FROM (SELECT * EXCLUDE (scores), unnest(map_entries(scores)) AS score FROM samples);

-- A cell's current evaluation: one of our own, where there is any, before what was imported. Of those with
-- the model files and benchmark that are recorded now (or, where none has them, of the latest one), the
-- one with the most items, then the latest. So a quick try with few items never hides a fuller one, and
-- files that are put back bring their evaluation back.
CREATE VIEW current_evaluations AS
SELECT * EXCLUDE (chosen_digest, chosen_benchmark, chosen_origin) FROM (
    SELECT evaluations.*,
        first_value(model_digest) OVER chosen AS chosen_digest,
        first_value(benchmark_fingerprint) OVER chosen AS chosen_benchmark,
        first_value(origin) OVER chosen AS chosen_origin
    FROM evaluations
    LEFT JOIN current_models USING (model)
    LEFT JOIN current_benchmarks ON current_benchmarks.dataset = evaluations.dataset
    WINDOW chosen AS (
        PARTITION BY evaluations.dataset, model
        ORDER BY origin IS NOT NULL,
                 model_digest IS NOT DISTINCT FROM digest DESC,
                 benchmark_fingerprint IS NOT DISTINCT FROM current_benchmarks.fingerprint DESC,
                 finished_at DESC, evaluation_id))
WHERE model_digest IS NOT DISTINCT FROM chosen_digest AND benchmark_fingerprint = chosen_benchmark
  AND origin IS NOT DISTINCT FROM chosen_origin
QUALIFY row_number() OVER (
    PARTITION BY dataset, model ORDER BY samples DESC, finished_at DESC, evaluation_id) = 1;

-- What evaluations came to; those that no launcher gave a pod have no class and no cost.
CREATE VIEW costs AS
SELECT date_trunc('month', finished_at::TIMESTAMPTZ)::DATE AS "month", team, model_name, model, dataset,
       accelerator_class, spot, count(*) AS evaluations, sum(samples)::BIGINT AS samples,
       sum(accelerator_seconds) AS accelerator_seconds, sum(cost) AS cost
FROM evaluations GROUP BY ALL;

CREATE VIEW history AS
SELECT dataset, model, model_name, model_version, primary_metric AS metric, value, stderr, ci_low, ci_high,
       samples AS n, items_available, status, finished_at, model_digest, benchmark_fingerprint, run_id,
       evaluation_id, origin
FROM evaluations;

CREATE VIEW leaderboard AS
SELECT dataset, model, model_name, model_version, primary_metric AS metric, value, stderr, ci_low, ci_high,
       samples AS n, items_available, higher_is_better, status, finished_at, evaluation_id,
       origin
FROM current_evaluations;
"""


@dataclass(frozen=True, slots=True)
class Refresh:
    """What a refresh did: evaluations added, removed, in the catalogue now, and changed (read again)."""

    added: int
    removed: int
    total: int
    changed: int = 0


class Catalog:
    """The catalogue of a results store."""

    def __init__(self, store: ResultsStore) -> None:
        self._store = store
        self._path = f"{store.root}/{CATALOG}"

    def refresh(self) -> Refresh:
        """Make the catalogue say what the committed evaluations say; without a change it is left alone."""
        committed, inputs = self._committed(), self._store.current_inputs()
        found = _Judged(self._store)
        known = self._known()
        before = known[0] if known is not None else {}
        added, removed = sorted(set(committed) - set(before)), sorted(set(before) - set(committed))
        changed = sorted(
            name for name in set(committed) & set(before) if committed[name].sign != before[name]
        )
        if known is None or added or removed or changed or known[1:] != (inputs, found.digest):
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder, CATALOG)
                if known is not None:
                    self._store.filesystem.get_file(self._path, str(local))
                with duckdb.connect(str(local)) as connection:
                    if known is None:
                        _create(connection)
                    connection.register_filesystem(self._store.filesystem)
                    self._update(connection, committed, [*added, *changed], [*removed, *changed], inputs)
                    found.write(connection)
                self._store.put_file(CATALOG, local)
        return Refresh(len(added), len(removed), len(committed), len(changed))

    @contextmanager
    def connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection to the catalogue as it is; raises UserError where there is none."""
        if not self._store.filesystem.exists(self._path):
            raise UserError(
                f"no catalogue in {self._store.root}: materialize the asset 'leaderboard' ('make demo' does)"
            )
        with tempfile.TemporaryDirectory() as folder:
            path = self._path
            if not self._store.is_local:
                path = str(Path(folder, CATALOG))
                self._store.filesystem.get_file(self._path, path)
            with duckdb.connect(path, read_only=True) as connection:
                yield connection

    def _known(self) -> tuple[dict[Place, str], CurrentInputs, str] | None:
        """The signs of the records, the inputs and the digest of the verdicts that the catalogue has.

        None without one that can be gone on with.
        """
        if not self._store.filesystem.exists(self._path):
            return None
        try:
            with self.connect() as connection:
                if connection.execute("SELECT version FROM catalog_version").fetchone() != (SCHEMA_VERSION,):
                    return None
                signs = connection.execute(
                    "SELECT dataset, model, evaluation_id, sign FROM records"
                ).fetchall()
                digests = connection.execute("SELECT model, digest FROM current_models").fetchall()
                prints = connection.execute("SELECT dataset, fingerprint FROM current_benchmarks").fetchall()
                ((judged,),) = connection.execute("SELECT digest FROM judged").fetchall()
        except (duckdb.Error, ValueError):  # damaged, or of another version: it is made again
            return None
        return {row[:3]: row[3] for row in signs}, CurrentInputs(dict(digests), dict(prints)), judged

    def _committed(self) -> "dict[Place, _Committed]":
        """Every committed evaluation."""
        self._store.filesystem.invalidate_cache()
        pattern = f"{self._store.root}/evaluations/*/*/*/{RECORD}"
        listed = self._store.filesystem.glob(pattern, detail=True)
        found = {}
        for path, entry in listed.items():
            folder = path.rsplit("/", 1)[0]
            dataset, model, evaluation = folder.rsplit("/", 3)[1:]
            place = (key_of_segment(dataset), key_of_segment(model), evaluation)
            found[place] = _Committed(folder, listing_sign(entry))
        return found

    def _update(
        self,
        connection: duckdb.DuckDBPyConnection,
        committed: "Mapping[Place, _Committed]",
        added: Sequence[Place],
        removed: Sequence[Place],
        inputs: CurrentInputs,
    ) -> None:
        connection.execute("BEGIN")
        connection.register("gone", _places(removed))
        for table in ("evaluations", "metrics", "samples", "records"):
            connection.execute(
                f"DELETE FROM {table} WHERE (dataset, model, evaluation_id) IN "
                "(SELECT (dataset, model, evaluation_id) FROM gone)"
            )
        connection.unregister("gone")
        self._insert(connection, [committed[place].folder for place in added])
        signs = _places(added).append_column(
            "sign", pa.array([committed[p].sign for p in added], pa.string())
        )
        connection.register("signs", signs)
        connection.execute("INSERT INTO records BY NAME SELECT * FROM signs")
        connection.unregister("signs")
        for table, rows in (("current_models", inputs.digests), ("current_benchmarks", inputs.fingerprints)):
            connection.execute(f"DELETE FROM {table}")
            if rows:
                connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", list(rows.items()))
        connection.execute("COMMIT")

    def _insert(self, connection: duckdb.DuckDBPyConnection, folders: Sequence[str]) -> None:
        records = []
        for folder in folders:
            records.append(_row(json.loads(self._store.filesystem.cat_file(f"{folder}/{RECORD}"))))
        if not records:
            return
        evaluations = pa.Table.from_pylist(records, schema=_evaluation_schema())
        connection.register("new_evaluations", evaluations)
        connection.execute("INSERT INTO evaluations BY NAME SELECT * FROM new_evaluations")
        connection.unregister("new_evaluations")
        scheme = "" if self._store.is_local else f"{self._store.scheme}://"
        for table in ("metrics", "samples"):
            # By name: files of earlier versions have fewer columns.
            connection.execute(
                f"INSERT INTO {table} BY NAME SELECT * FROM read_parquet($files, union_by_name := true)",
                {"files": [f"{scheme}{folder}/{table}.parquet" for folder in folders]},
            )


def _places(places: Sequence[Place]) -> pa.Table:
    names = ("dataset", "model", "evaluation_id")
    return pa.table({name: pa.array([p[i] for p in places], pa.string()) for i, name in enumerate(names)})


@dataclass(frozen=True, slots=True)
class _Committed:
    """A committed evaluation: its folder, and what the listing says of its record.

    Whoever changes an evaluation's files (retention) puts its record there anew, last.
    """

    folder: str
    sign: str


class _Judged:
    """What the store says about versions besides their evaluations, as rows of tables."""

    def __init__(self, store: ResultsStore) -> None:
        versions = store.model_versions()
        self._tables = {
            "comparisons": [_comparison_row(comparison) for comparison in store.comparisons()],
            "verdicts": [_verdict_row(verdict) for verdict in store.verdicts().values()],
            "deleted_models": [[key] for key, record in versions.items() if record.get("deleted")],
        }
        text = json.dumps(self._tables, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()

    def write(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Replace what the catalogue has of them."""
        connection.execute("BEGIN")
        for table, rows in self._tables.items():
            connection.execute(f"DELETE FROM {table}")
            if rows:
                marks = ", ".join("?" * len(rows[0]))
                connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.execute("DELETE FROM judged")
        connection.execute("INSERT INTO judged VALUES (?)", [self.digest])
        connection.execute("COMMIT")


def _comparison_row(cell: Mapping[str, Any]) -> list[Any]:
    one, verdict = cell["comparison"], cell["verdict"]
    return [
        *(cell[name] for name in ("dataset", "model", "baseline", "metric")),
        verdict["name"],
        *(one[name] for name in ("difference", "stderr", "unpaired_stderr", "ci_low", "ci_high")),
        verdict["tolerance"],
        one["detectable"],
        *(verdict[name] for name in ("p_worse", "p_not_worse")),
        *(one[name] for name in ("n", "wins", "losses", "ties", "method")),
        verdict["reason"],
        cell["candidate_evaluation"],
        cell["baseline_evaluation"],
    ]


def _verdict_row(verdict: Mapping[str, Any]) -> list[Any]:
    return [
        *(verdict[name] for name in ("model", "baseline", "status", "reason", "action", "moved")),
        list((verdict["family"] or {}).get("family", [])),
        sorted(verdict["missing"]),
        verdict["judged_at"],
        verdict["run_id"],
    ]


def _evaluation_schema() -> pa.Schema:
    fields = {**_EVALUATION_FIELDS, **_ENGINE_FIELDS}
    fields |= {f"seconds_{phase}": pa.float64() for phase in _PHASES}
    fields |= dict.fromkeys(_SCORE_FIELDS, pa.float64())
    fields["record"] = pa.string()
    return pa.schema(list(fields.items()))


def _row(record: dict[str, Any]) -> dict[str, Any]:
    row = {name: record.get(name) for name in _EVALUATION_FIELDS}
    engine = record["engine"]
    row |= {name: engine.get(name) for name in _ENGINE_FIELDS}
    row |= {f"seconds_{phase}": record["seconds"].get(phase) for phase in _PHASES}
    row |= {name: (record["score"] or {}).get(name) for name in _SCORE_FIELDS}
    row["record"] = json.dumps(record)
    return row


def _create(connection: duckdb.DuckDBPyConnection) -> None:
    kinds = {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.bool_(): "BOOLEAN", pa.float64(): "DOUBLE"}
    columns = ", ".join(
        f"{field.name} {'TIMESTAMPTZ' if field.name.endswith('_at') else kinds[field.type]}"
        for field in _evaluation_schema()
    )
    tables, views = _TABLES.format(evaluations=columns), _VIEWS
    connection.execute(tables.replace("$version", str(SCHEMA_VERSION)))
    connection.execute(views)
