"""The exporter over a real project: what runs say, what the store says, and ending cleanly."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from eval_assets.grid import attempts
from eval_assets.grid.observing import Observer
from eval_assets.grid.reconciling import Task, Work
from eval_assets.operations.monitoring import (
    INTERVAL_SECONDS,
    MOST_FAILING,
    Champions,
    Results,
    moves_in,
    read_instance,
)
from eval_assets.operations.pushgateway import Pushing
from eval_assets.promotion import move_record
from resources.catalog import Catalog, Refresh
from resources.errors import BusyError, TransientError, UserError
from resources.pods.tags import ENDED_TAG
from resources.results import ResultsStore
from resources.settings import Settings
from resources.telemetry import FAMILIES, Readings
from resources.telemetry.families import hash_of
from tests.committed import committed_in
from tests.conftest import ROOT
from tests.eval_assets.conftest import Project
from tests.eval_assets.grid.test_attempts import run_of, say
from tests.prometheus import program
from tests.resources.telemetry.catalogues import large_catalogue
from tests.servers import free_port, serving

CAPITALS = Task(Work.EVALUATE, "tiny@1", "capitals", "1")
SENTENCES = Task(Work.EVALUATE, "tiny@1", "sentences", "2")

SERVE = """
import sys
from eval_assets.operations.monitoring import serve_metrics
from resources.settings import Settings
serve_metrics(Settings.from_environment(), "127.0.0.1", int(sys.argv[1]), interval=float(sys.argv[2]))
"""


def values(readings: Readings, name: str) -> dict[tuple[str, ...], float]:
    return {labels: value for found, labels, value in readings if found == f"llm_evaluation_{name}"}


def failures(readings: Readings) -> dict[tuple[str, ...], float]:
    return {labels: value for labels, value in values(readings, "recent_failures").items() if value}


def test_runs_in_flight_are_counted_by_state_and_the_oldest_says_how_long(
    project: Project, instance: dg.DagsterInstance
) -> None:
    queued = run_of(instance, attempts.tags_of([CAPITALS, SENTENCES]), dg.DagsterRunStatus.NOT_STARTED)
    run_of(instance, attempts.tags_of([CAPITALS]), dg.DagsterRunStatus.NOT_STARTED)
    run_of(instance, {}, dg.DagsterRunStatus.STARTED)
    [record] = instance.get_run_records(dg.RunsFilter(run_ids=[queued.run_id]))
    readings = read_instance(instance)
    runs = {labels: value for labels, value in values(readings, "runs").items() if value}
    assert runs == {("evaluate", "queued"): 2, ("other", "running"): 1}
    assert values(readings, "in_flight")["evaluate",] == 3
    age = values(readings, "queue_age_seconds")
    waited = (datetime.now(UTC) - record.create_timestamp).total_seconds()
    assert 0 < age["queued",] <= waited
    assert age["starting",] == 0


def test_an_empty_instance_says_zero_and_not_nothing(project: Project, instance: dg.DagsterInstance) -> None:
    """An alert on a series that is absent never ends, and a graph has a gap where it should be 0."""
    readings = read_instance(instance)
    assert values(readings, "queue_age_seconds") == {("queued",): 0, ("starting",): 0}
    assert values(readings, "recent_failures")["evaluate", "out of memory"] == 0


def test_failures_are_told_apart_by_their_reason(project: Project, instance: dg.DagsterInstance) -> None:
    say(instance, run_of(instance, attempts.tags_of([CAPITALS, SENTENCES])), {CAPITALS: TransientError("x")})
    say(instance, run_of(instance, attempts.tags_of([CAPITALS])), {CAPITALS: UserError("x")})
    run_of(instance, attempts.tags_of([CAPITALS]), dg.DagsterRunStatus.CANCELED)
    for kind in ("out of memory", "evicted"):
        run = run_of(instance, attempts.tags_of([SENTENCES]))
        ended = {"run": run.run_id, "kind": kind, "reason": "r"}
        instance.add_run_tags(run.run_id, {ENDED_TAG: json.dumps(ended)})
        instance.report_run_failed(run)
    run = run_of(instance, attempts.tags_of([SENTENCES]))
    instance.report_run_failed(run)
    readings = read_instance(instance)
    assert failures(readings) == {
        ("evaluate", "transient"): 1, ("evaluate", "permanent"): 1, ("evaluate", "cancelled"): 1,
        ("evaluate", "out of memory"): 1, ("evaluate", "evicted"): 1, ("evaluate", "killed"): 1,
    }  # fmt: skip
    # Neither an eviction nor a person's cancelling is a failure of the task.
    assert values(readings, "failures_in_a_row") == {
        ("evaluate", "tiny", "1", "capitals", "yes"): 2, ("evaluate", "tiny", "1", "sentences", "no"): 2,
    }  # fmt: skip


def test_what_fails_three_times_or_can_only_fail_is_given_up(
    project: Project, instance: dg.DagsterInstance
) -> None:
    """As the automation sees it (`reconcile`); a cell that another process works on is none."""
    for _ in range(3):
        say(instance, run_of(instance, attempts.tags_of([CAPITALS])), {CAPITALS: BusyError("x")})
    assert values(read_instance(instance), "failures_in_a_row") == {}
    for number, expected in enumerate(("no", "no", "yes"), 1):
        say(instance, run_of(instance, attempts.tags_of([CAPITALS])), {CAPITALS: TransientError("x")})
        found = values(read_instance(instance), "failures_in_a_row")
        assert found == {("evaluate", "tiny", "1", "capitals", expected): number}
    say(instance, run_of(instance, attempts.tags_of([SENTENCES])), {SENTENCES: UserError("x")})
    found = values(read_instance(instance), "failures_in_a_row")
    assert found["evaluate", "tiny", "1", "sentences", "yes"] == 1


def test_a_success_ends_a_row_of_failures(project: Project, instance: dg.DagsterInstance) -> None:
    """An alert that stays on after somebody mended it is one that is switched off."""
    for _ in range(3):
        say(instance, run_of(instance, attempts.tags_of([CAPITALS])), {CAPITALS: UserError("x")})
    # The row's run failed because of the other cell only.
    say(instance, run_of(instance, attempts.tags_of([CAPITALS, SENTENCES])), {SENTENCES: UserError("x")})
    assert values(read_instance(instance), "failures_in_a_row") == {
        ("evaluate", "tiny", "1", "sentences", "yes"): 1
    }
    run_of(instance, attempts.tags_of([SENTENCES]), dg.DagsterRunStatus.SUCCESS)
    assert values(read_instance(instance), "failures_in_a_row") == {}


def test_what_a_person_cleared_is_no_failure_any_more(project: Project, instance: dg.DagsterInstance) -> None:
    both = [CAPITALS, SENTENCES]
    say(instance, run_of(instance, attempts.tags_of(both)), dict.fromkeys(both, UserError("x")))
    attempts.clear(instance, "tiny@1", ["capitals"])
    assert values(read_instance(instance), "failures_in_a_row") == {
        ("evaluate", "tiny", "1", "sentences", "yes"): 1
    }
    attempts.clear(instance, "tiny@1")
    assert values(read_instance(instance), "failures_in_a_row") == {}


def test_tags_that_make_no_sense_cost_no_other_reading(
    project: Project, instance: dg.DagsterInstance
) -> None:
    """Anyone who may launch a run writes its tags."""
    say(instance, run_of(instance, attempts.tags_of([CAPITALS])), {CAPITALS: UserError("x")})
    hostile = {attempts.WORK_TAG: "evaluate", "eval/tasks": '"},{\n|@|=|'}
    run_of(instance, hostile, dg.DagsterRunStatus.FAILURE)
    run = run_of(instance, {**attempts.tags_of([SENTENCES]), ENDED_TAG: "[1, 2]"})
    instance.report_run_failed(run)
    run = run_of(instance, attempts.tags_of([SENTENCES]))
    ended = {"run": run.run_id, "kind": "x" * 500, "reason": "r"}
    instance.add_run_tags(run.run_id, {ENDED_TAG: json.dumps(ended)})
    instance.report_run_failed(run)
    readings = read_instance(instance)
    assert failures(readings)["evaluate", "permanent"] == 1
    assert failures(readings)["evaluate", "other"] == 1
    assert readings.text()


def test_more_failing_tasks_than_are_named_are_counted(
    project: Project, instance: dg.DagsterInstance
) -> None:
    tasks = [Task(Work.EVALUATE, f"m@{number}", "capitals") for number in range(MOST_FAILING + 7)]
    instance.report_run_failed(run_of(instance, attempts.tags_of(tasks)))
    readings = read_instance(instance)
    assert len(values(readings, "failures_in_a_row")) == MOST_FAILING
    assert values(readings, "failing_left_out") == {(): 7}


def test_a_champion_dates_from_the_last_move_to_it(store: ResultsStore) -> None:
    store.save_promotion("org/m", move_record("champion", None, "1", "first"))
    store.save_promotion("org/m", move_record("champion", "1", "2", "better"))
    before = datetime.now(UTC).timestamp()
    store.save_promotion("org/m", move_record("champion", "2", "1", "rollback"))
    moves = moves_in(store)
    assert moves["org/m", "1"] >= before > moves["org/m", "2"]


def test_while_a_registry_is_away_its_champions_stay(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Panels of what is in production would otherwise be empty whenever MLflow restarts."""
    runs = project.registered("tiny@1", "tiny@2")
    runs.registry.move_alias("tiny", "champion", "1", None)
    champions = Champions(runs.look)
    champions.read()
    assert champions.known()["tiny"].version == "1"

    def away(self: Observer, keys: object, problems: object) -> dict[str, str]:
        raise TransientError("the registry is away")

    monkeypatch.setattr(Observer, "production", away)
    with pytest.raises(TransientError):
        champions.read()
    assert champions.known()["tiny"].version == "1"


def test_a_store_that_cannot_be_written_has_a_catalogue_elsewhere(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mounted read-only, the exporter would otherwise show what somebody's last refresh has left."""
    runs = project.registered("tiny@1")
    runs.evaluate_cells("tiny@1", ["capitals"])
    refresh_in = Catalog._refresh_in

    def refuse(catalog: Catalog, folder: Path, target: Path) -> Refresh:
        if str(folder) == runs.store.root:
            raise PermissionError("read-only")
        return refresh_in(catalog, folder, target)

    monkeypatch.setattr(Catalog, "_refresh_in", refuse)
    champions = Champions(runs.look)
    champions.read()
    results = Results(runs.store, champions, Settings.from_environment())
    first = results.read()
    assert len(values(first, "samples")) == 1
    assert values(first, "catalogue_timestamp_seconds")
    runs.evaluate_cells("tiny@1", ["sentences"])
    assert len(values(results.read(), "samples")) == 2
    assert not Path(runs.store.root, "catalog.duckdb").exists()

    def busy(_: Catalog) -> Refresh:
        raise BusyError("another process refreshes it")

    monkeypatch.setattr(Catalog, "refresh", busy)
    assert len(values(results.read(), "samples")) == 2


def test_a_store_in_a_bucket_is_read_and_again_only_when_it_changes(
    project: Project, instance: dg.DagsterInstance, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVAL_STORE", f"{bucket}/results")
    runs = project.registered("tiny@1")
    runs.evaluate_cells("tiny@1", ["capitals"])
    champions = Champions(runs.look)
    champions.read()
    results = Results(runs.store, champions, Settings.from_environment())
    first = results.read()
    assert abs(values(first, "catalogue_timestamp_seconds")[()] - time.time()) < 600
    assert results.read() is first
    runs.evaluate_cells("tiny@1", ["sentences"])
    assert len(values(results.read(), "samples")) == 2


def test_a_run_pushes_its_cells_and_keeps_production_and_newer_versions(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    command = [program("prometheus-pushgateway"), f"--web.listen-address={address}"]
    with serving(command, f"http://{address}/-/ready", tmp_path / "log", folder=tmp_path):
        monkeypatch.setenv("EVAL_PUSHGATEWAY", f"http://{address}")
        runs = project.registered("tiny@1", "tiny@2")
        runs.registry.move_alias("tiny", "champion", "1", None)
        runs.evaluate_cells("tiny@2", ["capitals"])
        runs.evaluate_cells("tiny@1", ["capitals", "sentences"])
        runs.registry.move_alias("tiny", "champion", "2", "1")
        runs.evaluate_cells("tiny@2", ["sentences"])
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            page = answer.read().decode()
    lines = [line for line in page.splitlines() if f'store="{hash_of(runs.store.root)}"' in line]
    found = re.findall(r'llm_evaluation_samples\{dataset="(\w+)".*model_version="(\d)"', "\n".join(lines))
    # Of capitals the older version was pushed last, and the newer one stayed; of sentences it was superseded.
    assert sorted(found) == [("capitals", "1"), ("capitals", "2"), ("sentences", "2")]


def test_a_gateway_that_is_away_fails_no_evaluation(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVAL_PUSHGATEWAY", f"http://127.0.0.1:{free_port()}")
    runs = project.registered("tiny@1")
    runs.evaluate_cells("tiny@1", ["capitals", "sentences"])
    assert len(committed_in(runs.store)) == 2


def test_without_a_gateway_nothing_is_imported_for_it(project: Project) -> None:
    code = (
        "import sys; from eval_assets.operations.pushgateway import Pushing; "
        "from resources.settings import Settings; "
        "Pushing(Settings.from_environment(), print); sys.exit('prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert Pushing(Settings.from_environment(), print)


# Of a catalogue without the files that it is made from.
SHOW_AS_IT_IS = """
from resources.catalog import Catalog
from resources.errors import TransientError
def refresh(_):
    raise TransientError("read-only file system")
Catalog.refresh = refresh
"""


@contextmanager
def exporter(
    environment: Mapping[str, str], interval: float = INTERVAL_SECONDS, code: str = SERVE
) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """The exporter as a process of its own, ready; killed at the end if it still runs."""
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(port), str(interval)],
        cwd=ROOT,
        env=dict(environment),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until_ready(port, process)
            yield port, process
        finally:
            process.kill()


def wait_until_ready(port: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return
        except OSError:
            assert process.poll() is None, process.communicate()[1]
            process.poll()
    raise AssertionError("it is not ready after two minutes")


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        content: bytes = answer.read()
    return content.decode()


def test_a_real_project_is_exported_whole_and_sigterm_ends_it_cleanly(
    project: Project, instance: dg.DagsterInstance
) -> None:
    runs = project.registered("tiny@1", "tiny@2")
    runs.registry.move_alias("tiny", "champion", "1", None)
    for model in ("tiny@1", "tiny@2"):
        runs.evaluate_cells(model, ["capitals", "capitals_written", "sentences"])
    environment = {**os.environ, "EVAL_BUDGET": "250"}
    with exporter(environment) as (port, process):
        page = scrape(port)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    score = r'llm_evaluation_score\{dataset="capitals",metric="acc",model_name="tiny",model_version="2"\} \S+'
    assert re.search(score, page)
    assert 'llm_evaluation_version_info{model_name="tiny",model_version="1",role="champion"} 1.0' in page
    assert "llm_evaluation_budget 250.0" in page
    assert "llm_evaluation_cells 6.0" in page
    assert 'errors_total{source="results"} 0.0' in page
    found = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    # What this project has not: a launcher with prices, a verdict, a failure, a daemon.
    absent = set(FAMILIES) - found
    assert absent == {
        f"llm_evaluation_{name}"
        for name in (
            "accelerator_seconds", "cost", "month_accelerator_seconds", "month_cost", "verdict_info",
            "verdicts", "failures_in_a_row", "daemon_heartbeat_timestamp_seconds",
        )
    }  # fmt: skip


def test_fifty_thousand_cells_are_served_quickly_and_in_bounded_memory(tmp_path: Path) -> None:
    """A scrape that takes longer than Prometheus waits (10 s) is as good as an exporter that is down."""
    store = ResultsStore(str(tmp_path / "store"))
    large_catalogue(store, names=1250, versions=2, datasets=20)
    environment = {**os.environ, "EVAL_STORE": store.root, "EVAL_REGISTRY": str(tmp_path / "models")}
    (tmp_path / "models").mkdir()
    environment.pop("DAGSTER_HOME", None)
    with exporter(environment, code=SHOW_AS_IT_IS + SERVE) as (port, process):
        start = time.perf_counter()
        page = scrape(port)
        taken = time.perf_counter() - start
        status = Path(f"/proc/{process.pid}/status").read_text()
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024
    collected = re.findall(r'collect_seconds\{source="results"\} (\S+)', page)
    print(
        f"scrape {taken:.3f} s, collected in {collected} s, {len(page) / 2**20:.1f} MiB, peak {peak:.0f} MiB"
    )
    assert taken < 2
    assert peak < 1024


def test_a_look_at_many_runs_is_bounded(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster keeps every run: an exporter that read them all would take a minute, each minute."""
    for status in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.STARTED):
        for _ in range(5):
            run_of(instance, attempts.tags_of([CAPITALS]), status)
    monkeypatch.setattr("eval_assets.operations.monitoring.MOST_RUNS", 3)
    asked: list[int] = []
    read = instance.get_run_records

    def counting(*args: Any, **options: Any) -> Any:
        found = read(*args, **options)
        asked.append(len(found))
        return found

    monkeypatch.setattr(instance, "get_run_records", counting)
    read_instance(instance)
    assert asked == [3, 3]
