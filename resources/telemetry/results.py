"""Readings of what the catalogue knows: scores, costs, verdicts, of a bounded number of cells."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import duckdb

from resources.telemetry.families import Readings


@dataclass(frozen=True, slots=True)
class Champion:
    """A model's version in production, and since when (seconds since the epoch) where a move was recorded."""

    version: str
    since: float | None = None


Rows: TypeAlias = list[tuple[Any, ...]]

# Of each model the version whose first evaluation began last, and its champion. An older version that is
# evaluated again does not become the latest by that. What was imported is history and says nothing about now.
_CHOSEN = """
CREATE OR REPLACE TEMP TABLE chosen_versions AS
WITH born AS (
    SELECT model_name, model_version, min(started_at) AS began FROM evaluations
    WHERE origin IS NULL AND model NOT IN (SELECT model FROM deleted_models) GROUP BY ALL)
SELECT model_name, model_version, min(began) AS born,
       bool_or(role = 'latest') AS latest, bool_or(role = 'champion') AS champion
FROM (
    SELECT model_name, max_by(model_version, (began, model_version)) AS model_version, 'latest' AS role
    FROM born GROUP BY model_name
    UNION ALL
    SELECT unnest($names::VARCHAR[]), unnest($versions::VARCHAR[]), 'champion')
JOIN born USING (model_name, model_version)
GROUP BY model_name, model_version
"""
_CELLS = """
CREATE OR REPLACE TEMP TABLE chosen_cells AS
SELECT e.evaluation_id, e.dataset, e.model, e.model_name, e.model_version, e.primary_metric, e.samples,
       e.samples_with_error, e.prompt_tokens, e.output_tokens, e.accelerator_seconds, e.cost,
       e.seconds_load, e.seconds_prefill, e.seconds_decode, e.seconds_score, e.ci_low, e.ci_high,
       epoch(e.finished_at) - epoch(e.started_at) AS seconds
FROM leaderboard JOIN evaluations e USING (dataset, model, evaluation_id)
JOIN chosen_versions v ON v.model_name = e.model_name AND v.model_version = e.model_version
WHERE e.origin IS NULL
ORDER BY v.champion DESC, e.finished_at DESC, e.evaluation_id LIMIT $cells
"""
_COUNT = """
SELECT count(*) FROM leaderboard l JOIN chosen_versions v
ON v.model_name = l.model_name AND v.model_version = l.model_version
WHERE l.origin IS NULL
"""
_SUCCESS = """
SELECT model_name, model_version, dataset, epoch(max(finished_at)) FROM evaluations
WHERE origin IS NULL AND status = 'valid'
  AND (dataset, model) IN (SELECT (dataset, model) FROM chosen_cells) GROUP BY ALL
"""
_SCORES = """
SELECT c.model_name, c.model_version, c.dataset, m.metric, m.value
FROM metrics m JOIN chosen_cells c USING (dataset, model, evaluation_id) WHERE m."group" IS NULL
"""
_DIFFERENCES = """
SELECT c.model_name, c.model_version, c.dataset, o.metric, o.baseline, o.verdict, o.difference
FROM comparisons o JOIN chosen_cells c
ON o.dataset = c.dataset AND o.model = c.model AND o.candidate_evaluation = c.evaluation_id
"""
_VERDICTS = """
SELECT v.model_name, v.model_version, status FROM verdicts
JOIN chosen_versions v ON verdicts.model = v.model_name || '@' || v.model_version
"""
_VERDICT_COUNTS = """
SELECT regexp_replace(model, '@[^@]*$', ''), status, count(*) FROM verdicts GROUP BY ALL
"""
_COMMITTED = """
SELECT model_name, count(*) FROM evaluations WHERE origin IS NULL GROUP BY ALL ORDER BY 2 DESC LIMIT $names
"""
_MONTH = """
SELECT coalesce(team, ''), coalesce(accelerator_class, ''), count(*), sum(samples), sum(prompt_tokens),
       sum(output_tokens), sum(accelerator_seconds), sum(cost)
FROM evaluations WHERE origin IS NULL AND finished_at >= $month GROUP BY ALL ORDER BY 3 DESC LIMIT 200
"""
_DAMAGED = "SELECT coalesce(dataset, ''), count(*) FROM damaged GROUP BY ALL ORDER BY 2 DESC LIMIT 200"


def read_results(
    connection: duckdb.DuckDBPyConnection,
    champions: Mapping[str, Champion],
    *,
    cells: int,
    now: datetime,
) -> Readings:
    """Readings of the catalogue: each model's latest version and its champion (by model name).

    At most `cells` cells, those of champions first, then the most recent; how many were left out is a
    reading, too. `now` (UTC) says which month it is.
    """
    readings = Readings()
    names = sorted(champions)
    connection.execute(_CHOSEN, {"names": names, "versions": [champions[name].version for name in names]})
    connection.execute(_CELLS, {"cells": cells})
    _read_cells(connection, readings, cells)
    _read_versions(connection, readings, champions)
    _read_totals(connection, readings, cells, now)
    return readings


def _read_cells(connection: duckdb.DuckDBPyConnection, readings: Readings, cells: int) -> None:
    chosen = _rows(
        connection,
        """SELECT model_name, model_version, dataset, primary_metric, ci_low, ci_high, seconds, samples,
        samples_with_error, prompt_tokens, output_tokens, accelerator_seconds, cost,
        seconds_load, seconds_prefill, seconds_decode, seconds_score FROM chosen_cells""",
    )
    for name, version, dataset, primary, low, high, seconds, samples, errors, *rest in chosen:
        cell = (name, version, dataset)
        prompt, output, devices, cost, *phases = rest
        readings.add("llm_evaluation_score_low", low, *cell, primary)
        readings.add("llm_evaluation_score_high", high, *cell, primary)
        readings.add("llm_evaluation_duration_seconds", seconds, *cell)
        for phase, spent in zip(("load", "prefill", "decode", "score"), phases, strict=True):
            readings.add("llm_evaluation_phase_seconds", spent, *cell, phase)
        readings.add("llm_evaluation_samples", samples, *cell)
        readings.add("llm_evaluation_samples_with_error", errors, *cell)
        readings.add("llm_evaluation_tokens", prompt, *cell, "prompt")
        readings.add("llm_evaluation_tokens", output, *cell, "output")
        readings.add("llm_evaluation_accelerator_seconds", devices, *cell)
        readings.add("llm_evaluation_cost", cost, *cell)
    for *cell_and_metric, value in _rows(connection, _SCORES):
        readings.add("llm_evaluation_score", value, *cell_and_metric)
    for *labels, at in _rows(connection, _SUCCESS):
        readings.add("llm_evaluation_last_success_timestamp_seconds", at, *labels)
    for *cell_and_metric, baseline, verdict, difference in _rows(connection, _DIFFERENCES):
        version = str(baseline).rpartition("@")[2]
        readings.add("llm_evaluation_difference", difference, *cell_and_metric, version, verdict)
    [(there,)] = _rows(connection, _COUNT)
    readings.add("llm_evaluation_cells", len(chosen))
    readings.add("llm_evaluation_cells_left_out", max(int(there) - cells, 0))


def _read_versions(
    connection: duckdb.DuckDBPyConnection, readings: Readings, champions: Mapping[str, Champion]
) -> None:
    # Only versions of which a cell is exported, so that these are as bounded as the cells.
    versions = """SELECT model_name, model_version, epoch(born), latest, champion FROM chosen_versions
        WHERE (model_name, model_version) IN (SELECT (model_name, model_version) FROM chosen_cells)"""
    exported = set()
    for name, version, born, latest, champion in _rows(connection, versions):
        exported.add((name, version))
        if latest:
            readings.add("llm_evaluation_version_info", 1, name, version, "latest")
        if champion:
            since = champions[name].since or born
            readings.add("llm_evaluation_version_info", 1, name, version, "champion")
            readings.add("llm_evaluation_champion_since_timestamp_seconds", since, name, version)
    for name, version, status in _rows(connection, _VERDICTS):
        if (name, version) in exported:
            readings.add("llm_evaluation_verdict_info", 1, name, version, status)
    names = {name for name, _ in exported}
    for name, status, count in _rows(connection, _VERDICT_COUNTS):
        if name in names:
            readings.add("llm_evaluation_verdicts", count, name, status)


def _read_totals(
    connection: duckdb.DuckDBPyConnection, readings: Readings, cells: int, now: datetime
) -> None:
    for name, count in _rows(connection, _COMMITTED, {"names": cells}):
        readings.add("llm_evaluation_committed", count, name)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    for team, kind, count, samples, prompt, output, seconds, cost in _rows(
        connection, _MONTH, {"month": month}
    ):
        readings.add("llm_evaluation_month_evaluations", count, team, kind)
        readings.add("llm_evaluation_month_samples", samples, team, kind)
        readings.add("llm_evaluation_month_tokens", prompt, team, kind, "prompt")
        readings.add("llm_evaluation_month_tokens", output, team, kind, "output")
        readings.add("llm_evaluation_month_accelerator_seconds", seconds, team, kind)
        readings.add("llm_evaluation_month_cost", cost, team, kind)
    for dataset, count in _damaged(connection):
        readings.add("llm_evaluation_damaged", count, dataset)


def _damaged(connection: duckdb.DuckDBPyConnection) -> Rows:
    """Damage by benchmark; one reading of none without any, so that an alert sees it end."""
    try:
        return _rows(connection, _DAMAGED) or [("", 0)]
    except duckdb.CatalogException:  # a catalogue of before there was such a table
        return [("", 0)]


def _rows(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, Any] | None = None
) -> Rows:
    return connection.execute(query, parameters or {}).fetchall()
