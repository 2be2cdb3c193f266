"""The launchpad's jobs do what their configuration says."""

from typing import Any

import dagster as dg
import pytest

from eval_assets.definitions import definitions
from resources.settings import Settings
from tests.committed import committed_in
from tests.eval_assets.conftest import Automation, Project


def launch(
    instance: dg.DagsterInstance, job: str, op: str, config: dict[str, Any]
) -> dg.ExecuteInProcessResult:
    jobs = definitions(Settings.from_environment(), settle_seconds=0.0)
    return jobs.resolve_job_def(job).execute_in_process(
        instance=instance, run_config={"ops": {op: {"config": config}}}, raise_on_error=False
    )


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = (event for event in result.all_events if event.is_step_failure)
    data = event.step_failure_data.user_failure_data
    return str(data.description) if data is not None else ""


def test_what_is_named_is_evaluated_with_its_limit_from_nothing(
    project: Project, instance: dg.DagsterInstance
) -> None:
    config = {"models": ["tiny@*"], "benchmarks": ["capitals*"], "limit": 3}
    result = launch(instance, "evaluate_on_demand", "evaluate_named", config)
    assert result.success
    records = committed_in(project.runs().store)
    assert sorted((record["model"], record["dataset"], record["samples"]) for record in records) == [
        (model, dataset, 3) for model in ("tiny@1", "tiny@2") for dataset in ("capitals", "capitals_written")
    ]
    materialized = instance.get_materialized_partitions(dg.AssetKey("evaluation"))
    assert materialized == {f"{r['dataset']}|{r['model']}" for r in records}


def test_force_evaluates_again(project: Project, instance: dg.DagsterInstance) -> None:
    config = {"models": ["tiny@1"], "benchmarks": ["capitals"]}
    for force in (False, False, True):
        assert launch(instance, "evaluate_on_demand", "evaluate_named", {**config, "force": force}).success
    assert len(committed_in(project.runs().store)) == 2
    checks = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("evaluation"), "reproduced"), limit=5
    )
    assert [check.status.value for check in checks] == ["SUCCEEDED"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"models": ["tniy@1"]}, "no model version matches 'tniy@1'; there are broken@1, tiny@1, tiny@2"),
        ({"models": ["tiny@1"], "benchmarks": ["capitols"]}, "no benchmark matches 'capitols'; there are "),
    ],
)
def test_a_name_that_is_none_is_one_line(
    project: Project, instance: dg.DagsterInstance, config: dict[str, Any], message: str
) -> None:
    assert failure(launch(instance, "evaluate_on_demand", "evaluate_named", config)).startswith(message)


def test_any_two_versions_are_compared_in_one_table(automation: Automation) -> None:
    automation.until_at_rest()
    config = {"candidate": "tiny@1", "baseline": "tiny@2", "benchmarks": ["capitals"]}
    result = launch(automation.instance, "compare_versions", "compare_two", config)
    assert result.success
    (output,) = (e for e in result.all_events if e.event_type_value == "STEP_OUTPUT")
    table = output.step_output_data.metadata["comparison"].value
    assert r"| capitals | equivalent | \+0\.0000 |" in str(table)
    nothing = launch(automation.instance, "compare_versions", "compare_two",
                     {**config, "benchmarks": ["capitals_written"]})  # fmt: skip
    assert failure(nothing).startswith("nothing to compare: ")
