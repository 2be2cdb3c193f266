"""A results file of lm_eval put together from evaluations: each field as its own code writes it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from eval_assets.exchange.files import sanitized
from eval_assets.exchange.names import OWN, TaskNames
from eval_assets.exchange.own import OwnEvaluation
from eval_assets.exchange.writing import label_of
from eval_assets.metrics import metric_named
from eval_assets.suite.spec import BenchmarkSpec
from resources.keys import ModelKey
from resources.records import EvaluationRecord, MetricRow

FORMAT = "0.4.13"
"""The version of lm_eval whose files these are."""

_OUTPUT_TYPES = {"multiple_choice": "multiple_choice", "generation": "generate_until"}


@dataclass(slots=True)
class ResultsContent:
    """A results file as it is put together."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    group_subtasks: dict[str, list[str]] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    shots: dict[str, int] = field(default_factory=dict)
    higher_is_better: dict[str, dict[str, bool]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    own: dict[str, dict[str, Any]] = field(default_factory=dict)


def add_results(
    made: ResultsContent,
    record: EvaluationRecord,
    spec: BenchmarkSpec | None,
    rows: Sequence[MetricRow],
    names: Sequence[TaskNames],
) -> None:
    """Add an evaluation with its metrics, under the harness's names where it has `names` for it."""
    dataset = str(record["dataset"])
    prefix = names[0].prefix if names else ""
    imported = record.get("imported") or {}
    whole = [row for row in rows if row.group is None]
    tasks: dict[str, str | None] = {}
    total: str | None = None
    if prefix or imported.get("group"):
        total = group = str(imported.get("group") or names[0].task)
        by_group: dict[str, list[MetricRow]] = {}
        for row in rows:
            if row.group is not None:
                by_group.setdefault(f"{prefix}{row.group}", []).append(row)
                tasks[f"{prefix}{row.group}"] = row.group
        for task, of_task in by_group.items():
            _add_task(made, task, record, spec, of_task, names[0] if names else None, whole=False)
        _add_task(made, group, record, spec, whole, names[0] if names else None, whole=True)
        made.groups[group] = made.results[group]
        made.group_subtasks[group] = list(by_group)
        for table in (made.configs, made.counts):
            table.pop(group, None)
    elif names:
        for one in names:
            mine = [row for row in whole if label_of(row.metric, one) is not None]
            if mine:
                _add_task(made, one.task, record, spec, mine, one, whole=True)
                tasks[one.task] = None
    else:
        _add_task(made, task_name(record), record, spec, whole, None, whole=True)
        tasks[task_name(record)] = None
    made.own[dataset] = OwnEvaluation(
        list(rows),
        record["primary_metric"],
        record["higher_is_better"],
        record["items_available"],
        tasks,
        total,
    ).as_json()


def _add_task(
    made: ResultsContent,
    task: str,
    record: EvaluationRecord,
    spec: BenchmarkSpec | None,
    rows: Sequence[MetricRow],
    names: TaskNames | None,
    *,
    whole: bool,
) -> None:
    imported = record.get("imported") or {}
    n = max(row.estimate.n for row in rows)
    entry: dict[str, Any] = {"name": task, "alias": task, "sample_len": n}
    better: dict[str, bool] = {}
    metric_list = []
    for row in rows:
        found = label_of(row.metric, names)
        if found is None:
            continue
        label, factor = found
        metric, _, filter_name = label.partition(",")
        entry[label] = row.estimate.value * factor
        stderr = row.estimate.stderr
        entry[f"{metric}_stderr,{filter_name}"] = "N/A" if stderr is None else stderr * factor
        higher = _higher_is_better(row.metric, record, spec)
        better[metric] = higher
        metric_list.append({"metric": metric, "aggregation": "mean", "higher_is_better": higher})
    made.results[task] = imported.get("results", {}).get(task) or entry
    made.higher_is_better[task] = imported.get("higher_is_better", {}).get(task) or better
    shots = imported.get("n_shot") if imported else (spec.fewshot.count if spec is not None else 0)
    made.shots[task] = shots or 0
    made.versions[task] = imported.get("versions", {}).get(task, _number_of(record["benchmark_version"]))
    available = record["items_available"] if whole else n
    made.counts[task] = imported.get("n_samples", {}).get(task) or {"original": available, "effective": n}
    made.configs[task] = _config(task, record, spec, metric_list, made.shots[task])


def _higher_is_better(metric: str, record: EvaluationRecord, spec: BenchmarkSpec | None) -> bool:
    if metric == record["primary_metric"]:
        return record["higher_is_better"]
    known, _ = metric_named(metric, spec.metrics if spec is not None else ())
    return known is None or bool(known.higher_is_better)


def _config(
    task: str,
    record: EvaluationRecord,
    spec: BenchmarkSpec | None,
    metrics: list[dict[str, Any]],
    shots: int,
) -> dict[str, Any]:
    output_type = _OUTPUT_TYPES.get(record["task"], "loglikelihood")
    if record["task"] == "perplexity" and (spec is None or not spec.prompt):
        output_type = "loglikelihood_rolling"
    config: dict[str, Any] = {
        "task": task,
        "dataset_path": (spec.source.hub or str(spec.source.path)) if spec is not None else "",
        "doc_to_text": spec.prompt if spec is not None else "",
        "doc_to_target": "",
        "unsafe_code": False,
        "description": spec.description if spec is not None else "",
        "target_delimiter": spec.delimiter if spec is not None else " ",
        "fewshot_delimiter": spec.fewshot_delimiter if spec is not None else "\n\n",
        "num_fewshot": shots,
        "metric_list": metrics,
        "output_type": output_type,
        "repeats": spec.generation.outputs if spec is not None else 1,
        "should_decontaminate": False,
        "metadata": {"version": _number_of(record["benchmark_version"])},
    }
    if spec is not None and spec.source.hub is not None:
        config["test_split"] = spec.source.split
    if output_type == "generate_until" and spec is not None:
        config["generation_kwargs"] = {"until": list(spec.generation.stop), "do_sample": False}
    return config


def results_file(
    made: ResultsContent, model: ModelKey, records: Sequence[EvaluationRecord]
) -> dict[str, Any]:
    """The content of the file of a model version, with what all its evaluations share."""
    engine = records[0]["engine"]
    began = min(naive_utc(record["started_at"]) for record in records)
    ended = max(naive_utc(record["finished_at"]) for record in records)
    limited = [r["samples"] for r in records if r["samples"] != r["items_available"]]
    date = next((r["imported"]["date"] for r in records if (r.get("imported") or {}).get("date")), None)
    started = began.replace(tzinfo=UTC)
    return {
        "results": made.results,
        **({"groups": made.groups} if made.groups else {}),
        "group_subtasks": made.group_subtasks,
        "configs": dict(sorted(made.configs.items())),
        "versions": dict(sorted(made.versions.items())),
        "n-shot": dict(sorted(made.shots.items())),
        "higher_is_better": dict(sorted(made.higher_is_better.items())),
        "n-samples": made.counts,
        "config": {
            "model": "hf",
            "model_args": {"pretrained": model.name, "revision": model.version, "dtype": engine.get("dtype")},
            "model_num_parameters": records[0]["model_parameters"] or 0,
            "model_dtype": f"torch.{engine.get('dtype')}",
            "model_revision": model.version,
            "model_sha": "",
            "batch_size": "auto",
            "batch_sizes": [],
            "device": engine.get("device"),
            "use_cache": None,
            "limit": max(limited) if limited else None,
            "bootstrap_iters": 0,
            "gen_kwargs": None,
            "random_seed": engine.get("seed"),
            "numpy_seed": engine.get("seed"),
            "torch_seed": engine.get("seed"),
            "fewshot_seed": engine.get("seed"),
        },
        "git_hash": records[0]["git_revision"],
        "date": date if date is not None and len(records) == 1 else started.timestamp(),
        "pretty_env_info": "exported by continuous-model-evaluation",
        "transformers_version": (records[0]["packages"] or {}).get("transformers", ""),
        "lm_eval_version": FORMAT,
        "upper_git_hash": None,
        "task_hashes": made.hashes,
        "model_source": "hf",
        "model_name": str(model),
        "model_name_sanitized": sanitized(str(model)),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": True,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": str((ended - began).total_seconds()),
        OWN: {"model": str(model), "evaluations": made.own},
    }


def task_name(record: EvaluationRecord) -> str:
    """The name of a task that the harness has no other one for."""
    tasks = (record.get("imported") or {}).get("tasks")
    return str(tasks[0]) if tasks else str(record["dataset"])


def naive_utc(text: str) -> datetime:
    """A record's time as the harness has times: UTC, without saying so."""
    found = datetime.fromisoformat(text)
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def _number_of(version: Any) -> Any:
    try:
        number = float(version)
    except (TypeError, ValueError):
        return version
    return number if math.isfinite(number) else version
