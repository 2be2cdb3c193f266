"""lm_eval's results become committed evaluations, marked as imported.

They are in the history and on the leaderboard, with ``origin`` lm_eval, and in nothing that decides: their
fingerprint is that of the file's content, which no cell of the grid ever has, so none is reused in the place
of an evaluation, compared for a verdict or a gate, or a baseline.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from eval_assets.exchange.files import find, read, sanitized
from eval_assets.exchange.names import Destination, Part, is_label, model_name_of
from eval_assets.exchange.own import OwnEvaluation, own_evaluation
from eval_assets.exchange.reading import read_samples
from eval_assets.exchange.run import Run
from eval_assets.exchange.untrusted import finite, number, section, short, whole
from eval_assets.metrics import metric_named
from eval_assets.statistics import mean_estimate
from eval_assets.suite.spec import BenchmarkSpec
from resources.errors import BusyError, UserError
from resources.keys import ModelKey
from resources.records import Estimate, Findings, MetricRow, Sample
from resources.results import AlreadyCommittedError, Cell, ResultsStore

ORIGIN = "lm_eval"
_TASKS = {
    "generate_until": "generation",
    "loglikelihood": "perplexity",
    "loglikelihood_rolling": "perplexity",
}
_Z = 1.959963984540054
_LARGEST_COUNT = 10_000_000
"""Items; a larger n gets the normal interval, which is the same then."""
_NOT_METRICS = frozenset({"name", "alias", "sample_len", "sample_count", "samples"})


@dataclass(frozen=True, slots=True)
class ImportedEvaluation:
    """An evaluation that a results file gave. `new`: it was not in the store before."""

    path: Path
    dataset: str
    model: str
    evaluation_id: str
    items: int
    samples: int
    new: bool


@dataclass(frozen=True, slots=True)
class Imported:
    """What `import_harness` did: the evaluations, and a line for each thing that was refused or left out."""

    evaluations: tuple[ImportedEvaluation, ...]
    refused: tuple[str, ...]


def import_harness(
    paths: Sequence[Path],
    store: ResultsStore,
    suite: Mapping[str, BenchmarkSpec],
    *,
    models: Mapping[str, str] | None = None,
    on_progress: Callable[[Path], None] = lambda _: None,
) -> Imported:
    """Commit what results files (or folders of them) say, each once however often it is imported.

    Samples are taken where the run logged them beside its results. `models` maps a model's name as the files
    have it to the key to use, ``*`` any name. A file, a task or a value that can't be used is refused in one
    line and the others are taken. Raises UserError where a path is nothing of the kind, or nothing at all
    could be taken; TransientError where the store can't be written.
    """
    files = list(dict.fromkeys(file for path in paths for file in find(path)))
    given = dict(models or {})
    _check_given(given, files)
    found: list[ImportedEvaluation] = []
    refused: list[str] = []
    for path in files:
        on_progress(path)
        try:
            run = Run(read(path), given, suite)
        except UserError as error:
            refused.append(f"{path}: {error}")
            continue
        for destination in run.destinations:
            try:
                found.append(_commit(run, destination, store))
            except BusyError as error:
                refused.append(f"{path}: {destination.dataset}: {error}")
            except _RefusedError as error:
                refused.append(f"{path}: {destination.dataset}: {error}")
        refused += [f"{path}: {line}" for line in run.refused]
    if not found:
        raise UserError("nothing to import: " + "; ".join(refused))
    return Imported(tuple(found), tuple(refused))


def _check_given(given: Mapping[str, str], files: Sequence[Path]) -> None:
    """Raise UserError for what is no key, and for a name that no file has: before anything is committed."""
    for key in given.values():
        ModelKey.parse(key)
    missing = given.keys() - {"*"}
    known: dict[str, None] = {}
    for path in files if missing else ():
        with suppress(UserError):  # what is wrong with it is told when it is its turn
            known[model_name_of(read(path).content) or ""] = None
    missing -= known.keys()
    if missing:
        there = ", ".join(filter(None, known)) or "no names at all"
        raise UserError(f"--model {min(missing)}=...: no file has a model of that name; they have {there}")


class _RefusedError(Exception):
    """Why one evaluation of a file can't be taken."""


def _commit(run: Run, destination: Destination, store: ResultsStore) -> ImportedEvaluation:
    """Raises _RefusedError."""
    samples = _samples(run, destination)
    own = own_evaluation(run.content, destination.dataset)
    rows = list(own.metrics) if own is not None else _metric_rows(run, destination)
    if all(row.group is not None for row in rows):
        raise _RefusedError("it has no finite value of any metric")
    record = _record(run, destination, rows, samples, own)
    # What the files say and nothing that this version makes of it: another version imports nothing again.
    digests = [_digest(path) for path in _logged(run, destination).values()] if samples else []
    content = [
        ORIGIN,
        destination.dataset,
        str(run.model),
        record["imported"]["results"],
        record["imported"]["date"],
        record["benchmark_fingerprint"],
        digests,
    ]
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    cell = Cell(destination.dataset, str(run.model), fingerprint)
    new = store.committed(cell) is None
    if new:
        try:
            with store.writer(cell, owner="import") as writer:
                writer.commit(samples, rows, record)
        except AlreadyCommittedError:
            new = False
    committed = store.committed(cell)
    identity = committed["evaluation_id"] if committed is not None else ""
    return ImportedEvaluation(
        run.file.path, destination.dataset, str(run.model), identity, record["samples"], len(samples), new
    )


def _logged(run: Run, destination: Destination) -> dict[str, Path]:
    """The samples files of an evaluation's tasks that there are."""
    found = {}
    for part in destination.parts:
        path = run.file.samples.get(part.task) or run.file.samples.get(sanitized(part.task))
        if path is not None:
            found[part.task] = path
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _samples(run: Run, destination: Destination) -> list[Sample]:
    """The samples where all tasks of the evaluation have them; why not is in the run's lines."""
    tasks = [part.task for part in destination.parts]
    logged = _logged(run, destination)
    if not logged:
        return []
    if len(logged) < len(tasks):
        missing = next(task for task in tasks if task not in logged)
        run.refused.append(
            f"{destination.dataset}: taken without samples: there is no samples file of {missing}"
        )
        return []
    sizes = {task: run.size(task, "original") or 0 for task in tasks}
    try:
        samples = read_samples(destination, logged, sizes)
        asked = _item_count(run, destination)
        if asked is not None and len(samples) != asked:
            raise UserError(f"the files have {len(samples)} items, the results say {asked}")
    except UserError as error:
        run.refused.append(f"{destination.dataset}: taken without samples: {error}")
        return []
    return samples


def _record(
    run: Run,
    destination: Destination,
    rows: Sequence[MetricRow],
    samples: Sequence[Sample],
    own: OwnEvaluation | None,
) -> Findings:
    whole_rows = {row.metric: row.estimate for row in rows if row.group is None}
    primary = own.primary_metric if own is not None else _primary(run, destination, list(whole_rows))
    score = whole_rows.get(primary)
    config = section(run.content, "config")
    first = destination.parts[0].task
    began, ended = run.times()
    asked = score.n if score is not None else _item_count(run, destination) or 0
    available = own.items_available if own is not None else _item_count(run, destination, "original")
    results = {part.task: run.entry(part.task) for part in destination.parts}
    if destination.total is not None:
        results[destination.total] = run.entry(destination.total)
    settings = {
        "tasks": {part.task: run.config(part.task) or None for part in destination.parts},
        "n_shot": run.shots(first),
        "chat": run.content.get("chat_template_sha"),
        "system": run.content.get("system_instruction_sha"),
    }
    identity = json.dumps(settings, sort_keys=True, default=str)
    return {
        "origin": ORIGIN,
        "model_name": run.model.name,
        "model_version": run.model.version,
        "model_digest": None,
        "model_parameters": whole(config.get("model_num_parameters")),
        "benchmark_version": str(section(run.content, "versions").get(first, ""))[:80],
        "benchmark_fingerprint": hashlib.sha256(f"lm_eval {identity}".encode()).hexdigest(),
        "task": destination.spec.task
        if destination.spec is not None
        else _TASKS.get(str(run.config(first).get("output_type")), "multiple_choice"),
        "run_id": "",
        "started_at": began,
        "finished_at": ended,
        "status": "valid",
        "items_available": asked if available is None else available,
        "samples": asked,
        "samples_resumed": 0,
        "samples_taken_over": 0,
        "stage": None,
        "interruptions": 0,
        "parts_discarded": 0,
        "samples_with_error": 0,
        "samples_truncated": sum(sample.truncated_tokens > 0 for sample in samples),
        "primary_metric": primary,
        "higher_is_better": _higher_is_better(run, destination, primary, own),
        "score": None
        if score is None
        else {
            "value": score.value,
            "stderr": score.stderr,
            "ci_low": score.ci_low,
            "ci_high": score.ci_high,
            "n": score.n,
        },
        "metrics": {name: estimate.value for name, estimate in whole_rows.items()},
        "seconds": {},
        "engine": {
            "engine": f"lm_eval {short(run.content.get('lm_eval_version'))}".strip(),
            "device": short(config.get("device")) or None,
            "dtype": short(config.get("model_dtype")).removeprefix("torch.") or None,
            "seed": whole(config.get("random_seed")),
        },
        "scoring_version": None,
        "packages": {"transformers": short(run.content.get("transformers_version"))},
        "python": None,
        "git_revision": short(run.content.get("git_hash")) or None,
        "imported": {
            "file": run.file.path.name,
            "at": datetime.now(UTC).isoformat(),
            "tasks": [part.task for part in destination.parts],
            "group": destination.total,
            "n_shot": run.shots(first),
            "chat_template": run.content.get("chat_template_sha") is not None,
            "model": short(config.get("model")),
            "model_name": short(run.content.get("model_name"), 400),
            "date": number(run.content.get("date")),
            "results": finite(results),
            **{
                ours: finite({name: table[name] for name in results if name in table})
                for ours, table in (
                    ("n_samples", section(run.content, "n-samples")),
                    ("higher_is_better", section(run.content, "higher_is_better")),
                    ("versions", section(run.content, "versions")),
                )
            },
        },
    }


def _primary(run: Run, destination: Destination, names: Sequence[str]) -> str:
    if destination.spec is not None and destination.spec.primary_metric in names:
        return destination.spec.primary_metric
    listed = run.config(destination.parts[0].task).get("metric_list")
    for entry in listed if isinstance(listed, list) else ():
        wanted = entry.get("metric") if isinstance(entry, dict) else None
        for name in names:
            if name.partition(",")[0] == wanted:
                return name
    return names[0]


def _higher_is_better(run: Run, destination: Destination, primary: str, own: OwnEvaluation | None) -> bool:
    if own is not None and own.higher_is_better is not None:
        return own.higher_is_better
    metric, _ = metric_named(primary, destination.spec.metrics if destination.spec else ())
    if metric is not None and metric.higher_is_better is not None:
        return metric.higher_is_better
    said = section(section(run.content, "higher_is_better"), destination.parts[0].task).get(
        primary.partition(",")[0]
    )
    return said if isinstance(said, bool) else True


def _item_count(run: Run, destination: Destination, which: str = "effective") -> int | None:
    """The number of items of an evaluation: of a group its tasks' together, otherwise what they share."""
    sizes = [run.size(part.task, which) for part in destination.parts]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return run.size(destination.total, which) if destination.total is not None else None
    return sum(known) if destination.parts[0].group is not None else max(known)


def _metric_rows(run: Run, destination: Destination) -> list[MetricRow]:
    rows: list[MetricRow] = []
    if destination.total is not None and run.entry(destination.total):
        rows += _rows(run, destination, destination.total, None, _item_count(run, destination))
    parts = [row for part in destination.parts for row in _rows(run, destination, part.task, part, None)]
    if destination.parts[0].group is None:
        return [*rows, *({row.metric: row for row in parts}.values())]
    if (
        not rows
    ):  # 0.3 had no groups: the mean, weighted by items (as the harness does today) if it says how many
        for metric in dict.fromkeys(row.metric for row in parts):
            same = [row.estimate for row in parts if row.metric == metric]
            weights = [estimate.n for estimate in same] if all(estimate.n for estimate in same) else None
            value = float(np.average([estimate.value for estimate in same], weights=weights))
            rows.append(
                MetricRow(metric, None, _estimate(metric, destination.spec, value, None, sum(weights or ())))
            )
    return rows + sorted(parts, key=lambda row: (row.group or "", row.metric))


def _rows(run: Run, destination: Destination, name: str, part: Part | None, n: int | None) -> list[MetricRow]:
    entry = run.entry(name)
    rows = []
    for label, logged in entry.items():
        metric, _, filter_name = label.partition(",")
        if label in _NOT_METRICS or metric.endswith("_stderr") or isinstance(logged, (str, bool)):
            continue
        if metric == "bypass":  # always 999
            run.refused.append(f"{destination.dataset}: left out: {name} has outputs only (--predict_only)")
            continue
        ours, factor = destination.metric(f"{metric},{filter_name or 'none'}", part)
        if not is_label(ours):
            run.refused.append(
                f"{destination.dataset}: left out: metric {label[:80]!r}: no name for a metric"
            )
            continue
        value = number(logged)
        if value is None:
            run.refused.append(f"{destination.dataset}: left out: {label[:80]} of {name} is no finite number")
            continue
        stderr = number(entry.get(f"{metric}_stderr,{filter_name}" if filter_name else f"{metric}_stderr"))
        count = n if n is not None else run.size(name, "effective") or 0
        scaled = None if stderr is None or stderr < 0 else stderr * factor
        estimate = _estimate(ours, destination.spec, value * factor, scaled, count)
        rows.append(MetricRow(ours, part.group if part is not None else None, estimate))
    return rows


def _estimate(name: str, spec: BenchmarkSpec | None, value: float, stderr: float | None, n: int) -> Estimate:
    """The harness's value and error, with the 95 % interval that they imply: the harness has none.

    Of a share of right items it is Wilson's, otherwise the normal one, within what the metric can be.
    """
    metric, _ = metric_named(name, spec.metrics if spec is not None else ())
    low, high = metric.bounds if metric is not None else (-float("inf"), float("inf"))
    right = value * n
    if metric is not None and metric.proportion and 0 < n <= _LARGEST_COUNT and 0 <= value <= 1:
        count = round(right)
        if abs(right - count) < 1e-6:
            wilson = mean_estimate([1.0] * count + [0.0] * (n - count), proportion=True)
            return Estimate(value, stderr, wilson.ci_low, wilson.ci_high, n)
    if stderr is None:
        return Estimate(value, None, None, None, n)
    return Estimate(
        value,
        stderr,
        min(max(value - _Z * stderr, low), value),
        max(min(value + _Z * stderr, high), value),
        n,
    )
