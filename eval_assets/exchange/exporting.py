"""Evaluations as lm_eval's own files, so that what reads a run of the harness reads ours.

``<folder>/<model>/results_<time>.json`` and ``samples_<task>_<time>.jsonl``, as lm_eval 0.4.13 writes them
(`EvaluationTracker.save_results_aggregated`, `save_results_samples`). What was imported is written with the
values that it came with.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

from eval_assets.exchange.files import sanitized
from eval_assets.exchange.names import TASKS, TaskNames
from eval_assets.exchange.results_file import (
    ResultsContent,
    add_results,
    naive_utc,
    results_file,
    task_name,
)
from eval_assets.exchange.tables import matching
from eval_assets.exchange.writing import hash_of, sample_lines
from eval_assets.suite import prepared_spec
from eval_assets.suite.spec import BenchmarkSpec
from resources.appearing import appearing
from resources.catalog import Catalog
from resources.errors import UserError
from resources.keys import ModelKey
from resources.records import EvaluationRecord, Sample
from resources.results import ResultsStore


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export_harness` did: the files, and a line for each evaluation that was left out or cut short."""

    files: tuple[Path, ...]
    left_out: tuple[str, ...]


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

    Patterns are those of `matching`. `samples` writes every item, too. The same evaluations make the
    same files. Raises UserError where nothing matches or the folder can't be written.
    """
    catalog = Catalog(store)
    catalog.refresh()
    chosen: dict[str, list[EvaluationRecord]] = {}
    with catalog.connect() as connection:
        rows = connection.execute(
            "SELECT model, record FROM current_evaluations "
            f"WHERE {matching('model', models)} AND {matching('dataset', benchmarks)} "
            "ORDER BY model, dataset",
            [*models, *benchmarks],
        ).fetchall()
    for model, record in rows:
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
    records: Sequence[EvaluationRecord],
    with_samples: bool,
    left_out: list[str],
) -> list[Path]:
    place = folder / sanitized(str(model))
    files: list[Path] = []
    times: set[datetime] = set()
    usable = [record for record in records if record["score"] is not None and record["status"] == "valid"]
    left_out += [
        f"{model} on {record['dataset']}: left out: it has no valid score"
        for record in records
        if record not in usable
    ]
    for together in _files(store, suite, usable):
        time = max(naive_utc(record["finished_at"]) for record, _, _ in together)
        while time in times:
            time += timedelta(microseconds=1)
        times.add(time)
        ending = time.isoformat().replace(":", "-")
        made = ResultsContent()
        for record, spec, names in together:
            add_results(made, record, spec, store.metrics(record), names)
            for task, lines in _sample_files(store, record, spec, names, left_out) if with_samples else ():
                hashes = [line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines]
                made.hashes[task] = hash_of("".join(hashes))
                path = place / f"samples_{sanitized(task)}_{ending}.jsonl"
                if path in files:
                    left_out.append(f"{model}: without samples of {task}: another task's file has that name")
                    continue
                _put(path, (json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
                files.append(path)
        path = place / f"results_{ending}.json"
        content = results_file(made, model, [record for record, _, _ in together])
        _put(path, [json.dumps(content, indent=2, ensure_ascii=False)])
        files.append(path)
    return files


_Entry: TypeAlias = tuple[EvaluationRecord, BenchmarkSpec | None, list[TaskNames]]


def _files(
    store: ResultsStore, suite: Mapping[str, BenchmarkSpec], records: Sequence[EvaluationRecord]
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
    record: EvaluationRecord,
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
        return
    for task, task_names, members in _tasks(record, names, samples):
        yield task, list(sample_lines(members, spec, task_names, record["task"]))


def _names(record: EvaluationRecord, spec: BenchmarkSpec | None) -> list[TaskNames]:
    """The harness's tasks for a benchmark; none where it has none, or the few-shot examples are others."""
    if record.get("imported"):
        tasks = record["imported"]["tasks"]
        return [
            names
            for names in TASKS
            if names.benchmark == record["dataset"] and (names.prefix or names.task in tasks)
        ]
    shots = spec.fewshot.count if spec is not None else None
    return [names for names in TASKS if names.benchmark == record["dataset"] and names.shots == shots]


def _tasks(
    record: EvaluationRecord, names: Sequence[TaskNames], samples: Sequence[Sample]
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
        yield task_name(record), None, list(samples)


def _spec(
    store: ResultsStore, suite: Mapping[str, BenchmarkSpec], record: EvaluationRecord
) -> BenchmarkSpec | None:
    """The benchmark's declaration: as it was prepared, or as its file has it now."""
    return prepared_spec(store.benchmark(record["dataset"])) or suite.get(record["dataset"])


def _put(path: Path, parts: Iterable[str]) -> None:
    with appearing(path) as file:
        for part in parts:
            file.write(part.encode("utf-8", "replace"))
