"""Refreshes in processes of their own, forked from one that has imported everything.

    python -m tests.resources.catalog.refreshers kill STORE SPARE MOMENTS
    python -m tests.resources.catalog.refreshers together STORE COUNT

The first kills a refresh at so many moments, evenly spread over the calls that one makes, each time from the
catalogue in SPARE, and prints a line a moment: evaluations in the catalogue that is left, and after the next
refresh. The second prints each refresher's result.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from resources.catalog import CATALOG, Catalog
from resources.results import ResultsStore


def _refreshed(store: Path, kill_at: int | None = None) -> int:
    """How many calls a refresh makes; it kills its own process at one of them."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    Catalog(ResultsStore(str(store))).refresh()
    sys.setprofile(None)
    return calls


def _counted(store: Path) -> int:
    with Catalog(ResultsStore(str(store))).connect() as connection:
        ((found,),) = connection.execute(
            "SELECT count(DISTINCT evaluation_id) FROM evaluations JOIN samples USING (evaluation_id)"
        ).fetchall()
    return int(found)


def _forked(work: Callable[[], int | str]) -> str:
    """What `work` comes to in a process of its own, or how that process ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writing, str(work()).encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        told = file.read()
    _, status = os.waitpid(pid, 0)
    return told if os.WIFEXITED(status) else f"signal {os.WTERMSIG(status)}"


def _kill(store: Path, spare: Path, moments: int) -> None:
    calls = int(_forked(lambda: _refreshed(store)))
    for moment in range(1, moments + 1):
        shutil.copy(spare, store / CATALOG)
        at = calls * moment // (moments + 1)
        how = _forked(lambda at=at: _refreshed(store, at))  # type: ignore[misc]
        left = _forked(lambda: _counted(store))
        _forked(lambda: _refreshed(store))
        then = _forked(lambda: _counted(store))
        print(how, left, then, sorted(path.name for path in store.glob(f".{CATALOG}*")), flush=True)


def _together(store: Path, count: int) -> None:
    pids = []
    for _ in range(count):
        pid = os.fork()
        if not pid:
            refresh = Catalog(ResultsStore(str(store))).refresh()
            print(f"{refresh.added} {refresh.total}\n", end="", flush=True)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        _kill(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        _together(Path(sys.argv[2]), int(sys.argv[3]))
