"""The grid through real Dagster runs: rows, single cells, failures, retries, checks, cancellation."""

import re
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError
from sqlalchemy.exc import OperationalError

from eval_assets import evaluations
from eval_assets.commands.runs import RunFailedError, Runs
from eval_assets.definitions import definitions
from eval_assets.evaluating import evaluator
from eval_assets.grid import attempts
from eval_assets.partitions import cell_key, row_tags
from resources.engines.transformers_engine import TransformersEngine
from resources.records import Sample
from resources.settings import Settings
from tests.committed import committed_in
from tests.eval_assets.conftest import Project

DATASETS = ["capitals", "capitals_written", "sentences"]


def evaluate(runs: Runs, models: list[str], datasets: list[str] = DATASETS, *, force: bool = False) -> int:
    """Evaluate what is missing; returns the number of runs."""
    requests = runs.missing(runs.cells(models, datasets), force=force)
    for request in requests:
        runs.evaluate(request, force=force)
    return len(requests)


def materialized(instance: dg.DagsterInstance) -> set[str]:
    return set(instance.get_materialized_partitions(dg.AssetKey("evaluation")))


def events(instance: dg.DagsterInstance, partition: str) -> list[dg.AssetMaterialization]:
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey("evaluation"), asset_partitions=[partition]), limit=100
    ).records
    return [record.asset_materialization for record in records if record.asset_materialization]


def checks(instance: dg.DagsterInstance, partition: str) -> dict[str, bool]:
    """The latest outcome of each check on a cell."""
    outcomes = {}
    for name in ("complete", "finite", "truncated_inputs", "empty_outputs", "score_in_range", "above_chance"):
        history = instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(dg.AssetKey("evaluation"), name), limit=100
        )
        for record in history:
            if record.partition == partition:
                outcomes[name] = record.status.value == "SUCCEEDED"
                break
    return outcomes


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders from which weights were loaded."""
    loaded: list[str] = []
    original = TransformersEngine.load

    def load(path: Path, *args: object) -> TransformersEngine:
        loaded.append("/".join(path.parts[-2:]))
        return original(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformersEngine, "load", load)
    return loaded


def test_a_models_row_is_one_run_that_loads_its_weights_once(
    project: Project, instance: dg.DagsterInstance, loads: list[str]
) -> None:
    """Loading a large model takes longer than most benchmarks; once a dataset would double the bill."""
    runs = project.registered("tiny@1", "tiny@2")
    assert evaluate(runs, ["tiny@1", "tiny@2"]) == 2
    assert loads == ["tiny/1", "tiny/2"]
    assert materialized(instance) == {
        str(cell_key(dataset, model)) for dataset in DATASETS for model in ("tiny@1", "tiny@2")
    }
    assert all(len(checks(instance, partition)) == 6 for partition in materialized(instance))


def test_a_second_evaluation_does_no_work(project: Project, loads: list[str]) -> None:
    runs = project.registered("tiny@1")
    evaluate(runs, ["tiny@1"])
    assert evaluate(runs, ["tiny@1"]) == 0
    runs.evaluate_cells("tiny@1", ["capitals"])
    assert loads == ["tiny/1"]


def test_forcing_evaluates_again_and_comes_out_the_same(project: Project, loads: list[str]) -> None:
    runs = project.registered("tiny@1")
    evaluate(runs, ["tiny@1"])
    evaluate(runs, ["tiny@1"], ["capitals"], force=True)
    assert loads == ["tiny/1", "tiny/1"]
    first, second = [r for r in committed_in(runs.store) if r["dataset"] == "capitals"]
    assert first["evaluation_id"].endswith("-1")
    assert second["evaluation_id"].endswith("-2")
    assert runs.store.samples(first) == runs.store.samples(second)
    assert first["metrics"] == second["metrics"]


def test_a_cell_carries_what_the_ui_plots_and_shows(project: Project, instance: dg.DagsterInstance) -> None:
    runs = project.registered("tiny@1")
    evaluate(runs, ["tiny@1"])
    metadata = events(instance, "capitals|tiny@1")[0].metadata
    record = next(r for r in committed_in(runs.store) if r["dataset"] == "capitals")
    assert record["score"] is not None
    assert metadata["score"].value == record["score"]["value"]
    assert metadata["metric/acc_norm"].value == record["metrics"]["acc_norm"]
    assert metadata["items"].value == "12 of 12"
    assert metadata["computed_by"].value == record["run_id"]
    table = metadata["example_samples"].value
    assert isinstance(table, str)
    assert len(table.splitlines()) == 2 + 5
    assert "capital of France" in table


def test_a_failed_cell_leaves_the_others_committed_and_a_retry_does_only_the_rest(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    runs = project.registered("tiny@1")
    original = TransformersEngine.generations

    def broken(*_: object) -> object:
        raise RuntimeError("the device fell off the bus")

    monkeypatch.setattr(TransformersEngine, "generations", broken)
    with pytest.raises(RunFailedError, match=r"capitals_written\|tiny@1: RuntimeError: the device fell off"):
        evaluate(runs, ["tiny@1"])
    assert materialized(instance) == {"capitals|tiny@1", "sentences|tiny@1"}
    monkeypatch.setattr(TransformersEngine, "generations", original)
    loads.clear()
    requests = runs.missing(runs.cells(["tiny@1"], DATASETS))
    assert [request.datasets for request in requests] == [("capitals_written",)]
    runs.evaluate(requests[0])
    assert materialized(instance) == {f"{dataset}|tiny@1" for dataset in DATASETS}
    assert loads == ["tiny/1"]


def test_a_limit_takes_a_subset_that_a_larger_limit_contains(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVAL_LIMIT", "3")
    runs = project.registered("tiny@1")
    evaluate(runs, ["tiny@1"], ["capitals"])
    monkeypatch.setenv("EVAL_LIMIT", "7")
    evaluate(project.runs(), ["tiny@1"], ["capitals"])
    few, more = sorted(committed_in(runs.store), key=lambda r: r["samples"])
    assert (few["samples"], more["samples"], more["items_available"]) == (3, 7, 12)
    ids = [{s.sample_id for s in runs.store.samples(record)} for record in (few, more)]
    assert ids[0] < ids[1]


def test_a_model_that_yields_nan_fails_its_checks_and_gets_no_score(
    project: Project, instance: dg.DagsterInstance
) -> None:
    """A broken checkpoint whose NaN was scored as 'wrong' would look like a poor model."""
    runs = project.registered("broken@1")
    evaluate(runs, ["broken@1"], ["capitals", "sentences"])
    for dataset in ("capitals", "sentences"):
        outcome = checks(instance, f"{dataset}|broken@1")
        assert outcome["finite"] is False
        assert outcome["score_in_range"] is False
        assert outcome["complete"] is True
    record = next(r for r in committed_in(runs.store) if r["dataset"] == "capitals")
    assert record["status"] == "invalid"
    assert record["score"] is None
    assert record["samples_with_error"] == 12
    assert "nan" in (runs.store.samples(record)[0].error or "").lower()


def test_a_person_can_type_an_unknown_key_and_gets_one_line(
    project: Project, instance: dg.DagsterInstance
) -> None:
    """The UI's dialog offers "Add a partition", where any text can be typed."""
    runs = project.registered("tiny@1")
    instance.add_dynamic_partitions("model", ["tyni@1"])
    with pytest.raises(RunFailedError, match=r"model tyni@1: not in .*closest: tiny@1") as caught:
        runs.evaluate_cells("tyni@1", ["capitals"])
    assert "\n" not in str(caught.value)


def test_an_unregistered_version_says_how_to_register_it(
    project: Project, instance: dg.DagsterInstance
) -> None:
    runs = project.registered("tiny@1")
    instance.add_dynamic_partitions("model", ["tiny@2"])
    with pytest.raises(RunFailedError, match="tiny@2 is not registered yet: run the job 'register_models'"):
        runs.evaluate_cells("tiny@2", ["capitals"])


def test_files_that_changed_since_registration_are_noticed(project: Project) -> None:
    runs = project.registered("tiny@1")
    config = project.registry / "tiny" / "1" / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(RunFailedError, match="its files changed since it was registered"):
        evaluate(runs, ["tiny@1"], ["capitals"])


def test_a_row_with_a_gap_leaves_what_lies_between_as_it_was(
    project: Project, instance: dg.DagsterInstance
) -> None:
    """Dagster plans a whole range: a good cell in the gap must not turn into a skipped one."""
    runs = project.registered("tiny@1")
    runs.evaluate_cells("tiny@1", ["capitals_written"])
    assert len(checks(instance, "capitals_written|tiny@1")) == 6
    runs.evaluate_cells("tiny@1", ["capitals", "sentences"])
    assert materialized(instance) == {f"{dataset}|tiny@1" for dataset in DATASETS}
    assert len(checks(instance, "capitals_written|tiny@1")) == 6
    assert len(committed_in(runs.store)) == 3
    assert [event.metadata["reused"].value for event in events(instance, "capitals_written|tiny@1")] == [
        True,
        False,
    ]


def test_cancelling_a_row_starts_none_of_its_other_cells(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt taken for one cell's failure would go on with the next benchmark for hours."""
    runs = project.registered("tiny@1")

    def interrupted(*_: object) -> object:
        raise DagsterExecutionInterruptedError

    monkeypatch.setattr(TransformersEngine, "loglikelihoods", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runs.evaluate_cells("tiny@1", DATASETS)
    assert committed_in(runs.store) == []
    run = runs.instance.get_runs(limit=1)[0]
    assert run.status == dg.DagsterRunStatus.CANCELED


def test_a_run_that_loses_dagsters_database_blames_no_cell_and_may_be_tried_again(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted as a bug of the cell, a restart of Postgres would give it up for good."""
    project.registered("tiny@1")

    def lost(*_: object, **__: object) -> None:
        raise OperationalError("INSERT INTO event_logs", {}, Exception("server closed the connection"))

    monkeypatch.setattr(evaluations._Cell, "evaluate", lost)
    job = definitions(Settings.from_environment()).resolve_job_def("evaluate_models")
    result = job.execute_in_process(
        instance=instance, partition_key=cell_key("sentences", "tiny@1"), raise_on_error=False
    )
    assert not result.success
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert attempts.FAILED_TAG not in run.tags
    assert "dagster/retry_on_asset_or_op_failure" not in run.tags
    (ending,) = attempts.endings(run).values()
    assert not ending.is_permanent


def test_a_single_cell_runs_as_the_uis_backfill_would_start_it(
    project: Project, instance: dg.DagsterInstance
) -> None:
    project.registered("tiny@1")
    job = definitions(Settings.from_environment()).resolve_job_def("evaluate_models")
    result = job.execute_in_process(instance=instance, partition_key=cell_key("sentences", "tiny@1"))
    assert result.success
    assert materialized(instance) == {"sentences|tiny@1"}


def test_row_tags_name_the_wanted_datasets_where_others_lie_between() -> None:
    tags = row_tags("m@1", ["sentences", "capitals"])
    assert tags["dagster/asset_partition_range_start"] == "capitals|m@1"
    assert tags["dagster/asset_partition_range_end"] == "sentences|m@1"
    assert tags["eval/datasets"] == "capitals,sentences"
    assert "eval/datasets" not in row_tags("m@1", ["capitals", "capitals_written"])


def test_an_evaluation_resumed_with_another_batch_size_has_the_same_samples(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an out-of-memory kill people lower the batch size; their finished samples must still count."""
    rows = "".join(f"Land {i},Town {i},A {i},B {i},C {i},Europe\n" for i in range(100))
    with (project.benchmarks / "capitals.csv").open("a") as file:
        file.write(rows)
    monkeypatch.setenv("EVAL_BATCH_TOKENS", "256")
    evaluate(project.registered("tiny@1"), ["tiny@1"], ["capitals"])
    original = evaluator._Evaluation.finish

    def interrupted(self: evaluator._Evaluation, sample: Sample) -> None:
        original(self, sample)
        if len(self.samples) == 50:
            raise DagsterExecutionInterruptedError

    monkeypatch.setattr(evaluator._Evaluation, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        project.runs().evaluate_cells("tiny@1", ["capitals"], force=True)
    monkeypatch.setattr(evaluator._Evaluation, "finish", original)
    monkeypatch.setenv("EVAL_BATCH_TOKENS", "64")
    runs = project.runs()
    runs.evaluate_cells("tiny@1", ["capitals"], force=True)
    first, second = committed_in(runs.store)
    assert (second["samples_resumed"], second["interruptions"]) == (50, 1)
    for found, expected in zip(runs.store.samples(second), runs.store.samples(first), strict=True):
        assert found.sample_id == expected.sample_id
        assert found.loglikelihoods == pytest.approx(expected.loglikelihoods, abs=1e-4)


def test_a_runs_log_says_how_far_it_is(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks at a run in the UI must see whether it moves, how fast, and when it will be done."""
    monkeypatch.setattr(evaluator, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(evaluations, "LOG_SECONDS", 0.0)
    runs = project.registered("tiny@1")
    evaluate(runs, ["tiny@1"], ["capitals"])
    messages = [entry.user_message for entry in instance.all_logs(instance.get_runs(limit=1)[0].run_id)]
    line = (
        r"tiny@1 on capitals: 12/12 samples, [\d.,]+ samples/s, [\d,]+ prompt tokens/s, "
        r"[\d,]+ output tokens/s, 0:00 left, batch \d+, [\d.]+ GB"
    )
    assert any(re.fullmatch(line, message) for message in messages), messages
