"""An object store that is gone, for half a minute or for good, while evaluations are made in it."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from eval_assets.evaluating.evaluator import cell_for
from resources import lease, s3
from resources.catalog import Catalog
from resources.errors import TransientError
from resources.records import EvaluationRecord
from resources.results import Cell, ResultsStore
from tests.conftest import ROOT
from tests.eval_assets.evaluating.test_evaluator import MODEL, SCORING, benchmark, run
from tests.eval_assets.fake_engine import FakeEngine
from tests.resources.test_results import CELL, METRICS, findings, sample
from tests.s3_proxy import Weather
from tests.waiting import until

OUTAGE_SECONDS = 30.0
RIVAL = """
import socket, sys
socket.gethostname = lambda: "another-machine"
from resources.errors import UserError
from resources.results import Cell, ResultsStore
print("ready", flush=True)
for line in sys.stdin:
    try:
        with ResultsStore(sys.argv[1]).writer(Cell(*line.split()), owner="rival"):
            print("it has taken the cell", flush=True)
    except UserError as error:
        print(error, flush=True)
"""


@pytest.fixture
def store(bucket: str, weather: Weather) -> ResultsStore:
    """An empty store in a bucket behind the proxy."""
    return ResultsStore(f"{bucket}/results")


class Rival:
    """A process of another machine that wants the same cells."""

    def __init__(self, root: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RIVAL, root],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self.says() == "ready"

    def wants(self, cell: Cell) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{cell.dataset} {cell.model} {cell.fingerprint}\n")
        self.process.stdin.flush()

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")


@pytest.fixture
def rival(store: ResultsStore) -> Iterator[Callable[[], Rival]]:
    started: list[Rival] = []

    def start() -> Rival:
        started.append(Rival(f"s3://{store.root}"))
        return started[-1]

    yield start
    for process in (rival.process for rival in started):
        process.kill()
        process.communicate()


def test_half_a_minute_without_the_store_costs_no_evaluation_no_commit_and_no_refresh(
    store: ResultsStore, weather: Weather, rival: Callable[[], Rival]
) -> None:
    """A machine that waited through it, too, would take the living owner for dead, and compute all again."""
    Catalog(store).refresh()
    begun, may_end = threading.Barrier(3), threading.Event()
    engine, asked = FakeEngine(), benchmark(copies=2)

    def before_batch() -> None:
        if engine.batches == 0:
            begun.wait(60)
            assert weather.down.wait(60)
        else:
            assert may_end.wait(120)

    engine.before_batch = before_batch

    def commit() -> EvaluationRecord:
        with store.writer(CELL) as writer:
            begun.wait(60)
            assert weather.down.wait(60)
            return writer.commit([sample(0)], METRICS, findings())

    def refresh() -> int:
        assert weather.down.wait(60)
        return Catalog(store).refresh().total

    with ThreadPoolExecutor(3) as pool:
        evaluating = pool.submit(run, store, engine, asked)
        committing = pool.submit(commit)
        refreshing = pool.submit(refresh)
        one = rival()
        begun.wait(60)
        beats = weather.kinds.get("PUT .count", 0)
        until(lambda: weather.kinds.get("PUT .count", 0) > beats + 1)  # both have just shown their life
        looks = weather.kinds.get("GET .count", 0)
        one.wants(cell_for(MODEL, asked, engine.fingerprint_fields, SCORING))
        until(lambda: weather.kinds.get("GET .count", 0) > looks + 1)
        weather.down.set()
        time.sleep(OUTAGE_SECONDS)  # nothing to wait for: nothing may happen
        assert not any(future.done() for future in (evaluating, committing, refreshing))
        weather.down.clear()
        assert "is being evaluated by another process" in one.says()
        may_end.set()
        cell, outcome = evaluating.result(120)
        assert committing.result(120) == store.committed(CELL)
        refreshing.result(120)  # of what was committed by then; all of it below
    assert (outcome.record["samples"], outcome.record["interruptions"]) == (24, 0)
    assert len(engine.computed) == 24 * 4
    assert store.committed(cell) == outcome.record
    assert Catalog(store).refresh().total == 2


def test_a_store_that_is_gone_for_good_is_one_line_and_soon(
    store: ResultsStore, weather: Weather, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that a process does at its end would otherwise wait for the store again, one by one."""
    monkeypatch.setattr(s3, "PATIENCE_SECONDS", 3.0)
    cell, outcome = run(store, FakeEngine(), benchmark(copies=1))
    catalog = Catalog(store)
    catalog.refresh()
    weather.down.set()

    def connected() -> None:
        with catalog.connect():
            pass

    asked: dict[str, Callable[[], Any]] = {
        "refresh": catalog.refresh,
        "connect": connected,
        "listing": lambda: store.listing("evaluations/*/*/*/*"),
        "exists": lambda: store.exists("catalog.duckdb"),
        "get_json": lambda: store.get_json("models/m@1.json"),
        "read_all": lambda: store.read_all(["models/m@1.json"]),
        "put_json": lambda: store.put_json("models/m@1.json", {}),
        "json_files": lambda: list(store.json_files("models/*.json")),
        "evaluations_of": lambda: list(store.evaluations_of("m@1")),
        "committed": lambda: store.committed(cell),
        "samples": lambda: store.samples(outcome.record),
        "writer": lambda: run(store, FakeEngine(), benchmark(copies=3)),
    }
    began = time.monotonic()
    for name, ask in asked.items():
        with pytest.raises(TransientError) as told:
            ask()
        line = str(told.value)
        assert "\n" not in line, name
        assert line.startswith("s3://tests-"), name
        assert ": the store has not answered for 3 s (" in line, name
        assert line.endswith("then run it again: what was finished is kept"), name
    assert time.monotonic() - began < 60, "each of them has waited again"
    weather.down.clear()
    assert store.committed(cell) == outcome.record


def test_an_evaluation_that_lost_its_store_for_good_goes_on_where_it_was(
    store: ResultsStore, weather: Weather, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PATIENCE_SECONDS", 3.0)
    asked, engine = benchmark(copies=2), FakeEngine(batch=4)

    def before_batch() -> None:
        if engine.batches == 12:
            until(lambda: bool(store.filesystem.glob(f"{store.root}/**/part-*.parquet", refresh=True)))
            weather.down.set()

    engine.before_batch = before_batch
    with pytest.raises(TransientError, match="the store has not answered for 3 s"):
        run(store, engine, asked)
    weather.down.clear()
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 1.0)  # its lease was not given back
    again = FakeEngine(batch=4)
    monkeypatch.setattr(socket, "gethostname", lambda: "another-machine")
    _, outcome = run(store, again, asked)
    assert outcome.record["samples"] == 24
    assert outcome.record["samples_resumed"] >= 1
    assert len(again.computed) == (24 - outcome.record["samples_resumed"]) * 4
