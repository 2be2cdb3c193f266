"""The catalogue of a store in a bucket: what a rebuild, a refresh and opening it take, over moto."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resources.catalog import CATALOG, Catalog
from resources.results import ResultsStore
from tests.performance.made_store import add_evaluation
from tests.s3 import s3_server


def measured(store: Path, samples: int) -> dict[str, Any]:
    """Seconds of each step, with the made store put into a bucket first."""
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder)) as environment:
        os.environ.update(environment)
        remote = ResultsStore("s3://bench/results")
        remote.filesystem.mkdir("bench")
        put(remote, store)
        catalog = Catalog(remote)
        tempfile.tempdir = f"{folder}/one"
        Path(tempfile.tempdir).mkdir()
        found = {"rebuild": timed(catalog.refresh), "unchanged": timed(catalog.refresh)}
        add_evaluation(Path(folder, "new"), samples, 1)
        put(remote, Path(folder, "new"))
        found["refresh"] = timed(catalog.refresh)
        tempfile.tempdir = f"{folder}/other"  # as on another machine, which has no catalogue yet
        Path(tempfile.tempdir).mkdir()
        found["first"], found["second"] = timed(lambda: asked(catalog)), timed(lambda: asked(catalog))
        found["catalogue_bytes"] = remote.listing(CATALOG)[CATALOG].size
        tempfile.tempdir = None
    return {**found, "evaluations": len(list(store.glob("evaluations/*/*/*"))), "samples": samples}


def put(remote: ResultsStore, folder: Path) -> None:
    """Put a store's files, without its catalogue, many at a time."""
    files = [path for path in folder.rglob("*") if path.is_file() and CATALOG not in path.name]
    names = [str(path.relative_to(folder)) for path in files if not path.name.startswith(".")]
    remote.filesystem.pipe({f"{remote.root}/{name}": (folder / name).read_bytes() for name in names})


def asked(catalog: Catalog) -> None:
    with catalog.connect() as connection:
        assert connection.execute("SELECT count(*) FROM leaderboard").fetchall() != [(0,)]


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
