"""What is in the catalogue: tables of its own in the schema `stored`, and the views that people query.

Two things keep it small and quick. What models were shown is stored once: `stored.items` has each distinct
prompt with its choices and references, `stored.answers` what a model made of it. And evaluations have
numbers: the answers of one lie together, so that a query for a cell reads a thousandth of a large table.
"""

import duckdb
import pyarrow as pa

SCHEMA_VERSION = 9

_TIME = pa.timestamp("us", tz="UTC")
EVALUATION_FIELDS = {
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
    "started_at": _TIME,
    "finished_at": _TIME,
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
"""Columns of `evaluations` that a record has under the same names."""
ENGINE_FIELDS = {
    "engine": pa.string(),
    "device": pa.string(),
    "dtype": pa.string(),
    "threads": pa.int64(),
    "seed": pa.int64(),
}
PHASES = ("load", "prefill", "decode", "score")
SCORE_FIELDS = ("value", "stderr", "ci_low", "ci_high")
EVALUATION_SCHEMA = pa.schema(
    [
        *EVALUATION_FIELDS.items(),
        *ENGINE_FIELDS.items(),
        *((f"seconds_{phase}", pa.float64()) for phase in PHASES),
        *((name, pa.float64()) for name in SCORE_FIELDS),
        ("record", pa.string()),
        ("path", pa.string()),
    ]
)
_NAMES = pa.list_(pa.string())
_ESTIMATES = ("difference", "stderr", "stderr_unpaired", "ci_low", "ci_high")
_CLAIMS = ("tolerance", "detectable", "p_worse", "p_not_worse")
DOCUMENT_SCHEMAS = {
    "comparisons": pa.schema(
        [
            *((name, pa.string()) for name in ("dataset", "model", "baseline", "metric", "verdict")),
            *((name, pa.float64()) for name in (*_ESTIMATES, *_CLAIMS)),
            ("n", pa.int64()), ("wins", _NAMES), ("losses", _NAMES), ("ties", pa.int64()),
            *((name, pa.string()) for name in ("method", "reason")),
            *((name, pa.string()) for name in ("candidate_evaluation", "baseline_evaluation", "path")),
        ]
    ),
    "verdicts": pa.schema(
        [
            *((name, pa.string()) for name in ("model", "baseline", "status", "reason", "action")),
            ("moved", pa.bool_()), ("family", _NAMES), ("missing", _NAMES), ("judged_at", _TIME),
            ("run_id", pa.string()), ("path", pa.string()),
        ]
    ),
    "models": pa.schema(
        [("model", pa.string()), ("digest", pa.string()), ("deleted", pa.bool_()), ("path", pa.string())]
    ),
    "benchmarks": pa.schema([("dataset", pa.string()), ("fingerprint", pa.string()), ("path", pa.string())]),
}  # fmt: skip
"""Columns of what one JSON file makes a row of, by table in `stored`."""

ITEM_COLUMNS = (
    'dataset, sample_id, "index", "group", cluster, prompt, target, choices, labels, "references", '
    "incorrect_references"
)
"""What a model is shown and judged by; the same for most models."""
ANSWER_COLUMNS = (
    "loglikelihoods, choice_tokens, is_greedy, output, finish_reason, prompt_tokens, output_tokens, "
    "truncated_tokens, outputs, scores, error"
)

_TABLES = """
CREATE SCHEMA stored;
CREATE TABLE catalog_version (version INTEGER);
CREATE TABLE damaged (evaluation_id VARCHAR, dataset VARCHAR, model VARCHAR, path VARCHAR, reason VARCHAR);

-- Every file or evaluation that the catalogue was made from, and how it looked then.
CREATE TABLE stored.seen (path VARCHAR, sign VARCHAR);
CREATE TABLE stored.metrics (
    number INTEGER, metric VARCHAR, "group" VARCHAR, value DOUBLE, stderr DOUBLE, ci_low DOUBLE,
    ci_high DOUBLE, n BIGINT, sampling_share DOUBLE);
CREATE TABLE stored.items (
    item INTEGER, content BLOB, dataset VARCHAR, sample_id VARCHAR, "index" BIGINT, "group" VARCHAR,
    cluster VARCHAR, prompt VARCHAR, target INTEGER, choices VARCHAR[], labels TINYINT[],
    "references" VARCHAR[], incorrect_references VARCHAR[]);
CREATE TABLE stored.answers (
    number INTEGER, item INTEGER, loglikelihoods DOUBLE[], choice_tokens INTEGER[],
    is_greedy BOOLEAN[], output VARCHAR, finish_reason VARCHAR, prompt_tokens INTEGER,
    output_tokens INTEGER, truncated_tokens INTEGER,
    outputs STRUCT("text" VARCHAR, finish_reason VARCHAR, tokens INTEGER, scores MAP(VARCHAR, DOUBLE))[],
    scores MAP(VARCHAR, DOUBLE), error VARCHAR);
"""


_VIEWS = """
CREATE VIEW evaluations AS SELECT * EXCLUDE (number, path) FROM stored.evaluations;

CREATE VIEW metrics AS
SELECT evaluation_id, dataset, model, metric, "group", m.value, m.stderr, m.ci_low, m.ci_high, n,
       sampling_share
FROM stored.metrics AS m JOIN stored.evaluations USING (number);

CREATE VIEW samples AS
SELECT evaluation_id, dataset, model, items.* EXCLUDE (item, content, dataset),
       answers.* EXCLUDE (number, item)
FROM stored.answers AS answers
JOIN (SELECT number, evaluation_id, model FROM stored.evaluations) USING (number)
JOIN stored.items AS items USING (item);

CREATE VIEW sample_scores AS
SELECT evaluation_id, dataset, model, sample_id, "index", "group", cluster,
       score.key AS metric, score.value AS value
FROM (SELECT * EXCLUDE (scores), unnest(map_entries(scores)) AS score FROM samples);

CREATE VIEW current_models AS SELECT model, digest FROM stored.models;
CREATE VIEW deleted_models AS SELECT model FROM stored.models WHERE deleted;
CREATE VIEW current_benchmarks AS SELECT dataset, fingerprint FROM stored.benchmarks;
CREATE VIEW comparisons AS SELECT * EXCLUDE (path) FROM stored.comparisons;
CREATE VIEW verdicts AS SELECT * EXCLUDE (path) FROM stored.verdicts;

-- A cell's current evaluation: one of our own, where there is any, before what was imported. Of those with
-- the model files and benchmark that are recorded now (or, where none has them, of the latest one), the
-- one with the most items, then the latest. So a quick try with few items never hides a fuller one, and
-- files that are put back bring their evaluation back. Of the attempts at one fingerprint the last counts,
-- whatever its writer's clock said; between fingerprints there is nothing but the clocks.
CREATE VIEW current_evaluations AS
SELECT * EXCLUDE (chosen_digest, chosen_benchmark, chosen_origin) FROM (
    SELECT evaluations.*,
        first_value(model_digest) OVER chosen AS chosen_digest,
        first_value(benchmark_fingerprint) OVER chosen AS chosen_benchmark,
        first_value(origin) OVER chosen AS chosen_origin
    FROM (
        FROM evaluations
        QUALIFY row_number() OVER (
            PARTITION BY dataset, model, regexp_replace(evaluation_id, '-[0-9]+$', '')
            ORDER BY try_cast(regexp_extract(evaluation_id, '-([0-9]+)$', 1) AS BIGINT) DESC NULLS LAST) = 1
    ) AS evaluations
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

-- What evaluations came to, by month (UTC); those that no launcher gave a pod have no class and no cost.
CREATE VIEW costs AS
SELECT date_trunc('month', finished_at AT TIME ZONE 'UTC')::DATE AS "month", team, model_name, model, dataset,
       accelerator_class, spot, count(*) AS evaluations, sum(samples)::BIGINT AS samples,
       sum(accelerator_seconds) AS accelerator_seconds, sum(cost) AS cost
FROM evaluations WHERE origin IS NULL GROUP BY ALL;

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

_KINDS = {
    pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.bool_(): "BOOLEAN", pa.float64(): "DOUBLE",
    _TIME: "TIMESTAMPTZ", _NAMES: "VARCHAR[]",
}  # fmt: skip


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """Make an empty catalogue in an empty database."""
    connection.execute(_TABLES)
    connection.execute("INSERT INTO catalog_version VALUES (?)", [SCHEMA_VERSION])
    for table, schema in (("evaluations", EVALUATION_SCHEMA), *DOCUMENT_SCHEMAS.items()):
        columns = [f'"{field.name}" {_KINDS[field.type]}' for field in schema]
        if table == "evaluations":
            columns.insert(0, "number INTEGER")
        connection.execute(f"CREATE TABLE stored.{table} ({', '.join(columns)})")
    connection.execute(_VIEWS)
