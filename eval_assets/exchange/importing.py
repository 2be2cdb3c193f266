"""lm_eval's results become committed evaluations, marked as imported.

They are in the history and on the leaderboard, with ``origin`` lm_eval, and in nothing that decides: their
fingerprint is that of the file's content, which no cell of the grid ever has, so none is reused in the place
of an evaluation, compared for a verdict or a gate, or a baseline.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_assets.exchange.files import find, number, read, whole
from eval_assets.exchange.names import Target
from eval_assets.exchange.run import OwnEvaluation, Run, finite, own_evaluation, own_rows, section, short
from eval_assets.exchange.samples import read_samples
from eval_assets.exchange.values import item_count, metric_rows
from eval_assets.metrics import METRICS
from eval_assets.suite.spec import BenchmarkSpec
from resources.errors import BusyError, UserError
from resources.keys import ModelKey
from resources.records import MetricRow, Sample
from resources.results import AlreadyCommittedError, Cell, ResultsStore

ORIGIN = "lm_eval"
_TASKS = {
    "generate_until": "generation",
    "loglikelihood": "perplexity",
    "loglikelihood_rolling": "perplexity",
}
_SCORE = ("value", "stderr", "ci_low", "ci_high", "n")


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
    for key in given.values():
        ModelKey.parse(key)
    found: list[ImportedEvaluation] = []
    refused: list[str] = []
    for path in files:
        on_progress(path)
        try:
            run = Run(read(path), given, suite)
        except UserError as error:
            refused.append(f"{path}: {error}")
            continue
        for target in run.targets:
            try:
                found.append(_commit(run, target, store))
            except BusyError as error:
                refused.append(f"{path}: {target.dataset}: {error}")
            except _RefusedError as error:
                refused.append(f"{path}: {target.dataset}: {error}")
        refused += [f"{path}: {line}" for line in run.refused]
    if not found:
        raise UserError("nothing to import: " + "; ".join(refused))
    return Imported(tuple(found), tuple(refused))


class _RefusedError(Exception):
    """Why one evaluation of a file can't be taken."""


def _commit(run: Run, target: Target, store: ResultsStore) -> ImportedEvaluation:
    """Raises _RefusedError."""
    samples = _samples(run, target)
    own = own_evaluation(run.content, target.dataset)
    rows = own_rows(own) if own is not None else metric_rows(run, target)
    if all(row.group is not None for row in rows):
        raise _RefusedError("it has no finite value of any metric")
    record = _record(run, target, rows, samples, own)
    # What the files say and nothing that this version makes of it: another version imports nothing again.
    content = [
        ORIGIN, target.dataset, str(run.model), record["imported"]["results"], record["imported"]["date"],
        record["benchmark_fingerprint"], [_digest(run.file.samples[p.task]) for p in target.parts if samples],
    ]  # fmt: skip
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    cell = Cell(target.dataset, str(run.model), fingerprint)
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
        run.file.path, target.dataset, str(run.model), identity, record["samples"], len(samples), new
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _samples(run: Run, target: Target) -> list[Sample]:
    """The samples where all tasks of the evaluation have them; why not is in the run's lines."""
    tasks = [part.task for part in target.parts]
    logged = {task: run.file.samples[task] for task in tasks if task in run.file.samples}
    if not logged:
        return []
    if len(logged) < len(tasks):
        missing = next(task for task in tasks if task not in logged)
        run.refused.append(f"{target.dataset}: taken without samples: there is no samples file of {missing}")
        return []
    sizes = {task: run.size(task, "original") or 0 for task in tasks}
    try:
        samples = read_samples(target, logged, sizes)
        asked = item_count(run, target)
        if asked is not None and len(samples) != asked:
            raise UserError(f"the files have {len(samples)} items, the results say {asked}")
    except UserError as error:
        run.refused.append(f"{target.dataset}: taken without samples: {error}")
        return []
    return samples


def _record(
    run: Run,
    target: Target,
    rows: Sequence[MetricRow],
    samples: Sequence[Sample],
    own: OwnEvaluation | None,
) -> dict[str, Any]:
    whole_rows = {row.metric: row.estimate for row in rows if row.group is None}
    primary = own.primary_metric if own is not None else _primary(run, target, list(whole_rows))
    score = whole_rows.get(primary)
    config = section(run.content, "config")
    first = target.parts[0].task
    began, ended = run.times()
    asked = score.n if score is not None else item_count(run, target) or 0
    available = own.items_available if own is not None else item_count(run, target, "original")
    results = {part.task: run.entry(part.task) for part in target.parts}
    if target.total is not None:
        results[target.total] = run.entry(target.total)
    settings = {
        "tasks": {part.task: run.config(part.task) or None for part in target.parts},
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
        "task": target.spec.task
        if target.spec is not None
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
        "higher_is_better": _higher_is_better(run, target, primary, own),
        "score": None if score is None else {key: getattr(score, key) for key in _SCORE},
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
            "tasks": [part.task for part in target.parts],
            "group": target.total,
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


def _primary(run: Run, target: Target, names: Sequence[str]) -> str:
    if target.spec is not None and target.spec.primary_metric in names:
        return target.spec.primary_metric
    listed = run.config(target.parts[0].task).get("metric_list")
    for entry in listed if isinstance(listed, list) else ():
        wanted = entry.get("metric") if isinstance(entry, dict) else None
        for name in names:
            if name.partition(",")[0] == wanted:
                return name
    return names[0]


def _higher_is_better(run: Run, target: Target, primary: str, own: OwnEvaluation | None) -> bool:
    if own is not None and own.higher_is_better is not None:
        return own.higher_is_better
    spec = target.spec
    known = next((m.metric for m in spec.metrics if m.name == primary), primary) if spec else primary
    if known in METRICS and METRICS[known].higher_is_better is not None:
        return bool(METRICS[known].higher_is_better)
    said = section(section(run.content, "higher_is_better"), target.parts[0].task).get(
        primary.partition(",")[0]
    )
    return said if isinstance(said, bool) else True
