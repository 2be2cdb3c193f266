"""What runs and their pods say of each other, as tags of Dagster's runs. Imports nothing of Kubernetes."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import dagster as dg

POD_TAG = "eval/pod"
"""On a run: what its pod is, as JSON (`config.identity`), with the person's part of its configuration."""
CLASS_TAG = "eval/accelerator"
"""On a run: the class of the catalogue that it takes, for the queue's limits and for people."""
COUNT_TAG = "eval/accelerators"
MODEL_TAG = "eval/model"
"""On a run: the model version that it evaluates, where that is one; what is remembered of pods goes by it."""
TEAM_TAG, DTYPE_TAG, DATASETS_TAG = "eval/team", "eval/dtype", "eval/datasets"
"""What whoever requests a run says of it: whose it is, its model's dtype, which datasets are meant."""
TASKS_TAG = "eval/tasks"
"""``dataset|model=fingerprint`` of each task of a run, comma-separated."""
COST_TAG = "eval/estimated_cost"
ENDED_TAG = "eval/ended"
"""On a run whose pod did not end by itself: how, as JSON with ``run``, ``kind``, ``reason``, ``memory``."""


EVALUATION, ROW_JOB = "evaluation", "evaluate_models"
"""The asset whose cells runs compute, and the job that computes those of one model."""
ON_DEMAND_JOB, ON_DEMAND_OP = "evaluate_on_demand", "evaluate_named"
"""The job whose configuration says what to evaluate, and the op that it configures."""
SINGLE_TAG = "dagster/partition"
RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


class Kind(StrEnum):
    """Why a pod did not end by itself."""

    OUT_OF_MEMORY = "out of memory"
    EVICTED = "evicted"
    NODE_LOST = "node lost"
    DEADLINE = "deadline"
    OUT_OF_STORAGE = "out of storage"
    CRASHED = "crashed"
    UNABLE = "unable to start"


IN_FLIGHT = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""Runs that are waited for."""
TAKEN_AWAY = (Kind.EVICTED, Kind.NODE_LOST)
"""The cluster's doing: no failure of the run."""
AS_IT_IS = (Kind.UNABLE,)
"""Trying again as it is changes nothing."""


def evaluates(run: dg.DagsterRun) -> bool:
    """Whether a run computes cells of the grid, from a job of ours or as Dagster's UI launches assets."""
    return run.job_name == ROW_JOB or dg.AssetKey(EVALUATION) in (run.asset_selection or ())


def ends_of(tags: Mapping[str, str]) -> tuple[str, str]:
    """The first and the last partition of a run's tags; empty where there are none."""
    first = tags.get(SINGLE_TAG) or tags.get(RANGE_TAGS[0], "")
    return first, tags.get(SINGLE_TAG) or tags.get(RANGE_TAGS[1], first)


def is_planned(run: dg.DagsterRun) -> bool:
    """Whether a run says what pod it gets; tags that were copied from another run say nothing."""
    return bool(json.loads(run.tags.get(POD_TAG, "{}")).get("run") == run.run_id)


def ending_of(run: dg.DagsterRun) -> dict[str, Any]:
    """How a run's pod ended, if not by itself: ``kind``, ``reason``, ``memory``; empty otherwise."""
    ended: dict[str, Any] = json.loads(run.tags.get(ENDED_TAG, "{}"))
    return ended if ended.get("run") == run.run_id else {}  # or it is of the run that this one tries again
