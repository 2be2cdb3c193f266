"""The pod of a run: what the run is for, what is known of its models, and so its size and configuration."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import dagster as dg
from dagster_k8s.job import USER_DEFINED_K8S_CONFIG_KEY

from resources.errors import UserError
from resources.pods.catalogue import Catalogue
from resources.pods.config import Config, identity, merged, pod_config
from resources.pods.sizing import (
    Experience,
    PodSize,
    largest,
    size_of_evaluating,
    size_of_fetching,
)
from resources.pods.tags import (
    CLASS_TAG,
    COST_TAG,
    COUNT_TAG,
    DATASETS_TAG,
    DTYPE_TAG,
    MODEL_TAG,
    ON_DEMAND_JOB,
    ON_DEMAND_OP,
    POD_TAG,
    TAKEN_AWAY,
    TASKS_TAG,
    TEAM_TAG,
    Kind,
    ending_of,
    ends_of,
    evaluates,
)
from resources.registries import ModelVersion
from resources.results import ResultsStore

REMEMBERED = timedelta(days=90)

_PRIORITY = "dagster/priority"


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a run is for, as its pod sees it. Without `models` nothing is evaluated, but fetched or judged."""

    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    priority: int = 0
    team: str = ""
    dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class Plan:
    """The pod for a run. `config` is what was computed with what a person wants put over it."""

    purpose: Purpose
    size: PodSize
    config: Config
    person: Config
    cost: float | None = None

    def tags(self, run_id: str) -> dict[str, str]:
        """Tags for the run: people and the queue read them, and Dagster makes the Job from them."""
        config = json.dumps(self.config, sort_keys=True)
        record = {
            **identity(self.size),
            "why": dict(self.size.why),
            "person": self.person,
            "written": _digest(config),
            "run": run_id,
        }
        tags = {
            USER_DEFINED_K8S_CONFIG_KEY: config,
            POD_TAG: json.dumps(record, sort_keys=True),
            CLASS_TAG: self.size.accelerator,
            COUNT_TAG: str(self.size.count),
        }
        if self.cost is not None:
            tags[COST_TAG] = f"{self.cost:.4f}"
        if len(self.purpose.models) == 1:
            tags[MODEL_TAG] = self.purpose.models[0]
        return tags


def purpose_of(run: dg.DagsterRun, known: Iterable[str] = ()) -> Purpose:
    """What a run is for, from its job, partitions and tags; patterns stand for those of the `known` models.

    Raises UserError for a run over several models' rows: it would have one pod for all of them.
    """
    tags = run.tags
    nothing = Purpose(
        priority=_whole_number(tags.get(_PRIORITY, "0")),
        team=tags.get(TEAM_TAG, ""),
        dtype=tags.get(DTYPE_TAG, "auto"),
    )
    if run.job_name == ON_DEMAND_JOB:
        ops: Any = run.run_config.get("ops", {})
        config = ops.get(ON_DEMAND_OP, {}).get("config", {})
        patterns = [pattern for pattern in config.get("models", []) if isinstance(pattern, str)]
        models = [key for key in known if any(fnmatchcase(key, pattern) for pattern in patterns)]
        datasets = [name for name in config.get("benchmarks", []) if isinstance(name, str)]
        return replace(nothing, models=tuple(models or patterns), datasets=tuple(datasets))
    if not evaluates(run):
        return nothing
    start, end = ends_of(tags)
    dataset, _, model = start.partition("|")
    if not model or end.partition("|")[2] != model:
        raise UserError(
            f"run {run.run_id[:8]} evaluates no partition, or several models ({start} to {end}): launch one "
            "run a model, so that its pod can be as large as that model needs"
        )
    return replace(nothing, models=(model,), datasets=_datasets(tags, dataset, end.partition("|")[0]))


def _datasets(tags: Mapping[str, str], first: str, last: str) -> tuple[str, ...]:
    """The datasets of a row: as whoever requested it says, or the ends of its range."""
    if tags.get(DATASETS_TAG):
        return tuple(tags[DATASETS_TAG].split(","))
    tasks = [task.partition("|")[0] for task in tags.get(TASKS_TAG, "").split(",") if task]
    return tuple(dict.fromkeys([name for name in tasks if name] or [first, last]))


def experience_of(model: str, store: ResultsStore, instance: dg.DagsterInstance | None) -> Experience:
    """What finished evaluations of a model took, and how its pods ended in the last 90 days."""
    found: dict[str, float] = {}
    for record in store.evaluations_of(model):
        on_device = record.get("engine", {}).get("device", "cpu") != "cpu"
        peak = record.get("peak_device_bytes") if on_device else record.get("peak_memory_bytes")
        if on_device and (record.get("accelerator_count") or 1) > 1:
            peak = None  # of the first of several devices: it says little of what all of them need
        computed = (
            record.get("samples", 0) - record.get("samples_resumed", 0) - record.get("samples_taken_over", 0)
        )
        seconds = sum(record.get("seconds", {}).values())
        whole = seconds / computed * record.get("items_available", computed) if computed > 0 else 0.0
        for name, value in (("device_peak" if on_device else "host_peak", peak), ("seconds", whole)):
            if value:
                found[name] = max(found.get(name, 0), value)
    killed, evictions = _endings(model, instance) if instance is not None else (None, 0)
    return Experience(
        host_peak=int(found["host_peak"]) if "host_peak" in found else None,
        device_peak=int(found["device_peak"]) if "device_peak" in found else None,
        host_killed=killed,
        evictions=evictions,
        seconds=found.get("seconds"),
    )


def _endings(model: str, instance: dg.DagsterInstance) -> tuple[int | None, int]:
    """The largest memory in which a pod of the model was killed for want of more; evictions in a row."""
    runs = instance.get_runs(
        dg.RunsFilter(tags={MODEL_TAG: model}, created_after=datetime.now(UTC) - REMEMBERED)
    )
    killed, evictions, in_a_row = 0, 0, True
    for run in runs:  # the latest first
        if not run.is_finished:
            continue
        ended = ending_of(run)
        in_a_row = in_a_row and ended.get("kind") in TAKEN_AWAY
        evictions += in_a_row
        if ended.get("kind") == Kind.OUT_OF_MEMORY:
            killed = max(killed, int(ended.get("memory", 0)))
    return killed or None, evictions


def plan_pod(
    purpose: Purpose,
    catalogue: Catalogue,
    store: ResultsStore,
    instance: dg.DagsterInstance | None = None,
    person: Sequence[Mapping[str, Any]] = (),
) -> Plan:
    """The pod for a purpose. `person`: configurations that people gave, each of which wins over those before.

    Raises UserError where a model fits into no class, or a configuration has a wrong field.
    """
    if purpose.models:
        sizes = []
        for key in purpose.models:
            record = store.model_version(key)
            sizes.append(
                size_of_evaluating(
                    ModelVersion.from_dict(record) if record is not None else None,
                    catalogue,
                    experience_of(key, store, instance),
                    dtype=purpose.dtype,
                    cells=max(len(purpose.datasets), 1) * len(purpose.models),
                )
            )
        size = largest(sizes)
    else:
        size = size_of_fetching(catalogue)
    labels = {
        "model": purpose.models[0] if len(purpose.models) == 1 else "",
        "dataset": purpose.datasets[0] if len(purpose.datasets) == 1 else "",
        "team": purpose.team,
        "class": size.accelerator,
    }
    wanted: Config = {}
    for config in person:
        wanted = merged(wanted, config)
    computed = pod_config(size, catalogue, labels=labels, priority=purpose.priority)
    return Plan(purpose, size, merged(computed, wanted), wanted)


def of_people(run: dg.DagsterRun, instance: dg.DagsterInstance) -> list[Config]:
    """The pod configurations that people gave: on the assets or ops, on the job, on the run, in this order.

    Tags of a job are on its runs, but not on those of a backfill from the UI, so they are read in the job.
    A run that is tried again has its tags copied: what we had computed is taken out of them.

    Raises UserError for a tag that is no JSON object.
    """
    tags: list[Mapping[str, Any]] = []
    if run.job_snapshot_id is not None:
        job = instance.get_job_snapshot(run.job_snapshot_id)
        tags += [op.tags for op in job.node_defs_snapshot.op_def_snaps]
        tags.append(job.tags)
    before = json.loads(run.tags.get(POD_TAG, "{}"))
    if before.get("written") == _digest(run.tags.get(USER_DEFINED_K8S_CONFIG_KEY, "")):
        tags.append({USER_DEFINED_K8S_CONFIG_KEY: json.dumps(before["person"])})
    else:
        tags.append(run.tags)
    return [config for found in tags if (config := _config_in(found))]


def _config_in(tags: Mapping[str, Any]) -> Config:
    text = tags.get(USER_DEFINED_K8S_CONFIG_KEY, "{}")
    try:
        config = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"tag {USER_DEFINED_K8S_CONFIG_KEY} is no JSON object: {str(text)[:80]}")
    return config


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0
