"""SIGTERM, which a pod gets on eviction, and Ctrl-C: what is finished is kept, the process is soon gone."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import serialize_value

from eval_assets.commands.runs import Runs
from eval_assets.definitions import definitions
from eval_assets.grid.attempts import INTERRUPTED_TAG
from eval_assets.partitions import row_tags
from resources.results import ResultsStore
from resources.settings import Settings
from tests.committed import committed_in
from tests.conftest import ROOT
from tests.eval_assets.conftest import Project
from tests.eval_assets.evaluating.test_evaluator import run
from tests.eval_assets.fake_engine import FakeEngine

SECONDS_TO_END = 5.0


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for a condition while a process runs; fail with its output where it ends or takes for ever."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def ended(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send a signal and return the output of the process, which has to end in time."""
    sent_at = time.monotonic()
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert time.monotonic() - sent_at < SECONDS_TO_END, output
    return output


def runs_of(store: ResultsStore) -> list[dict[str, Any]]:
    """What the unfinished evaluation's folder says of the runs that worked on it."""
    (path,) = Path(store.root).glob("evaluations/**/runs.json")
    left: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
    return left


STUCK = """
import hashlib, signal, sys, threading, time
from eval_assets.evaluating import evaluator
from resources import interrupts
from resources.results import ResultsStore
from resources.writer import EvaluationWriter
from tests.eval_assets.fake_engine import FakeEngine
from tests.eval_assets.evaluating.test_evaluator import MODEL, SCORING, benchmark, cell_for, evaluate

def in_python():
    print("stuck", flush=True)
    while True:
        pass

def in_a_library():  # which no signal gets out of, as a tokenizer's or a kernel's loop
    clock = time.pthread_getcpuclockid(threading.get_ident())
    begun = time.clock_gettime(clock)
    def tell():
        while time.clock_gettime(clock) < begun + 0.1:
            threading.Event().wait(0.01)
        print("stuck", flush=True)
    threading.Thread(target=tell, daemon=True).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

def stuck(*_):
    {where}()

engine, asked = FakeEngine(), benchmark()
load = lambda: engine
if {phase!r} == "loading":
    load = stuck
elif {phase!r} == "model":
    engine.before_batch = lambda: engine.batches == 20 and stuck()
elif {phase!r} == "scoring":
    score = evaluator.score_samples
    evaluator.score_samples = lambda samples, *rest: len(samples) > 1 and stuck() or score(samples, *rest)
else:
    put = ResultsStore.put
    ResultsStore.put = lambda self, path, new: "samples.parquet" in path and stuck() or put(self, path, new)
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    with interrupts.watching():
        evaluate(cell_for(MODEL, asked, engine.fingerprint_fields, SCORING), MODEL, asked, load,
                 ResultsStore({root!r}), scoring=SCORING)
except KeyboardInterrupt:
    sys.exit(interrupts.exit_status())
"""


@pytest.mark.parametrize("where", ["in_python", "in_a_library"])
@pytest.mark.parametrize("phase", ["loading", "model", "scoring", "writing"])
def test_whatever_a_process_is_at_it_ends_in_time_and_keeps_what_is_finished(
    store: ResultsStore, tmp_path: Path, phase: str, where: str
) -> None:
    """After its grace period a pod is killed: what it has not saved by then is computed again."""
    _, undisturbed = run(ResultsStore(str(tmp_path / "undisturbed")), FakeEngine())
    program = STUCK.format(phase=phase, where=where, root=store.root)
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stuck\n"
        ended(process, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    (left,) = runs_of(store)
    assert left["ended"]["samples"] == {"loading": 0, "model": 40}.get(phase, 240)
    assert left["ended"]["reason"] == ("interrupted (SIGTERM)" if where == "in_python" else "told to end")
    _, outcome = run(store, FakeEngine())
    assert outcome.record["samples_resumed"] == left["ended"]["samples"]
    assert outcome.record["interruptions"] == 1
    assert outcome.record["content_digest"] == undisturbed.record["content_digest"]


def many_capitals(project: Project) -> None:
    with (project.benchmarks / "capitals.csv").open("a") as file:
        file.write("".join(f"Land {i},Town {i},A {i},B {i},C {i},Europe\n" for i in range(1500)))


def parts(runs: Runs) -> list[Path]:
    return list(Path(runs.store.root).glob("evaluations/**/part-*.parquet"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_told_to_end_goes_on_where_it_stopped(
    project: Project, number: signal.Signals, status: int
) -> None:
    many_capitals(project)
    runs = project.registered("tiny@1")
    command = [
        sys.executable, "-m", "eval_assets", "evaluate", "--models", "tiny@1", "--benchmarks", "capitals",
    ]  # fmt: skip
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_until(lambda: len(parts(runs)) > 2, process)
        output = ended(process, number)
    assert process.returncode == status, output
    assert output.endswith("interrupted: what is finished is kept; run it again to go on\n")
    (left,) = runs_of(runs.store)
    assert left["ended"]["reason"] == f"interrupted ({number.name})"
    stopped = runs.instance.get_runs(limit=1)[0]
    assert stopped.status == dg.DagsterRunStatus.CANCELED
    assert stopped.tags[INTERRUPTED_TAG] == number.name
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    (record,) = committed_in(runs.store)
    assert (record["samples"], record["interruptions"]) == (1512, 1)
    assert record["samples_resumed"] == left["ended"]["samples"] > 0
    assert len({sample.sample_id for sample in runs.store.samples(record)}) == 1512
    assert not parts(runs)


def worker(runs: Runs) -> tuple[str, subprocess.Popen[str]]:
    """A run of the cell in a process of its own, started as Dagster's Kubernetes launcher starts one."""
    origin = JobPythonOrigin(
        "evaluate_models",
        RepositoryPythonOrigin(
            sys.executable,
            ModuleCodePointer("eval_assets.definitions", "defs", str(ROOT)),
            entry_point=["dagster"],
            container_image=None,
            container_context=None,
        ),
    )
    created = runs.instance.create_run_for_job(
        definitions(Settings.from_environment()).resolve_job_def("evaluate_models"),
        tags=row_tags("tiny@1", ["capitals"]),
        job_code_origin=origin,
    )
    arguments = ExecuteRunArgs(job_origin=origin, run_id=created.run_id, instance_ref=runs.instance.get_ref())
    packed = base64.b64encode(zlib.compress(serialize_value(arguments).encode())).decode()
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster", "api", "execute_run", "--compressed-input-json", packed],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    return created.run_id, process


@pytest.mark.parametrize("phase", ["loading", "model"])
def test_an_evicted_run_worker_is_shown_as_interrupted_and_its_retry_goes_on(
    project: Project, phase: str
) -> None:
    """Dagster exits with 0 there, which Kubernetes takes for a completed Job."""
    many_capitals(project)
    runs = project.registered("tiny@1")
    begun = {
        "loading": lambda: list(Path(runs.store.root).glob("evaluations/**/runs.json")),
        "model": lambda: len(parts(runs)) > 2,
    }[phase]
    run_id, process = worker(runs)
    with process:
        wait_until(begun, process)
        output = ended(process, signal.SIGTERM)
    assert process.returncode == 143, output
    stopped = runs.instance.get_run_by_id(run_id)
    assert stopped is not None
    # Not CANCELED: Dagster retries failed runs only, and this one is to be retried.
    assert stopped.status == dg.DagsterRunStatus.FAILURE
    assert stopped.tags[INTERRUPTED_TAG] == "SIGTERM"
    messages = [event.user_message for event in runs.instance.all_logs(run_id)]
    (left,) = runs_of(runs.store)
    assert left["run_id"] == run_id
    kept = left["ended"]["samples"]
    assert f"tiny@1 on capitals: interrupted (SIGTERM); {kept} of 1512 samples are kept" in "".join(messages)
    if phase == "model":
        assert kept > 0
        run_id, process = worker(runs)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
        (record,) = committed_in(runs.store)
        assert (record["run_id"], record["samples_resumed"], record["interruptions"]) == (run_id, kept, 1)
