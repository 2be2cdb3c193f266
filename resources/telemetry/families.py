"""Every metric by its name, and readings of them that a scrape can't choke on."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client import Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

LONGEST_VALUE = 200
"""Characters of a label's value; model keys have no more, names out of YAML files may."""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: what it means and its labels. A counter's name ends in ``_total``."""

    meaning: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"


VERSION = ("model_name", "model_version")
CELL = (*VERSION, "dataset")

FAMILIES: Mapping[str, Family] = {
    # -- cells: those of each model's latest version and of its champion
    "llm_evaluation_score": Family(
        "value of a metric in the cell's current evaluation, over all its items", (*CELL, "metric")
    ),
    "llm_evaluation_score_low": Family(
        "lower end of the 95 % interval of the primary metric", (*CELL, "metric")
    ),
    "llm_evaluation_score_high": Family("upper end of that interval", (*CELL, "metric")),
    "llm_evaluation_duration_seconds": Family(
        "from the start to the commit of the cell's current evaluation, in the run that committed it", CELL
    ),
    "llm_evaluation_phase_seconds": Family(
        "of that, by phase: load, prefill, decode, score", (*CELL, "phase")
    ),
    "llm_evaluation_samples": Family("items asked in the cell's current evaluation", CELL),
    "llm_evaluation_samples_with_error": Family("of those, items that could not be scored", CELL),
    "llm_evaluation_tokens": Family(
        "tokens of the cell's current evaluation; direction is prompt or output", (*CELL, "direction")
    ),
    "llm_evaluation_accelerator_seconds": Family(
        "devices times seconds of the cell's current evaluation, where a launcher gave it a pod", CELL
    ),
    "llm_evaluation_cost": Family(
        "what the cell's current evaluation cost, in the unit of the prices in EVAL_ACCELERATORS", CELL
    ),
    "llm_evaluation_last_success_timestamp_seconds": Family(
        "when the cell's latest evaluation that is valid was committed", CELL
    ),
    "llm_evaluation_difference": Family(
        "paired difference of the primary metric from the baseline's; verdict is what it was judged to be",
        (*CELL, "metric", "baseline_version", "verdict"),
    ),
    # -- versions
    "llm_evaluation_version_info": Family(
        "1 for each version that is exported; role is latest or champion", (*VERSION, "role")
    ),
    "llm_evaluation_champion_since_timestamp_seconds": Family(
        "when the version in production became that; where no move was recorded, its first evaluation",
        VERSION,
    ),
    "llm_evaluation_verdict_info": Family(
        "1 for the latest verdict on an exported version: first, passed, failed or undecided",
        (*VERSION, "status"),
    ),
    "llm_evaluation_verdicts": Family(
        "versions of a model by the latest verdict on each", ("model_name", "status")
    ),
    # -- everything that is committed
    "llm_evaluation_committed": Family("evaluations in the store, of all versions", ("model_name",)),
    "llm_evaluation_month_evaluations": Family(
        "evaluations that ended in this calendar month (UTC)", ("team", "accelerator_class")
    ),
    "llm_evaluation_month_samples": Family("their samples", ("team", "accelerator_class")),
    "llm_evaluation_month_tokens": Family(
        "their tokens; direction is prompt or output", ("team", "accelerator_class", "direction")
    ),
    "llm_evaluation_month_accelerator_seconds": Family(
        "their accelerator seconds", ("team", "accelerator_class")
    ),
    "llm_evaluation_month_cost": Family("their cost", ("team", "accelerator_class")),
    "llm_evaluation_budget": Family("EVAL_BUDGET: what a month may cost; absent without one"),
    "llm_evaluation_damaged": Family("committed evaluations of which a file can't be read", ("dataset",)),
    "llm_evaluation_catalogue_timestamp_seconds": Family("when the catalogue was last written"),
    "llm_evaluation_cells": Family("cells that are exported"),
    "llm_evaluation_cells_left_out": Family(
        "cells of latest versions and champions beyond EVAL_METRICS_CELLS, which are not exported"
    ),
    # -- Dagster
    "llm_evaluation_runs": Family(
        "runs in flight; work is register, prepare, evaluate, judge or other, state is queued, starting, "
        "running or canceling",
        ("work", "state"),
    ),
    "llm_evaluation_in_flight": Family("tasks of those runs: a row's run is for many cells", ("work",)),
    "llm_evaluation_queue_age_seconds": Family(
        "how long the oldest run has been queued, or starting; 0 where none is", ("state",)
    ),
    "llm_evaluation_recent_failures": Family(
        "tasks that failed in the last 24 hours, each try counted", ("work", "reason")
    ),
    "llm_evaluation_failures_in_a_row": Family(
        "how often a task has failed since it last succeeded, within seven days, of at most 200; "
        "given_up is yes or no",
        ("work", *CELL, "given_up"),
    ),
    "llm_evaluation_failing_left_out": Family("failing tasks beyond those 200"),
    "llm_evaluation_daemon_heartbeat_timestamp_seconds": Family(
        "when a thread of Dagster's daemon last said that it is alive", ("daemon",)
    ),
    # -- the exporter itself
    "llm_evaluation_exporter_collected_timestamp_seconds": Family(
        "when a source was last read: registry, results or dagster", ("source",)
    ),
    "llm_evaluation_exporter_collect_seconds": Family("how long that took", ("source",)),
    "llm_evaluation_exporter_errors_total": Family(
        "times that a source could not be read; what it said before is still served", ("source",), "counter"
    ),
}


class Readings:
    """Values of metrics. No two have the same labels and none is a NaN: Prometheus would refuse them all."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[str, ...], float]] = {}

    def add(self, name: str, value: float | None, *labels: object) -> None:
        """Set a metric, its labels in the order of `FAMILIES`; nothing for a value that is no number."""
        if value is None or not math.isfinite(value):
            return
        if len(labels) != len(FAMILIES[name].labels):
            raise ValueError(f"{name} has the labels {FAMILIES[name].labels}")
        self._values.setdefault(name, {})[tuple(_text(label) for label in labels)] = float(value)

    def update(self, other: "Readings") -> None:
        """Take over everything that another one has."""
        for name, values in other._values.items():
            self._values.setdefault(name, {}).update(values)

    def __len__(self) -> int:
        return sum(len(values) for values in self._values.values())

    def __iter__(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        for name, values in self._values.items():
            for labels, value in values.items():
                yield name, labels, value

    def collect(self) -> Iterable[Metric]:
        """The readings as prometheus_client takes them, in the order of `FAMILIES`."""
        for name, family in FAMILIES.items():
            if name in self._values:
                kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
                metric = kind(name, family.meaning, labels=family.labels)
                for labels, value in self._values[name].items():
                    metric.add_metric(labels, value)
                yield metric

    def text(self) -> bytes:
        """The readings in Prometheus' text format, 0.0.4."""
        return generate_latest(self)


def _text(label: object) -> str:
    """A label's value: valid UTF-8 and not long; one that is cut keeps apart from others cut at its place."""
    text = "" if label is None else str(label).encode("utf-8", "replace").decode()
    if len(text) <= LONGEST_VALUE:
        return text
    return f"{text[: LONGEST_VALUE - 9]}…{hash_of(text)}"


def hash_of(text: str) -> str:
    """Eight digits that stand for a text."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:8]
