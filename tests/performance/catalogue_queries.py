"""Six questions that people ask of their results, put to the catalogue, to a glob over its files, to pandas.

A question has the same answer whichever way it is asked. `paths` are what a glob reads at its best: of a cell
or a model only its own folders, of outputs only the benchmarks that have any; `everywhere` is the glob that
one writes without knowing the folders.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from tests.performance.made_store import RARE

Rows: TypeAlias = list[tuple[Any, ...]]

MODEL, BEFORE = "model-01@2", "model-01@1"
_CHOSEN, _GROUPED = "hellaswag_1", "mmlu_1"
_RECORD = (
    "{evaluation_id: 'VARCHAR', dataset: 'VARCHAR', model: 'VARCHAR', model_name: 'VARCHAR', primary_metric: "
    "'VARCHAR', samples: 'BIGINT', finished_at: 'TIMESTAMPTZ', team: 'VARCHAR', cost: 'DOUBLE', "
    "score: 'STRUCT(value DOUBLE, ci_low DOUBLE, ci_high DOUBLE)'}"
)
_EVALUATIONS = f"""
(SELECT evaluation_id, dataset, model, model_name, primary_metric AS metric, score.value AS value,
        score.ci_low AS ci_low, score.ci_high AS ci_high, samples AS n, finished_at, team, cost
 FROM read_json($files, columns = {_RECORD}))
"""
_ESTIMATE = "metric, value, ci_low, ci_high, n"
_DIFFERENT = """
SELECT a.sample_id, a.prompt, a.choices, a.loglikelihoods, b.loglikelihoods, a.scores['acc_norm'] AS one,
       b.scores['acc_norm'] AS other
FROM {samples} AS a JOIN {samples} AS b USING (sample_id)
WHERE a.dataset = 'hellaswag_1' AND b.dataset = 'hellaswag_1'
  AND a.model = 'model-01@2' AND b.model = 'model-01@1' AND one <> other
"""
_MONTHS = """
SELECT date_trunc('month', finished_at AT TIME ZONE 'UTC')::DATE::VARCHAR AS "month", team, sum(cost),
       count(*)
FROM {evaluations} GROUP BY ALL
"""


@dataclass(frozen=True, slots=True)
class Question:
    """A question in SQL over the catalogue, in SQL over files (`$files`), and in pandas over such files."""

    name: str
    catalogue: str
    glob: str
    everywhere: str
    paths: tuple[str, ...]
    pandas: Callable[[Sequence[Path]], Rows]


def _records(paths: Sequence[Path]) -> pd.DataFrame:
    rows = []
    for path in paths:
        record = json.loads(path.read_bytes())
        score = record["score"]
        rows.append(
            (
                record["dataset"], record["model"], record["model_name"], record["primary_metric"],
                score["value"], score["ci_low"], score["ci_high"], record["samples"],
                record["finished_at"], record["evaluation_id"], record["team"], record["cost"],
            )
        )  # fmt: skip
    names = [
        "dataset", "model", "model_name", "metric", "value", "ci_low", "ci_high", "n", "finished_at",
        "evaluation_id", "team", "cost",
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=names)
    frame["finished_at"] = pd.to_datetime(frame["finished_at"], utc=True, format="ISO8601")
    return frame


def _rows(frame: pd.DataFrame) -> Rows:
    return [
        tuple(None if isinstance(value, float) and value != value else value for value in row)
        for row in frame.itertuples(index=False, name=None)
    ]


def _leaderboard(paths: Sequence[Path]) -> Rows:
    frame = _records(paths).sort_values(
        ["n", "finished_at", "evaluation_id"], ascending=[False, False, True], kind="stable"
    )
    chosen = frame.drop_duplicates(["dataset", "model"])
    return _rows(chosen[["dataset", "model", "metric", "value", "ci_low", "ci_high", "n", "evaluation_id"]])


def _history(paths: Sequence[Path]) -> Rows:
    frame = _records(paths)
    mine = frame[(frame["model_name"] == "model-01") & (frame["dataset"] == _CHOSEN)]
    return _rows(mine[["model", "metric", "value", "ci_low", "ci_high", "n", "evaluation_id"]])


def _parquet(paths: Sequence[Path], columns: Sequence[str]) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path, columns=list(columns)) for path in paths])


def _cell(paths: Sequence[Path]) -> Rows:
    columns = ["dataset", "model", "metric", "group", "value", "ci_low", "ci_high", "n"]
    frame = _parquet(paths, columns)
    mine = frame[(frame["dataset"] == _GROUPED) & (frame["model"] == MODEL)]
    return _rows(mine[columns[2:]])


def _different(paths: Sequence[Path]) -> Rows:
    columns = ["dataset", "model", "sample_id", "prompt", "choices", "loglikelihoods", "scores"]
    frame = _parquet(paths, columns)
    frame = frame[(frame["dataset"] == _CHOSEN) & frame["model"].isin([MODEL, BEFORE])].copy()
    frame["score"] = [dict(scores)["acc_norm"] for scores in frame["scores"]]
    pairs = frame[frame["model"] == MODEL].merge(
        frame[frame["model"] == BEFORE], on="sample_id", suffixes=("", "_other")
    )
    differing = pairs[pairs["score"] != pairs["score_other"]]
    return _rows(
        differing[
            [
                "sample_id",
                "prompt",
                "choices",
                "loglikelihoods",
                "loglikelihoods_other",
                "score",
                "score_other",
            ]
        ]
    )


def _search(paths: Sequence[Path]) -> Rows:
    frame = _parquet(paths, ["dataset", "model", "sample_id", "output"])
    found = frame[frame["output"].str.contains(RARE, case=False, regex=False, na=False)]
    return _rows(found)


def _costs(paths: Sequence[Path]) -> Rows:
    frame = _records(paths)
    frame["month"] = frame["finished_at"].dt.strftime("%Y-%m-01")
    grouped = frame.groupby(["month", "team"], dropna=False)["cost"].agg(["sum", "size"]).reset_index()
    return _rows(grouped)


_EVERY_RECORD = "evaluations/*/*/*/evaluation.json"
_EVERY_SAMPLES = "evaluations/*/*/*/samples.parquet"
_WRITTEN = tuple(f"evaluations/{kind}_*/*/*/samples.parquet" for kind in ("squad", "gsm"))

QUESTIONS = (
    Question(
        "the leaderboard",
        f"SELECT dataset, model, {_ESTIMATE}, evaluation_id FROM leaderboard",
        f"SELECT dataset, model, {_ESTIMATE}, evaluation_id FROM {_EVALUATIONS} QUALIFY row_number() OVER "
        "(PARTITION BY dataset, model ORDER BY n DESC, finished_at DESC, evaluation_id) = 1",
        _EVERY_RECORD, (_EVERY_RECORD,), _leaderboard,
    ),
    Question(
        "a model's history on a benchmark",
        f"SELECT model, {_ESTIMATE}, evaluation_id FROM history "
        "WHERE model_name = 'model-01' AND dataset = 'hellaswag_1'",
        f"SELECT model, {_ESTIMATE}, evaluation_id FROM {_EVALUATIONS} "
        "WHERE model_name = 'model-01' AND dataset = 'hellaswag_1'",
        _EVERY_RECORD, ("evaluations/hellaswag_1/model-01@*/*/evaluation.json",), _history,
    ),
    Question(
        "a cell's metrics by group",
        'SELECT metric, "group", value, ci_low, ci_high, n FROM metrics '
        "WHERE dataset = 'mmlu_1' AND model = 'model-01@2'",
        'SELECT metric, "group", value, ci_low, ci_high, n FROM read_parquet($files) '
        "WHERE dataset = 'mmlu_1' AND model = 'model-01@2'",
        "evaluations/*/*/*/metrics.parquet", (f"evaluations/mmlu_1/{MODEL}/*/metrics.parquet",), _cell,
    ),
    Question(
        "items that two versions differ on",
        _DIFFERENT.format(samples="samples"),
        _DIFFERENT.format(samples="read_parquet($files)"),
        _EVERY_SAMPLES,
        tuple(f"evaluations/{_CHOSEN}/{model}/*/samples.parquet" for model in (MODEL, BEFORE)),
        _different,
    ),
    Question(
        "a word in all outputs",
        f"SELECT dataset, model, sample_id, output FROM samples WHERE output ILIKE '%{RARE}%'",
        f"SELECT dataset, model, sample_id, output FROM read_parquet($files) WHERE output ILIKE '%{RARE}%'",
        _EVERY_SAMPLES, _WRITTEN, _search,
    ),
    Question(
        "costs by month and team",
        'SELECT "month"::VARCHAR, team, sum(cost), sum(evaluations)::BIGINT FROM costs GROUP BY ALL',
        _MONTHS.format(evaluations=_EVALUATIONS),
        _EVERY_RECORD, (_EVERY_RECORD,), _costs,
    ),
)  # fmt: skip


def normal(rows: Rows) -> list[str]:
    """An answer without its order, and without what the order of a sum does to a float's last digits."""
    return sorted(repr([_normal(value) for value in row]) for row in rows)


def _normal(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.10g}")
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_normal(one) for one in value]
    return value
