"""From registration to promotion with nobody touching anything, and what comes between."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from dagster._core.storage.tags import RUN_KEY_TAG

from eval_assets import promotion
from eval_assets.__main__ import main
from eval_assets.automation import LOOK_SECONDS, mark_deleted, nightly, weekly_recheck
from eval_assets.definitions import definitions
from eval_assets.grid import attempts
from eval_assets.grid.observing import Observer
from eval_assets.grid.reconciling import Work
from eval_assets.leaderboard import leaderboard_rows
from resources.catalog import Catalog
from resources.errors import UserError
from resources.keys import ModelKey
from resources.pods.tags import TASKS_TAG
from resources.records import EvaluationRecord
from resources.registries import Listing, RegistryUnavailableError
from resources.registries.folder import FolderRegistry
from resources.results import ResultsStore
from resources.settings import Settings
from tests.committed import committed_in
from tests.conftest import ROOT
from tests.eval_assets.conftest import SENTENCES, Automation, Clock, SlowRegistry, make_worse, track
from tests.resources.registries.mlflow_server import MlflowServer
from tests.resources.registries.test_registry_contract import MlflowShelf
from tests.ui.server import dagster_dev


def test_versions_go_all_the_way_and_a_regression_is_blocked_with_its_reason(automation: Automation) -> None:
    """The whole product in one test: without it nothing moves by itself, or the wrong thing does."""
    done = automation.until_at_rest()
    assert done == [
        ("register_models", "tiny@1"), ("register_models", "tiny@2"),
        ("prepare_benchmarks", "capitals"), ("prepare_benchmarks", "sentences"),
        ("evaluate_models", "tiny@1"), ("evaluate_models", "tiny@2"),
        ("judge_models", "tiny@1"), ("judge_models", "tiny@2"),
    ]  # fmt: skip
    assert automation.aliases() == {"champion": "2"}
    make_worse(automation.project.registry / "tiny" / "2", automation.project.registry / "tiny" / "3")
    assert automation.until_at_rest() == [
        (job, "tiny@3") for job in ("register_models", "evaluate_models", "judge_models")
    ]
    assert automation.aliases() == {"champion": "2"}
    store = automation.project.runs().store
    verdicts = store.verdicts()
    assert {key: verdict["status"] for key, verdict in verdicts.items()} == {
        "tiny@1": "first", "tiny@2": "passed", "tiny@3": "failed",
    }  # fmt: skip
    assert verdicts["tiny@2"]["baseline"] == "tiny@1"
    assert verdicts["tiny@3"]["baseline"] == "tiny@2"
    assert verdicts["tiny@3"]["family"]["adjusted"]["sentences"] == "worse"
    assert "sentences: worse: difference" in verdicts["tiny@3"]["reason"]
    moves = [(move["from"], move["to"]) for move in store.promotions("tiny")]
    assert moves == [(None, "1"), ("1", "2")]
    notes = json.loads((automation.project.registry / "tiny" / "notes.json").read_text())
    assert notes["3"]["verdict"] == "failed"
    checks = automation.instance.event_log_storage.get_latest_asset_check_execution_by_key(
        [dg.AssetCheckKey(dg.AssetKey("evaluation"), "no_regression")]
    )
    assert checks


def test_with_promotion_off_it_only_says_what_it_would_do(
    automation: Automation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track(tmp_path, automation.project, monkeypatch, promote="false")
    automation.until_at_rest()
    assert automation.aliases() == {}
    assert not (automation.project.registry / "tiny" / "notes.json").exists()
    verdict = automation.project.runs().store.verdicts()["tiny@1"]
    assert verdict["action"] == "would move champion from nothing to 1 (promote is off in EVAL_MODELS)"


def test_where_there_is_a_candidate_only_that_version_is_promoted(
    automation: Automation,
) -> None:
    automation.until_at_rest()
    aliases = automation.project.registry / "tiny" / "aliases.json"
    aliases.write_text(json.dumps({"champion": "1", "candidate": "1"}))
    shutil.copytree(automation.project.registry / "tiny" / "2", automation.project.registry / "tiny" / "4")
    automation.until_at_rest()
    assert automation.aliases() == {"champion": "1", "candidate": "1"}
    verdict = automation.project.runs().store.verdicts()["tiny@4"]
    assert verdict["status"] == "passed"
    assert verdict["action"] == "not promoted: the alias 'candidate' points to '1'"


def test_an_alias_that_a_person_moves_while_a_version_is_judged_stays_where_they_put_it(
    automation: Automation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version was compared with another one than is in production now."""
    aliases = automation.project.registry / "tiny" / "aliases.json"
    whole = promotion.judge

    def meanwhile(look: Observer, model: str, *rest: Any) -> promotion.Judgement:
        found = whole(look, model, *rest)
        if model == "tiny@2":
            aliases.write_text(json.dumps({"champion": "3"}))
        return found

    monkeypatch.setattr(promotion, "judge", meanwhile)
    shutil.copytree(automation.project.registry / "tiny" / "1", automation.project.registry / "tiny" / "3")
    automation.until_at_rest()
    assert automation.aliases() == {"champion": "3"}
    verdict = automation.project.runs().store.verdicts()["tiny@2"]
    assert (verdict["status"], verdict["moved"]) == ("passed", False)
    assert verdict["action"].startswith("not promoted: ")


def test_the_version_in_production_keeps_its_verdict(automation: Automation) -> None:
    """Materializing all partitions in the UI would put "first" in the place of what let it pass."""
    automation.until_at_rest()
    runs = automation.project.runs()
    given = runs.store.verdicts()["tiny@2"]
    runs.judge_again("tiny@2")
    assert runs.store.verdicts()["tiny@2"] == given
    event = automation.instance.get_latest_materialization_event(dg.AssetKey("promotion"))
    assert event is not None
    assert event.asset_materialization is not None
    shown = {name: value.value for name, value in event.asset_materialization.metadata.items()}
    assert (shown["verdict"], shown["baseline"]) == ("passed", "tiny@1")
    logged = [entry.user_message for entry in automation.instance.all_logs(event.run_id)]
    assert (
        f"tiny@2: in production, so its verdict stays: passed: {given['reason']}; {given['action']}" in logged
    )
    # One that a person put there unjudged gets none.
    shutil.copytree(automation.project.registry / "tiny" / "1", automation.project.registry / "tiny" / "3")
    (automation.project.registry / "tiny" / "aliases.json").write_text('{"champion": "3"}')
    automation.until_at_rest()
    runs.judge_again("tiny@3")
    assert "tiny@3" not in runs.store.verdicts()


@pytest.mark.parametrize(
    ("moment", "error"),
    [
        ("before the alias moves", UserError("the registry refuses it")),
        ("after it", RuntimeError("killed")),
        ("after its record", UserError("the store is full")),
    ],
)
def test_whatever_ends_a_run_while_it_moves_the_alias_the_next_one_finishes_it(
    automation: Automation, monkeypatch: pytest.MonkeyPatch, moment: str, error: Exception
) -> None:
    """A move without its record can't be rolled back; a record without its move takes another version for
    the champion; and the verdict that led to it is what people look for."""
    move, save = FolderRegistry.move_alias, ResultsStore.save_promotion

    def moving(self: FolderRegistry, name: str, alias: str, version: str, expected: str | None) -> None:
        if version == "2" and moment == "before the alias moves":
            raise error
        move(self, name, alias, version, expected)
        if version == "2" and moment == "after it":
            raise error

    def saving(self: ResultsStore, name: str, record: dict[str, Any]) -> None:
        save(self, name, record)
        if record["to"] == "2":
            raise error

    with monkeypatch.context() as patched:
        patched.setattr(FolderRegistry, "move_alias", moving)
        if moment == "after its record":
            patched.setattr(ResultsStore, "save_promotion", saving)
        automation.until_at_rest()
    store = automation.project.runs().store
    written = [(None, "1"), ("1", "2")] if moment == "after its record" else [(None, "1")]
    assert [(one["from"], one["to"]) for one in store.promotions("tiny")] == written
    assert attempts.clear(automation.instance, "tiny@2") == 1  # or wait
    assert automation.until_at_rest() == [("judge_models", "tiny@2")]
    assert [(one["from"], one["to"]) for one in store.promotions("tiny")] == [(None, "1"), ("1", "2")]
    verdict = store.verdicts()["tiny@2"]
    assert (verdict["status"], verdict["baseline"], verdict["moved"]) == ("passed", "tiny@1", True)
    assert verdict["action"] == "moved champion from 1 to 2"
    assert "moving" not in verdict
    assert automation.aliases() == {"champion": "2"}


def test_a_rollback_finishes_what_a_killed_run_has_moved(
    automation: Automation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever rolls back does not wait for the automation to write down first what it has moved."""

    save = ResultsStore.save_promotion

    def refused(self: ResultsStore, name: str, record: dict[str, Any]) -> None:
        if record["to"] == "2":
            raise UserError("the store is full")
        save(self, name, record)

    with monkeypatch.context() as patched:
        patched.setattr(ResultsStore, "save_promotion", refused)
        automation.until_at_rest()
    assert automation.aliases() == {"champion": "2"}
    assert CliRunner().invoke(main, ["rollback", "tiny"], catch_exceptions=False).exit_code == 0
    assert automation.aliases() == {"champion": "1"}
    moves = automation.project.runs().store.promotions("tiny")
    assert [(one["from"], one["to"]) for one in moves] == [(None, "1"), ("1", "2"), ("2", "1")]


def test_a_registry_that_is_down_is_one_skip_and_nothing_is_forgotten(
    automation: Automation, monkeypatch: pytest.MonkeyPatch
) -> None:

    automation.tick()
    cursor = automation.cursor

    def down(*_: object) -> None:
        raise RegistryUnavailableError("the registry does not answer: connection refused")

    with monkeypatch.context() as patched:
        patched.setattr(FolderRegistry, "versions", down)
        result = automation.tick()
    assert isinstance(result, dg.SkipReason)
    assert result.skip_message == "the registry does not answer: connection refused"
    assert automation.cursor == cursor
    assert automation.until_at_rest()[-1] == ("judge_models", "tiny@2")


@pytest.mark.parametrize(
    ("aliases", "reason"),
    [('{"champion": "candidate", "candidate": "champion"}', "champion"), ("{", "aliases.json")],
)
def test_aliases_that_make_no_sense_hold_up_their_own_model_only(
    automation: Automation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aliases: str, reason: str
) -> None:
    shutil.copytree(automation.project.registry / "tiny" / "1", automation.project.registry / "other" / "1")
    (tmp_path / "models.yaml").write_text(
        f"models: [{{registry: {{folder: {automation.project.registry}}}, benchmarks: [capitals]}}]"
    )
    automation.definitions = definitions(Settings.from_environment(), settle_seconds=0.0)
    (automation.project.registry / "tiny" / "aliases.json").write_text(aliases)
    done = automation.until_at_rest()
    assert {what for job, what in done if job != "prepare_benchmarks"} == {"other@1"}
    problems: dict[str, str] = {}
    automation.project.runs().look.world(["tiny@1"], problems=problems)
    assert reason in problems["tiny"]


def test_a_broken_version_is_given_up_once_with_its_reason_and_taken_up_when_mended(
    automation: Automation,
) -> None:
    """Otherwise it is tried every 15 seconds for ever, or its repair is never noticed."""
    folder = automation.project.registry / "tiny" / "2"
    tokenizer = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").unlink()
    done = automation.until_at_rest()
    assert [job for job, what in done if what == "tiny@2"] == ["register_models"]
    (given_up,) = (automation.project.folder / "store" / "given_up").rglob("*.json")
    assert "tokenizer" in json.loads(given_up.read_text())["reason"]
    assert automation.until_at_rest() == []
    (folder / "tokenizer.json").write_bytes(tokenizer)
    assert ("register_models", "tiny@2") in automation.until_at_rest()
    assert automation.aliases() == {"champion": "2"}


def test_what_was_given_up_is_tried_again_when_a_person_says_so(automation: Automation) -> None:
    config = automation.project.registry / "tiny" / "2" / "tokenizer.json"
    content = config.read_bytes()
    config.unlink()
    automation.until_at_rest()
    found = attempts.failures(automation.instance)
    assert [(task.work, task.model) for task in found] == [(Work.REGISTER, "tiny@2")]
    assert attempts.clear(automation.instance, "tiny@2") == 1
    assert attempts.failures(automation.instance) == {}
    config.write_bytes(content)


def test_a_deleted_version_keeps_its_results_and_is_not_evaluated_again(automation: Automation) -> None:
    automation.until_at_rest()
    shutil.rmtree(automation.project.registry / "tiny" / "1")
    automation.cursor = None  # as an hour later: everything is listed again
    assert automation.until_at_rest() == []
    store = automation.project.runs().store
    assert store.model_versions()["tiny@1"]["deleted"] is True
    assert "tiny@1" in {record["model"] for record in committed_in(store)}
    assert automation.instance.has_dynamic_partition("model", "tiny@1")
    catalog = Catalog(store)
    catalog.refresh()
    assert [row.model for row in leaderboard_rows(catalog) if row.benchmark == "capitals"] == [
        "tiny@1 (deleted)", "tiny@2",
    ]  # fmt: skip


def test_a_version_that_its_registry_refuses_to_show_is_not_taken_for_deleted(
    automation: Automation, tmp_path: Path
) -> None:
    """A token that expires, or a folder that isn't mounted, would take all versions out of the grid."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(automation.project.registry / "tiny" / "1", elsewhere / "other" / "1")
    tracked = tmp_path / "models.yaml"
    entry = f"{{registry: {{folder: {elsewhere}}}, names: other, benchmarks: [capitals]}}"
    tracked.write_text(f"{tracked.read_text()}  - {entry}\n")
    automation = Automation(automation.project, automation.instance)
    automation.until_at_rest()
    store = automation.project.runs().store
    elsewhere.rename(tmp_path / "unmounted")
    for _ in ("no folder", "an empty folder, as a mount point is"):
        automation.cursor = None  # as an hour later: everything is listed again
        assert automation.until_at_rest() == []
        assert not store.model_versions()["other@1"].get("deleted")
        elsewhere.mkdir(exist_ok=True)
    shutil.rmtree(elsewhere)
    (tmp_path / "unmounted").rename(elsewhere)
    shutil.rmtree(elsewhere / "other" / "1")
    automation.cursor = None
    assert automation.until_at_rest() == []
    assert store.model_versions()["other@1"]["deleted"] is True


def test_a_registry_that_is_slow_to_say_what_is_deleted_does_not_use_up_the_look(
    automation: Automation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster ends a look after 60 s: a registry of a thousand versions that is down would end each one."""
    runs = automation.project.runs()
    known = [f"tiny@{number}" for number in range(100)]
    for key in known:
        runs.store.save_model_version(key, {"digest": key})
    clock = Clock()
    monkeypatch.setattr("eval_assets.automation.time", clock)
    registry = SlowRegistry(str(automation.project.registry), clock, RegistryUnavailableError("down"))
    mark_deleted(replace(runs.look, registry=registry), Listing((), ""), known)
    assert clock.now <= LOOK_SECONDS + SlowRegistry.SECONDS


def test_a_staged_evaluation_stops_when_decided_and_is_completed_when_it_becomes_production(
    automation: Automation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most regressions show in a tenth of the items; but what others are compared with needs them all."""
    track(tmp_path, automation.project, monkeypatch, staged="true")
    shutil.move(automation.project.registry / "tiny" / "2", tmp_path / "later")
    automation.until_at_rest()
    shutil.move(tmp_path / "later", automation.project.registry / "tiny" / "2")
    automation.until_at_rest()
    make_worse(automation.project.registry / "tiny" / "1", automation.project.registry / "tiny" / "3")
    done = automation.until_at_rest()
    assert automation.aliases() == {"champion": "2"}
    store = automation.project.runs().store
    records: dict[str, list[EvaluationRecord]] = {}
    for record in committed_in(store):
        if record["dataset"] == "sentences":
            records.setdefault(record["model"], []).append(record)
    assert [record["samples"] for record in records["tiny@1"]] == [len(SENTENCES)]
    assert records["tiny@1"][0]["stage"] is None
    worst = max(records["tiny@3"], key=lambda record: record["samples"])
    assert worst["samples"] < len(SENTENCES)
    assert worst["samples_taken_over"] > 0
    verdict = store.verdicts()["tiny@3"]
    assert verdict["status"] == "failed"
    (cell,) = (cell for cell in verdict["cells"] if cell["dataset"] == "sentences")
    assert (cell["comparison"]["n"], cell["items_available"]) == (worst["samples"], len(SENTENCES))
    assert max(record["samples"] for record in records["tiny@2"]) == len(SENTENCES)
    assert done[-1] == ("judge_models", "tiny@3")


def test_the_night_finds_what_was_removed_from_the_store(automation: Automation) -> None:
    automation.until_at_rest()
    assert isinstance(automation.scheduled(nightly)[0], dg.SkipReason)
    shutil.rmtree(automation.project.folder / "store" / "evaluations" / "capitals" / "tiny@1")
    (request,) = automation.scheduled(nightly)
    assert request.tags[TASKS_TAG].startswith("capitals|tiny@1=")
    assert automation.execute(request, "evaluate_models").success
    assert isinstance(automation.scheduled(nightly)[0], dg.SkipReason)


def test_the_weekly_recheck_evaluates_production_again_and_finds_the_same_bits(
    automation: Automation,
) -> None:
    automation.until_at_rest()
    (request,) = automation.scheduled(weekly_recheck)
    result = automation.execute(request, "evaluate_models")
    assert result.success
    evaluations = {
        event.asset_check_evaluation_data.check_name: event.asset_check_evaluation_data.passed
        for event in result.all_events
        if event.event_type_value == "ASSET_CHECK_EVALUATION"
    }
    assert evaluations["reproduced"] is True


def test_five_hundred_new_versions_are_spread_over_looks_that_stay_short(automation: Automation) -> None:
    """Dagster ends a look after 60 s; and a queue of thousands hides what a person asks for."""
    source = automation.project.registry / "tiny" / "1"
    for number in range(3, 501):
        shutil.copytree(source, automation.project.registry / "tiny" / str(number), copy_function=os.link)
    started = time.monotonic()
    result = automation.tick()
    assert time.monotonic() - started < 30
    assert isinstance(result, dg.SensorResult)
    assert len(automation.instance.get_dynamic_partitions("model")) == 500
    assert result.run_requests is not None
    assert len(result.run_requests) == 100
    asked = {request.tags[TASKS_TAG] for request in result.run_requests}
    job = automation.definitions.resolve_job_def("register_models")
    for request in result.run_requests:
        automation.instance.create_run_for_job(job, tags=request.tags, status=dg.DagsterRunStatus.NOT_STARTED)
    later = automation.tick()
    assert isinstance(later, dg.SensorResult)
    assert later.run_requests
    assert not asked & {request.tags[TASKS_TAG] for request in later.run_requests}


def test_each_night_has_one_run_also_when_the_clocks_change() -> None:
    """At 02:30 of a spring night that hour does not exist, in autumn it comes twice."""
    program = (
        "from datetime import datetime, timedelta\n"
        "from zoneinfo import ZoneInfo\n"
        "from dagster._utils.schedules import schedule_execution_time_iterator as times\n"
        "from eval_assets.automation import nightly as n\n"
        "for month, day in ((3, 27), (10, 23)):\n"
        "    start = datetime(2026, month, day, 12, tzinfo=ZoneInfo(n.execution_timezone))\n"
        "    found = times(start.timestamp(), n.cron_schedule, n.execution_timezone, True)\n"
        "    print(*[f'{next(found):%d %H:%M}' for _ in range(4)], sep=', ')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "EVAL_NIGHTLY": "02:30", "EVAL_TIMEZONE": "Europe/Berlin"},
    )  # fmt: skip
    assert found.stdout.splitlines() == [
        "28 02:30, 29 03:00, 30 02:30, 31 02:30",
        "24 02:30, 25 02:30, 26 02:30, 27 02:30",
    ]


def test_a_row_carries_its_priority_and_the_limits_that_its_entry_names(
    automation: Automation, tmp_path: Path
) -> None:
    """Without them a pod is as large as the largest model, and the night's work goes before a person's."""
    tracked = tmp_path / "models.yaml"
    tracked.write_text(tracked.read_text() + "    resources: {nvidia.com/gpu: '1'}\n")
    for _ in range(2):
        result = automation.tick()
        assert isinstance(result, dg.SensorResult)
        requests = [r for r in result.run_requests or [] if r.job_name == "evaluate_models"]
        for request in result.run_requests or []:
            automation.execute(request)
    assert {request.tags["dagster/priority"] for request in requests} == {"0"}
    limits = {"container_config": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}}
    assert [json.loads(request.tags["dagster-k8s/config"]) for request in requests] == [limits, limits]
    shutil.rmtree(automation.project.folder / "store" / "evaluations" / "capitals" / "tiny@1")
    (late,) = automation.scheduled(nightly)
    assert late.tags["dagster/priority"] == "-10"


def test_two_daemons_that_look_at_once_ask_for_the_same_run_keys(automation: Automation) -> None:
    """Dagster starts one run for a key; different keys would be two."""
    first, second = automation.tick(), Automation(automation.project, automation.instance).tick()
    assert isinstance(first, dg.SensorResult)
    assert isinstance(second, dg.SensorResult)
    keys = [[request.run_key for request in result.run_requests or []] for result in (first, second)]
    assert keys[0] == keys[1] != []


def test_an_interrupted_run_is_asked_for_again_under_another_key(automation: Automation) -> None:
    """Dagster drops a request whose key it has seen: an evicted pod's cells would never be finished."""
    first = automation.tick()
    assert isinstance(first, dg.SensorResult)
    request = (first.run_requests or [])[0]
    run = automation.instance.create_run_for_job(
        automation.definitions.resolve_job_def("register_models"),
        tags={**request.tags, attempts.INTERRUPTED_TAG: "SIGTERM"},
        status=dg.DagsterRunStatus.STARTED,
    )
    automation.instance.add_run_tags(run.run_id, {attempts.PROCESS_TAG: f"elsewhere:1:{run.run_id}"})
    automation.instance.report_run_failed(run)
    again = automation.tick()
    assert isinstance(again, dg.SensorResult)
    same = (again.run_requests or [])[0]
    assert same.tags == request.tags
    assert same.run_key != request.run_key


def test_a_task_is_asked_for_again_whichever_of_its_failed_runs_somebody_has_deleted(
    automation: Automation,
) -> None:
    """Dagster drops a request whose key a run has: the task would wait for ever, in silence."""

    def asked() -> dg.RunRequest:
        result = automation.tick()
        assert isinstance(result, dg.SensorResult)
        request = (result.run_requests or [])[0]
        keys = {run.tags[RUN_KEY_TAG] for run in automation.instance.get_runs()}
        assert request.run_key not in keys
        return request

    def interrupted(request: dg.RunRequest) -> str:
        run = automation.instance.create_run_for_job(
            automation.definitions.resolve_job_def("register_models"),
            tags={**request.tags, RUN_KEY_TAG: request.run_key or "", attempts.INTERRUPTED_TAG: "SIGTERM"},
            status=dg.DagsterRunStatus.STARTED,
        )
        automation.instance.add_run_tags(run.run_id, {attempts.PROCESS_TAG: f"elsewhere:1:{run.run_id}"})
        automation.instance.report_run_failed(run)
        return run.run_id

    for deleted in ([0], [1], [0, 1], [1, 2]):
        runs = [interrupted(asked()) for _ in range(3)]
        for number in deleted:
            automation.instance.delete_run(runs[number])
        interrupted(asked())


def test_a_daemon_takes_versions_in_a_real_mlflow_all_the_way_and_goes_on_after_it_was_killed(
    automation: Automation, mlflow: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Dagster's own daemon, queue and run workers, and nobody touching anything."""
    shelf = MlflowShelf(mlflow, tmp_path / "shelf")
    models = automation.project.registry / "tiny"
    make_worse(models / "2", models / "3")
    name = f"{shelf.prefix}-tiny"
    tracked = tmp_path / "mlflow.yaml"
    tracked.write_text(
        f"models: [{{registry: {{mlflow: '{mlflow.url}'}}, names: {name}, benchmarks: [sentences], "
        "tolerance: 0.5, promote: true}]"
    )
    monkeypatch.setenv("EVAL_MODELS", str(tracked))
    monkeypatch.setenv("EVAL_CACHE", str(tmp_path / "copies"))
    monkeypatch.setenv("EVAL_SENSOR_SECONDS", "1")
    instance, log = automation.instance, tmp_path / "dagster-dev.log"
    store = ResultsStore(str(automation.project.folder / "store"))

    def until(reached: Callable[[], object], seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            runs = [(run.job_name, run.status.value, dict(run.tags)) for run in instance.get_runs()]
            assert time.monotonic() < deadline, (log.read_text()[-3000:], runs)
            time.sleep(0.5)

    shelf.add("tiny", "1", models / "1")
    with dagster_dev(log, stops=(signal.SIGKILL,)):
        until(lambda: shelf.registry.aliases(name).get("champion") == "1")
        shelf.add("tiny", "2", models / "2")
        running = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
        until(
            lambda: any(
                attempts.PROCESS_TAG in run.tags and f"|{name}@2=" in run.tags[TASKS_TAG]
                for run in instance.get_runs(running)
            )
        )
    with dagster_dev(log):
        until(lambda: shelf.registry.aliases(name).get("champion") == "2")
        registered = time.time()
        shelf.add("tiny", "3", models / "3")
        until(lambda: f"{name}@3" in store.verdicts())
        judged = time.time()
    about = [
        record
        for record in instance.get_run_records()
        if any(task.model == f"{name}@3" for task in attempts.tasks_in(record.dagster_run.tags))
    ]
    queued = min(record.create_timestamp.timestamp() for record in about)
    assert queued - registered < 60
    print(f"queued {queued - registered:.0f} s after registration, judged after {judged - registered:.0f} s")
    assert store.verdicts()[f"{name}@3"]["status"] == "failed"
    assert shelf.registry.aliases(name) == {"champion": "2"}
    until(lambda: shelf.notes(ModelKey(name, "3")).get("verdict") == "failed")
    samples = [record["evaluation_id"] for record in committed_in(store)]
    assert len(samples) == len(set(samples)) == 3
