"""The two dimensions, model and dataset, and the grid that they span."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dagster as dg

from eval_assets.suite import load_suite
from resources.pods.tags import DATASETS_TAG, RANGE_TAGS
from resources.settings import Settings

SUITE = load_suite(Settings.from_environment().benchmarks)

# Partition mappings of a multi-partitioned asset and partitioned checks are beta; tests hold what we need of
# them, so a user of this project needs no warning on every command.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

models = dg.DynamicPartitionsDefinition(name="model")
datasets = dg.StaticPartitionsDefinition(list(SUITE))
grid = dg.MultiPartitionsDefinition({"dataset": datasets, "model": models})


def cell_key(dataset: str, model: str) -> dg.MultiPartitionKey:
    """The partition key of a cell."""
    return dg.MultiPartitionKey({"dataset": dataset, "model": model})


def row_tags(model: str, wanted: Iterable[str]) -> dict[str, str]:
    """Tags of one run over a model's row: its weights are then loaded once for all the wanted datasets.

    Dagster knows only ranges, so the range goes from the first to the last wanted dataset, and where
    others lie between them a tag of ours names those that are meant.
    """
    order = list(SUITE)
    chosen = sorted(set(wanted), key=order.index)
    between = order[order.index(chosen[0]) : order.index(chosen[-1]) + 1]
    ends = (str(cell_key(chosen[0], model)), str(cell_key(chosen[-1], model)))
    tags = dict(zip(RANGE_TAGS, ends, strict=True))
    if between != chosen:
        tags[DATASETS_TAG] = ",".join(chosen)
    return tags


@dataclass(frozen=True, slots=True)
class RunCell:
    """A cell in a run's range. One that is not `meant` only lies between two that are."""

    dataset: str
    model: str
    meant: bool


def cells_of_run(context: dg.AssetExecutionContext) -> Sequence[RunCell]:
    """The cells of the run's range, those of one model after each other."""
    tag = context.run.tags.get(DATASETS_TAG)
    meant = set(tag.split(",")) if tag else set(SUITE)
    cells = []
    for key in context.partition_keys:
        dimensions = grid.get_partition_key_from_str(key).keys_by_dimension
        cells.append(RunCell(dimensions["dataset"], dimensions["model"], dimensions["dataset"] in meant))
    return sorted(cells, key=lambda cell: (cell.model, cell.dataset))
