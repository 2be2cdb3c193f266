"""``make bench-catalog``: how quickly the catalogue answers, against a glob over its files and pandas.

    python -m tests.performance.catalogue --evaluations 10000 --samples 100 --write docs/catalogue.md

Makes the store (once), then measures each side in a process of its own: rebuilding, refreshing after one
new evaluation, and the six questions of `catalogue_queries`, whose answers must be equal. What was measured
is kept beside the store, and the page is written from all of it.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb

from resources.catalog import CATALOG, Catalog
from resources.results import ResultsStore
from tests.performance import catalogue_s3
from tests.performance.catalogue_page import page
from tests.performance.catalogue_queries import QUESTIONS, Question, Rows, normal
from tests.performance.machine import busy_share, describe
from tests.performance.made_store import add_evaluation, make_store
from tests.performance.measure import peak_memory_bytes

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "bench-catalog"
_WARM = 25
_ADDED = 5
_REBUILT = 2


def main() -> None:
    """Measure one size, or one side of it, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=100, help="of each evaluation")
    parser.add_argument("--build", type=Path, default=BUILD, help="where stores and measurements are kept")
    parser.add_argument("--write", type=Path, help="write the page here")
    parser.add_argument("--over-s3", action="store_true", help="measure the same store in a bucket instead")
    parser.add_argument("--side", choices=sorted(_SIDES), help="measure this side only and print it")
    arguments = parser.parse_args()
    store = arguments.build / f"{arguments.evaluations}x{arguments.samples}"
    if arguments.side:
        print(json.dumps(_SIDES[arguments.side](store)))
        return
    if arguments.over_s3:
        result = measured_over_s3(store, arguments.evaluations, arguments.samples)
        (arguments.build / "s3.json").write_text(json.dumps(result, indent=1))
    else:
        result = measured(store, arguments.evaluations, arguments.samples)
        (arguments.build / f"{store.name}.json").write_text(json.dumps(result, indent=1))
    found = [json.loads(path.read_text()) for path in sorted(arguments.build.glob("*x*.json"))]
    over_s3 = arguments.build / "s3.json"
    text = page(
        sorted(found, key=lambda one: int(one["rows"])),
        json.loads(over_s3.read_text()) if over_s3.exists() else None,
    )
    if arguments.write:
        arguments.write.write_text(text)
    print(text)


def measured(store: Path, evaluations: int, samples: int) -> dict[str, Any]:
    """Everything about a store of this size, which is made where it isn't there.

    Raises AssertionError where two sides answer a question differently.
    """
    _make(store, evaluations, samples)
    for left in store.glob("evaluations/*/newcomer@*"):
        shutil.rmtree(left)
    busy = busy_share()
    rebuilds, refreshes = [], []
    for _ in range(_REBUILT):
        (store / CATALOG).unlink(missing_ok=True)
        rebuilds.append(_side("rebuild", store))
    result: dict[str, Any] = {"machine": _machine(), "busy": busy, "rebuild": _quickest(rebuilds)}
    for number in range(_ADDED):
        add_evaluation(store, samples, number)
        refreshes.append(_side("refresh", store))
    result["refresh"] = _quickest(refreshes)
    result["catalogue"] = _side("catalogue", store)
    for side in ("glob", "everywhere", "pandas"):
        print(f"asking {side}", flush=True)
        result[side] = _side(side, store)
        for question in QUESTIONS:
            same = result[side]["answers"][question.name] == result["catalogue"]["answers"][question.name]
            assert same, f"{question.name}: {side} answers differently"
    count = len(list(store.glob("evaluations/*/*/*/evaluation.json")))
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file() and path.name != CATALOG)
    catalogue = (store / CATALOG).stat().st_size
    return {
        **result,
        "evaluations": count,
        "rows": count * samples,
        "bytes": size,
        "catalogue_bytes": catalogue,
    }


def measured_over_s3(store: Path, evaluations: int, samples: int) -> dict[str, Any]:
    """What a store of this size takes in a bucket."""
    _make(store, evaluations, samples)
    busy = busy_share()
    return {"machine": _machine(), "busy": busy, **catalogue_s3.measured(store, samples)}


def _make(store: Path, evaluations: int, samples: int) -> None:
    if store.exists():
        return
    print(f"making {evaluations:,} evaluations of {samples:,} samples", flush=True)
    new = store.with_name(f".{store.name}")
    shutil.rmtree(new, ignore_errors=True)
    make_store(new, evaluations, samples)
    new.rename(store)


def _quickest(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return min(results, key=lambda one: float(one["wall"]))


def _machine() -> dict[str, str]:
    described = describe()
    kept = {name: described[name] for name in ("processor", "cores", "memory", "system", "python")}
    return kept | {package: version(package) for package in ("duckdb", "pyarrow", "pandas")}


def _side(name: str, store: Path) -> dict[str, Any]:
    evaluations, samples = store.name.split("x")
    command = [
        sys.executable, "-m", "tests.performance.catalogue", "--side", name, "--build", str(store.parent),
        "--evaluations", evaluations, "--samples", samples,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _refreshed(store: Path) -> dict[str, Any]:
    catalog = Catalog(ResultsStore(str(store)))
    wall, cpu = time.perf_counter(), time.process_time()
    refresh = catalog.refresh()
    assert refresh.added
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": peak_memory_bytes(),
    }


def _asked(ask: Callable[[Question], Rows], times: int) -> dict[str, Any]:
    """Seconds that each question takes, the best of some after a first one, and a digest of its answer."""
    seconds: dict[str, float] = {}
    answers: dict[str, Any] = {}
    for question in QUESTIONS:
        answer: Rows = []
        taken = []
        for _ in range(times + 1):
            start = time.perf_counter()
            answer = ask(question)
            taken.append(time.perf_counter() - start)
        seconds[question.name] = min(taken[1:] or taken)
        answers[question.name] = [len(answer), _digest(answer)]
    return {"seconds": seconds, "answers": answers, "peak": peak_memory_bytes()}


def _digest(answer: Rows) -> str:
    return hashlib.sha256("\n".join(normal(answer)).encode()).hexdigest()


def _of_catalogue(store: Path) -> dict[str, Any]:
    with Catalog(ResultsStore(str(store))).connect() as connection:
        return _asked(lambda question: connection.execute(question.catalogue).fetchall(), _WARM)


def _of_glob(store: Path, patterns: Callable[[Question], Sequence[str]], times: int) -> dict[str, Any]:
    """DuckDB over the files; the question names its columns, and the JSON's types are given."""
    with duckdb.connect() as connection:

        def ask(question: Question) -> Rows:
            files = [f"{store}/{pattern}" for pattern in patterns(question)]
            return connection.execute(question.glob, {"files": files}).fetchall()

        return _asked(ask, times)


def _of_pandas(store: Path) -> dict[str, Any]:
    def ask(question: Question) -> Rows:
        return question.pandas([path for pattern in question.paths for path in store.glob(pattern)])

    return _asked(ask, 0)


_SIDES: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "rebuild": _refreshed,
    "refresh": _refreshed,
    "catalogue": _of_catalogue,
    "glob": lambda store: _of_glob(store, lambda question: question.paths, 1),
    "everywhere": lambda store: _of_glob(store, lambda question: [question.everywhere], 0),
    "pandas": _of_pandas,
}

if __name__ == "__main__":
    main()
