"""One writer a cell: who gets it, who has to leave it, whatever their clocks say and however they ended."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from resources import lease, s3
from resources.errors import TransientError, UserError
from resources.lease import Lease
from resources.results import Cell, ResultsStore
from tests.conftest import ROOT
from tests.resources.test_results import CELL, METRICS, findings, sample
from tests.s3_proxy import Weather
from tests.waiting import until

HOLD = """
import sys, time
time.time = lambda shift={shift}, now=time.time: now() + shift
from resources import lease, s3
lease.BEAT_SECONDS = 0.1
from resources.results import *
from tests.resources.test_results import CELL, METRICS, findings, sample
from resources.errors import TransientError, UserError
try:
    with ResultsStore({root!r}).writer(CELL, owner="run of a process") as writer:
        writer.append([sample(0)])
        print("held", flush=True)
        for command in sys.stdin:
            if command == "append\\n":
                writer.append([sample(1)])
            else:
                writer.commit([sample(0)], METRICS, findings())
            print("done", flush=True)
except UserError as error:
    print(error, flush=True)
"""


class Other:
    """Another process that holds the cell of `CELL`, its clock set wrong by `shift` seconds."""

    def __init__(self, root: str, shift: float = 0.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD.format(root=root, shift=shift)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def told(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self.says()


@pytest.fixture
def other(store: ResultsStore) -> Iterator[Callable[..., Other]]:
    started: list[Other] = []

    def start(shift: float = 0.0, root: str = store.root) -> Other:
        started.append(Other(root, shift))
        return started[-1]

    yield start
    for process in (other.process for other in started):
        process.kill()
        process.communicate()


@pytest.mark.parametrize("shift", [-3600.0, 0.0, 3600.0])
def test_a_living_owner_keeps_its_cell_whatever_the_clocks_say(
    store: ResultsStore, other: Callable[..., Other], shift: float
) -> None:
    """A worker whose clock runs an hour late must not lose its cell to the next one, nor take another's."""
    assert other(shift).says() == "held"
    second = other(-shift)
    assert "is being evaluated by another process" in second.says()
    assert second.process.wait(10) == 0


@pytest.mark.parametrize("shift", [-3600.0, 3600.0])
def test_a_dead_owners_cell_is_taken_over_whatever_the_clocks_say(
    store: ResultsStore, other: Callable[..., Other], shift: float
) -> None:
    first = other(shift)
    assert first.says() == "held"
    first.process.kill()
    first.process.wait()
    with store.writer(CELL) as writer:
        assert [s.index for s in writer.finished()[0]] == [0]


def test_a_dead_owner_on_another_machine_is_known_by_its_silence(
    store: ResultsStore, other: Callable[..., Other], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There no process id can be asked for: only that nothing moves tells."""
    first = other()
    assert first.says() == "held"
    first.process.kill()
    first.process.wait()
    monkeypatch.setattr(socket, "gethostname", lambda: "another-machine")
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 1.0)
    started = time.monotonic()
    with store.writer(CELL):
        assert time.monotonic() - started >= 1.0


@pytest.mark.parametrize("command", ["append", "commit"])
def test_a_stopped_owner_that_wakes_up_writes_nothing_more(
    store: ResultsStore, other: Callable[..., Other], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """A machine that slept through its lease would otherwise commit over its successor's evaluation."""
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 1.0)
    first = other()
    assert first.says() == "held"
    os.kill(first.process.pid, signal.SIGSTOP)
    with store.writer(CELL, owner="successor") as writer:
        before = sorted(Path(writer.path, "progress").iterdir())
        os.kill(first.process.pid, signal.SIGCONT)
        line = first.told(command)
        assert "org/model@1 on hellaswag: the lease of this process" in line
        assert f"taken over by another process (pid {os.getpid()}" in line
        assert first.process.wait(10) == 0
        assert sorted(Path(writer.path, "progress").iterdir()) == before
        assert store.committed(CELL) is None
        record = writer.commit([sample(0), sample(1)], METRICS, findings())
    assert store.committed(CELL) == record


def test_a_woken_owner_that_only_counts_on_does_not_get_its_lease_back(tmp_path: Path) -> None:
    """Two owners that take the lease from each other in turn would both compute for nothing."""
    filesystem, path = fsspec.filesystem("file"), str(tmp_path / "lease.json")
    first = Lease.acquire(filesystem, path, what="cell")
    lease._remove(filesystem, path, first._state)  # as whoever takes it for dead does
    second = Lease.acquire(filesystem, path, what="cell", owner="second")
    filesystem.pipe_file(lease._count_path(path, first._state), b"1000")
    second.check()
    with pytest.raises(UserError, match="second"):
        first.check()
    first.release()
    second.check()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lease_that_a_power_cut_left_empty_belongs_to_nobody(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 0.5)
    with store.writer(CELL) as writer:
        path = Path(writer.path, "lease.json")
        path.write_text("")
        with pytest.raises(UserError, match="taken over"):
            writer.append([sample(0)])
    with store.writer(CELL) as writer:
        writer.append([sample(0)])


def test_of_many_processes_one_gets_a_cell_in_a_bucket(bucket: str, other: Callable[..., Other]) -> None:
    """A bucket has no rename and no lock: the conditional put is all there is."""
    processes = [other(root=f"{bucket}/results") for _ in range(4)]
    answers = [process.says() for process in processes]
    assert answers.count("held") == 1
    assert sum("is being evaluated by another process" in answer for answer in answers) == 3
    holder = processes[answers.index("held")]
    holder.process.kill()
    holder.process.wait()
    with ResultsStore(f"{bucket}/results").writer(CELL) as writer:
        assert [s.index for s in writer.finished()[0]] == [0]


def test_an_object_stores_lease_is_as_strict(bucket: str) -> None:
    store = ResultsStore(f"{bucket}/results")
    cell = Cell("hellaswag", "org/model@2", "ef" * 32)
    with store.writer(cell) as writer:
        store.filesystem.rm_file(f"{writer.path}/lease.json")
        with pytest.raises(UserError, match="was removed"):
            writer.append([sample(0)])
        assert store.filesystem.glob(f"{writer.path}/progress/*") == []


def test_an_owner_lives_on_after_an_outage_longer_than_its_store_waits(
    bucket: str, weather: Weather, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread that counts would end at the first error, and the next one take the cell from it."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(s3, "PATIENCE_SECONDS", 0.0)
    store = ResultsStore(f"{bucket}/results")
    with store.writer(CELL) as writer:
        weather.down.set()
        with pytest.raises(TransientError):
            writer.append([sample(0)])
        before = weather.kinds.get("PUT .count", 0)
        until(lambda: weather.kinds.get("PUT .count", 0) > before + 10)  # two beats have given up
        weather.down.clear()
        path = f"{writer.path}/lease.json.{writer._lease._state['token']}.count"
        seen = store.filesystem.cat_file(path)
        until(lambda: bool(store.filesystem.cat_file(path) != seen))
        writer.append([sample(0)])


def test_a_lease_whose_creation_was_not_answered_is_held_at_once(bucket: str, weather: Weather) -> None:
    weather.cut = 1  # each request of a kind is carried out at first, and its answer lost
    started = time.monotonic()
    with ResultsStore(f"{bucket}/results").writer(CELL) as writer:
        assert time.monotonic() - started < lease.PATIENCE_SECONDS / 2
        writer.append([sample(0)])
