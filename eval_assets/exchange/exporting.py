"""Evaluations as lm_eval's own files, so that what reads a run of the harness reads ours.

``<folder>/<model>/results_<time>.json`` and ``samples_<task>_<time>.jsonl``, as lm_eval 0.4.13 writes them
(`EvaluationTracker.save_results_aggregated`, `save_results_samples`). What was imported is written with the
values that it came with.
"""

import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from eval_assets.exchange.names import OWN, TASKS, TaskNames
from eval_assets.exchange.writing import hash_of, label_of, sample_lines
from eval_assets.metrics import METRICS
from eval_assets.suite.spec import BenchmarkSpec
from resources.catalog import Catalog
from resources.errors import UserError
from resources.keys import ModelKey
from resources.records import MetricRow, Sample
from resources.results import ResultsStore

FORMAT = "0.4.13"
"""The version of lm_eval whose files these are."""

_OUTPUT_TYPES = {"multiple_choice": "multiple_choice", "generation": "generate_until"}


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export_harness` did: the files, and a line for each evaluation that was left out or cut short."""

    files: tuple[Path, ...]
    left_out: tuple[str, ...]


@dataclass(slots=True)
class _Results:
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


def export_harness(
    store: ResultsStore,
    suite: Mapping[str, BenchmarkSpec],
    folder: Path,
    *,
    models: Sequence[str] = ("*",),
    benchmarks: Sequence[str] = ("*",),
    samples: bool = True,
) -> Exported:
    """Write the current evaluation of each cell that matches, a results file a model version.

    Patterns: ``*`` stands for any text. `samples` writes every item, too. The same evaluations make the
    same files. Raises UserError where nothing matches or the folder can't be written.
    """
    catalog = Catalog(store)
    catalog.refresh()
    chosen: dict[str, list[dict[str, Any]]] = {}
    with catalog.connect() as connection:
        rows = connection.execute(
            "SELECT model, dataset, record FROM current_evaluations ORDER BY model, dataset"
        ).fetchall()
    for model, dataset, record in rows:
        if _matches(model, models) and _matches(dataset, benchmarks):
            chosen.setdefault(model, []).append(json.loads(record))
    if not chosen:
        raise UserError(
            f"no evaluation of {', '.join(models)} on {', '.join(benchmarks)} in {store.root}; "
            "'leaderboard' shows what there is"
        )
    files: list[Path] = []
    left_out: list[str] = []
    for model, records in chosen.items():
        try:
            files += _export_model(store, suite, folder, ModelKey.parse(model), records, samples, left_out)
        except OSError as error:
            raise UserError(f"{folder} can't be written: {error.strerror}; name another folder") from None
    return Exported(tuple(files), tuple(left_out))


def _export_model(
    store: ResultsStore,
    suite: Mapping[str, BenchmarkSpec],
    folder: Path,
    model: ModelKey,
    records: Sequence[dict[str, Any]],
    with_samples: bool,
    left_out: list[str],
) -> list[Path]:
    place = folder / sanitized(str(model))
    files: list[Path] = []
    times: set[datetime] = set()
    usable = [record for record in records if record["score"] is not None]
    left_out += [
        f"{model} on {record['dataset']}: left out: it has no valid score"
        for record in records
        if record["score"] is None
    ]
    for together in _files(store, suite, usable):
        time = max(_time(record["finished_at"]) for record, _, _ in together)
        while time in times:
            time += timedelta(microseconds=1)
        times.add(time)
        ending = time.isoformat().replace(":", "-")
        made = _Results()
        for record, spec, names in together:
            _add_results(made, record, spec, store.metrics(record), names)
            for task, lines in _sample_files(store, record, spec, names, left_out) if with_samples else ():
                hashes = [line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines]
                made.hashes[task] = hash_of("".join(hashes))
                path = place / f"samples_{task}_{ending}.jsonl"
                _put(path, (json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
                files.append(path)
        path = place / f"results_{ending}.json"
        content = _file(made, model, [record for record, _, _ in together])
        _put(path, [json.dumps(content, indent=2, ensure_ascii=False)])
        files.append(path)
    return files


_Entry: TypeAlias = tuple[dict[str, Any], BenchmarkSpec | None, list[TaskNames]]


def _files(
    store: ResultsStore, suite: Mapping[str, BenchmarkSpec], records: Sequence[dict[str, Any]]
) -> list[list[_Entry]]:
    """The evaluations of each results file.

    A file has one entry a task, and to the harness MMLU with five examples and with none are the same task.
    """
    found: list[tuple[set[str], list[_Entry]]] = []
    for record in records:
        spec = _spec(store, suite, record)
        names = _names(record, spec)
        tasks = set((record.get("imported") or {}).get("tasks") or [one.task for one in names])
        if names and names[0].prefix and spec is not None:
            tasks |= {f"{names[0].prefix}{config}" for config in spec.source.configs}
        tasks = tasks or {str(record["dataset"])}
        for others, members in found:
            if not others & tasks:
                others |= tasks
                members.append((record, spec, names))
                break
        else:
            found.append((tasks, [(record, spec, names)]))
    return [members for _, members in found]


def _sample_files(
    store: ResultsStore,
    record: Mapping[str, Any],
    spec: BenchmarkSpec | None,
    names: Sequence[TaskNames],
    left_out: list[str],
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The lines of each task of an evaluation; why there are none is a line in `left_out`."""
    where = f"{record['model']} on {record['dataset']}"
    if record.get("retention"):
        left_out.append(f"{where}: without samples: retention has removed their texts")
        return
    samples = store.samples(record)
    if not samples:
        left_out.append(f"{where}: without samples: it was imported without them")
    for task, task_names, members in _tasks(record, names, samples):
        yield task, list(sample_lines(members, spec, task_names, record["task"]))


def _names(record: Mapping[str, Any], spec: BenchmarkSpec | None) -> list[TaskNames]:
    """The harness's tasks for a benchmark; none where it has none, or the few-shot examples are others."""
    if record.get("imported"):
        tasks = [*record["imported"]["tasks"], record["imported"]["group"]]
        return [
            n
            for n in TASKS
            if n.benchmark == record["dataset"] and (n.task in tasks or (n.prefix and tasks[-1]))
        ]
    shots = spec.fewshot.count if spec is not None else None
    return [names for names in TASKS if names.benchmark == record["dataset"] and names.shots == shots]


def _tasks(
    record: Mapping[str, Any], names: Sequence[TaskNames], samples: Sequence[Sample]
) -> Iterable[tuple[str, TaskNames | None, list[Sample]]]:
    """The tasks of an evaluation, each with its samples."""
    group = (record.get("imported") or {}).get("group")
    prefix = names[0].prefix if names else ""
    if prefix or group:
        members: dict[str, list[Sample]] = {}
        for sample in samples:
            members.setdefault(f"{prefix}{sample.group}", []).append(sample)
        for task, of_task in members.items():
            yield task, (names[0] if names else None), of_task
    elif names:
        for one in names:
            if one.choices == "best" and any(sample.target is None for sample in samples):
                continue
            yield one.task, one, list(samples)
    else:
        yield _task_name(record), None, list(samples)


def _task_name(record: Mapping[str, Any]) -> str:
    tasks = (record.get("imported") or {}).get("tasks")
    return str(tasks[0]) if tasks else str(record["dataset"])


def _add_results(
    made: _Results,
    record: Mapping[str, Any],
    spec: BenchmarkSpec | None,
    rows: Sequence[MetricRow],
    names: Sequence[TaskNames],
) -> None:
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
        _add_task(made, _task_name(record), record, spec, whole, None, whole=True)
        tasks[_task_name(record)] = None
    made.own[dataset] = {
        "metrics": [row.as_row() for row in rows],
        "primary_metric": record["primary_metric"],
        "higher_is_better": record["higher_is_better"],
        "items_available": record["items_available"],
        "tasks": tasks,
        "total": total,
    }


def _add_task(
    made: _Results,
    task: str,
    record: Mapping[str, Any],
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


def _higher_is_better(metric: str, record: Mapping[str, Any], spec: BenchmarkSpec | None) -> bool:
    known = next((m.metric for m in spec.metrics if m.name == metric), metric) if spec is not None else metric
    if metric == record["primary_metric"] and record["higher_is_better"] is not None:
        return bool(record["higher_is_better"])
    return bool(METRICS[known].higher_is_better) if known in METRICS else True


def _config(
    task: str,
    record: Mapping[str, Any],
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


def _file(made: _Results, model: ModelKey, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    engine = records[0]["engine"]
    began = min(_time(record["started_at"]) for record in records)
    ended = max(_time(record["finished_at"]) for record in records)
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


def sanitized(name: str) -> str:
    """A model's name as a folder's, as lm_eval.utils.sanitize_model_name."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)


def _spec(
    store: ResultsStore, suite: Mapping[str, BenchmarkSpec], record: Mapping[str, Any]
) -> BenchmarkSpec | None:
    """The benchmark's declaration: as it was prepared, or as its file has it now."""
    prepared = store.benchmark(record["dataset"])
    if prepared is not None and "spec" in prepared:
        with suppress(ValidationError):  # prepared by another version
            return BenchmarkSpec.model_validate(prepared["spec"])
    return suite.get(record["dataset"])


def _time(text: str) -> datetime:
    """A record's time as the harness has times: UTC, without saying so."""
    found = datetime.fromisoformat(text)
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def _number_of(version: Any) -> Any:
    try:
        return float(version)
    except (TypeError, ValueError):
        return version


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _put(path: Path, parts: Iterable[str]) -> None:
    """A text file that appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="replace") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
