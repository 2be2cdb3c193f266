"""From a run to its pod: what the run is for, what is known of its model, what people said."""

import json
from typing import Any

import dagster as dg
import pytest
from dagster_k8s.job import USER_DEFINED_K8S_CONFIG_KEY

from resources.errors import UserError
from resources.pods.planning import Purpose, experience_of, of_people, plan_pod, purpose_of
from resources.pods.tags import ENDED_TAG, MODEL_TAG, Kind, ending_of, is_planned
from resources.results import ResultsStore
from tests.resources.pods.catalogues import catalogue, model

START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
MODELS = ["a@1", "a@2", "b@1"]


def run(job: str = "evaluate_models", config: Any = None, assets: Any = None, **tags: str) -> dg.DagsterRun:
    return dg.DagsterRun(
        job_name=job, run_id="r" * 36, tags={k.replace("__", "/"): v for k, v in tags.items()},
        run_config=config or {}, asset_selection=assets,
    )  # fmt: skip


def test_a_cell_a_row_and_a_cell_of_a_backfill_are_for_their_model() -> None:
    cell = purpose_of(run(dagster__partition="squad|org/m@1"))
    assert (cell.models, cell.datasets) == (("org/m@1",), ("squad",))
    tags = {START: "arc|m@1", END: "squad|m@1", "eval/datasets": "arc,gsm8k,squad", "dagster/priority": "-10"}
    row = purpose_of(dg.DagsterRun(job_name="evaluate_models", tags=tags))
    assert (row.models, row.datasets, row.priority) == (("m@1",), ("arc", "gsm8k", "squad"), -10)
    assets = frozenset({dg.AssetKey("evaluation")})
    backfill = purpose_of(run("__ASSET_JOB", assets=assets, dagster__partition="squad|m@1"))
    assert backfill.models == ("m@1",)


def test_a_run_that_evaluates_nothing_is_for_no_model() -> None:
    for job in ("register_models", "judge_models", "prepare_benchmarks"):
        assert purpose_of(run(job, dagster__partition="m@1")).models == ()


def test_a_run_on_demand_is_for_the_models_that_its_patterns_name() -> None:
    config = {"ops": {"evaluate_named": {"config": {"models": ["a@*", "c@1"], "benchmarks": ["x"]}}}}
    assert purpose_of(run("evaluate_on_demand", config), MODELS).models == ("a@1", "a@2")
    config["ops"]["evaluate_named"]["config"]["models"] = ["c@1"]
    assert purpose_of(run("evaluate_on_demand", config), MODELS).models == ("c@1",)  # unknown, not nothing


def test_a_run_over_the_rows_of_several_models_is_refused() -> None:
    tags = {START: "arc|a@1", END: "arc|b@1"}
    with pytest.raises(UserError, match="launch one run a model"):
        purpose_of(dg.DagsterRun(job_name="evaluate_models", tags=tags))


def record(model_key: str, **values: Any) -> dict[str, Any]:
    return {
        "model": model_key, "engine": {"device": "cpu"}, "seconds": {"prefill": 10.0}, "samples": 10,
        "items_available": 10, **values,
    }  # fmt: skip


def test_experience_is_what_finished_evaluations_took_on_each_kind_of_device(store: ResultsStore) -> None:
    took: list[dict[str, Any]] = [
        {"peak_memory_bytes": 3_000},
        {"peak_memory_bytes": 5_000, "seconds": {"prefill": 20.0, "load": 5.0}},
        {"peak_memory_bytes": 9_000, "peak_device_bytes": 7_000, "engine": {"device": "cuda"}},
        {"peak_device_bytes": 99_000, "engine": {"device": "cuda"}, "accelerator_count": 2},  # of one of two
        {"samples_resumed": 8, "items_available": 20, "seconds": {"prefill": 6.0}},  # 3 s an item, 20 items
    ]
    for number, values in enumerate(took):
        store.put_json(f"evaluations/squad/org%2Fm@1/{number}/evaluation.json", record("org/m@1", **values))
    store.put_json("evaluations/squad/org%2Fm@2/0/evaluation.json", record("x", peak_memory_bytes=10**9))
    found = experience_of("org/m@1", store, None)
    assert (found.host_peak, found.device_peak, found.seconds) == (5_000, 7_000, 60.0)


def ended(instance: dg.DagsterInstance, kind: str, *, success: bool = False, of: str = "") -> None:
    nothing = (
        "execution_plan_snapshot", "job_snapshot", "remote_job_origin", "job_code_origin", "op_selection",
        "step_keys_to_execute", "root_run_id", "parent_run_id", "asset_selection", "asset_check_selection",
        "resolved_op_selection", "parent_job_snapshot", "asset_graph",
    )  # fmt: skip
    others: Any = dict.fromkeys(nothing)
    made = instance.create_run(
        job_name="evaluate_models", run_id=None, run_config={}, status=dg.DagsterRunStatus.STARTED,
        tags={MODEL_TAG: "m@1"}, **others,
    )  # fmt: skip
    if kind:
        how = {"run": of or made.run_id, "kind": kind, "reason": "why", "memory": 4_000}
        instance.add_run_tags(made.run_id, {ENDED_TAG: json.dumps(how)})
    latest = instance.get_run_by_id(made.run_id)
    assert latest is not None
    if success:
        instance.report_dagster_event(
            dg.DagsterEvent("PIPELINE_SUCCESS", job_name="evaluate_models"), run_id=made.run_id
        )
    else:
        instance.report_run_failed(latest)


def test_how_the_pods_of_a_model_ended_is_remembered(store: ResultsStore) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        ended(instance, Kind.OUT_OF_MEMORY)
        ended(instance, Kind.EVICTED)
        ended(instance, Kind.NODE_LOST)
        found = experience_of("m@1", store, instance)
        assert (found.host_killed, found.evictions) == (4_000, 2)
        ended(instance, "", success=True)  # evictions in a row only
        assert experience_of("m@1", store, instance).evictions == 0
        ended(instance, Kind.EVICTED, of="another run: a tag that was copied")
        assert experience_of("m@1", store, instance).evictions == 0


def test_a_run_that_is_tried_again_keeps_what_a_person_said_and_not_what_we_had_computed(
    store: ResultsStore,
) -> None:
    """Else the first size would be taken for a person's wish, and no retry would ever be larger."""
    store.save_model_version("m@1", model(135e6).as_dict())
    person = {"pod_spec_config": {"priority_class_name": "mine"}}
    with dg.DagsterInstance.ephemeral() as instance:
        first = run(dagster__partition="squad|m@1", **{USER_DEFINED_K8S_CONFIG_KEY: json.dumps(person)})
        assert of_people(first, instance) == [person]
        plan = plan_pod(Purpose(("m@1",)), catalogue(), store, instance, of_people(first, instance))
        tagged = first.with_tags({**first.tags, **plan.tags(first.run_id)})
        assert is_planned(tagged)
        again = dg.DagsterRun(job_name=first.job_name, tags=tagged.tags)
        assert not is_planned(again)
        assert of_people(again, instance) == [person]
        changed = json.loads(again.tags[USER_DEFINED_K8S_CONFIG_KEY]) | {
            "pod_spec_config": {"node_name": "x"}
        }
        edited = again.with_tags({**again.tags, USER_DEFINED_K8S_CONFIG_KEY: json.dumps(changed)})
        assert of_people(edited, instance) == [changed]  # edited in the launchpad


def test_what_is_no_json_in_a_tag_is_one_line() -> None:
    with (
        dg.DagsterInstance.ephemeral() as instance,
        pytest.raises(UserError, match="tag dagster-k8s/config is no JSON object: nonsense"),
    ):
        of_people(run(**{USER_DEFINED_K8S_CONFIG_KEY: "nonsense"}), instance)


def test_an_ending_that_was_copied_is_not_the_runs_own() -> None:
    own = run(eval__ended=json.dumps({"run": "r" * 36, "kind": Kind.EVICTED, "reason": ""}))
    assert ending_of(own)["kind"] == Kind.EVICTED
    assert ending_of(run(eval__ended=json.dumps({"run": "other", "kind": Kind.EVICTED}))) == {}
