"""A short-lived pod's own results, pushed to a Pushgateway: an option beside the exporter.

Each cell has a group of its own, ``job, store, model_name, model_version, dataset``, which only the one
writer of the cell puts: so groups never collide, and a cell that is evaluated again replaces what it said
before. What is superseded (older versions that are not in production) is removed by whoever pushes next.
"""

import json
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

from prometheus_client import delete_from_gateway, push_to_gateway

from resources.errors import UserError
from resources.keys import ModelKey
from resources.records import EvaluationRecord
from resources.telemetry.families import Readings, hash_of

JOB = "llm_evaluation"
TIMEOUT_SECONDS = 5.0
LONGEST_LISTING = 64 * 2**20

Group: TypeAlias = Mapping[str, str]


class Pushgateway:
    """The gateway at a URL. A gateway that is away costs `TIMEOUT_SECONDS` once and is then left alone."""

    def __init__(self, url: str, store: str, on_warning: Callable[[str], object]) -> None:
        """`store` is the root of the results store: two stores' cells of one name are not the same cell."""
        self._url = url
        self._store = hash_of(store)
        self._on_warning = on_warning
        self._is_away = False

    def push(self, record: EvaluationRecord, keep: Sequence[str]) -> None:
        """Push what the record of an evaluation says; never raises.

        `keep` are the versions of the model that are to stay, this one apart: the one in production, and
        those that are newer.
        """
        if self._is_away:
            return
        try:
            group = self.group(record["model_name"], record["model_version"], record["dataset"])
            push_to_gateway(self._url, JOB, _readings(record), dict(group), timeout=TIMEOUT_SECONDS)
            for old in superseded(self._groups(), group, keep):
                delete_from_gateway(self._url, JOB, dict(old), timeout=TIMEOUT_SECONDS)
        except Exception as error:  # no result may be lost because nobody can be told of it
            self._is_away = True
            reason = getattr(error, "code", None) or type(error).__name__
            self._on_warning(
                f"the Pushgateway of EVAL_PUSHGATEWAY was not reached ({reason}): results are committed, "
                "and this run pushes no more"
            )

    def forget(self, model: str) -> int:
        """Remove all that was pushed of a model version; how many groups. Raises UserError if it is away."""
        key = ModelKey.parse(model)
        try:
            gone = [
                group
                for group in self._groups()
                if group.get("store") == self._store
                and (group.get("model_name"), group.get("model_version")) == (key.name, key.version)
            ]
            for group in gone:
                delete_from_gateway(self._url, JOB, dict(group), timeout=TIMEOUT_SECONDS)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the Pushgateway of EVAL_PUSHGATEWAY was not reached ({type(error).__name__}): {model} is "
                "still shown there"
            ) from None
        return len(gone)

    def group(self, name: str, version: str, dataset: str) -> Group:
        """The grouping key of a cell, without ``job``."""
        return {"store": self._store, "model_name": name, "model_version": version, "dataset": dataset}

    def _groups(self) -> list[Group]:
        """The grouping keys of our job, without ``job``."""
        with urllib.request.urlopen(f"{self._url}/api/v1/metrics", timeout=TIMEOUT_SECONDS) as answer:
            content = answer.read(LONGEST_LISTING + 1)
        if len(content) > LONGEST_LISTING:
            return []  # it is used for far more than this: better a stale group than a pod out of memory
        labels = [dict(group["labels"]) for group in json.loads(content)["data"]]
        return [
            {name: value for name, value in group.items() if name != "job"}
            for group in labels
            if group.get("job") == JOB
        ]


def superseded(groups: Sequence[Group], mine: Group, keep: Sequence[str]) -> list[Group]:
    """The groups of the same cell's other versions that are not to be kept."""
    same = ("store", "model_name", "dataset")
    return [
        group
        for group in groups
        if set(group) == set(mine)
        and all(group[label] == mine[label] for label in same)
        and group["model_version"] not in (mine["model_version"], *keep)
    ]


def _readings(record: EvaluationRecord) -> Readings:
    """What the exporter says of the cell, as far as one evaluation tells; the group's labels included."""
    cell = (record["model_name"], record["model_version"], record["dataset"])
    began, ended = map(datetime.fromisoformat, (record["started_at"], record["finished_at"]))
    readings = Readings()
    for metric, value in record["metrics"].items():
        readings.add("llm_evaluation_score", value, *cell, metric)
    readings.add("llm_evaluation_duration_seconds", (ended - began).total_seconds(), *cell)
    for phase, seconds in record["seconds"].items():
        readings.add("llm_evaluation_phase_seconds", seconds, *cell, phase)
    readings.add("llm_evaluation_samples", record["samples"], *cell)
    readings.add("llm_evaluation_samples_with_error", record["samples_with_error"], *cell)
    readings.add("llm_evaluation_tokens", record["prompt_tokens"], *cell, "prompt")
    readings.add("llm_evaluation_tokens", record["output_tokens"], *cell, "output")
    readings.add("llm_evaluation_accelerator_seconds", record.get("accelerator_seconds"), *cell)
    readings.add("llm_evaluation_cost", record.get("cost"), *cell)
    if record["status"] == "valid":
        readings.add("llm_evaluation_last_success_timestamp_seconds", ended.timestamp(), *cell)
    return readings
