"""What Dagster makes of the checks that a run records for each of its cells."""

import dagster as dg
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionResolvedStatus as Status
from dagster._core.storage.asset_check_state import AssetCheckState, bulk_update_asset_check_state

from eval_assets.partitions import grid
from tests.eval_assets.conftest import Project

KEYS = [
    dg.AssetCheckKey(dg.AssetKey("evaluation"), name) for name in ("complete", "finite", "score_in_range")
]


def cells_by_status(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> dict[Status, set[str]]:
    """The cells of each status of a check, as the UI's page of the check counts them."""
    cells = {}
    with partition_loading_context(dynamic_partitions_store=instance):
        states = bulk_update_asset_check_state(instance, [(key, grid)], {key: AssetCheckState.empty()})
        for status, subset in states[key].subsets.items():
            if not subset.is_empty:
                cells[status] = set(subset.subset_value.get_partition_keys())
    return cells


def test_each_cell_of_a_row_counts_as_checked(project: Project, instance: dg.DagsterInstance) -> None:
    """The checks' page counted every cell as missing while the checks named no materialization."""
    runs = project.registered("tiny@1", "broken@1")
    datasets = ["capitals", "capitals_written"]
    for model in ("tiny@1", "broken@1"):
        runs.evaluate_cells(model, datasets)
    tiny = {"capitals|tiny@1", "capitals_written|tiny@1"}
    broken = {"capitals|broken@1", "capitals_written|broken@1"}
    complete, finite, score_in_range = (cells_by_status(instance, key) for key in KEYS)
    assert complete == {Status.SUCCEEDED: tiny | broken}
    assert finite == {Status.SUCCEEDED: tiny, Status.FAILED: broken}
    assert score_in_range == finite


def test_a_cell_evaluated_again_keeps_its_checks(project: Project, instance: dg.DagsterInstance) -> None:
    runs = project.registered("tiny@1")
    for _ in range(2):
        runs.evaluate_cells("tiny@1", ["capitals"])
    assert cells_by_status(instance, KEYS[0]) == {Status.SUCCEEDED: {"capitals|tiny@1"}}
