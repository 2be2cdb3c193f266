"""What evaluations will cost, what they have cost this month, and the budget (``EVAL_BUDGET``)."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from resources.errors import UserError
from resources.keys import ModelKey, path_segment
from resources.pods.catalogue import CPU, Catalogue
from resources.pods.sizing import PodSize
from resources.records import EvaluationRecord
from resources.registries import ModelVersion
from resources.results import RECORD, ResultsStore

START_SECONDS = 60.0
"""A pod that is scheduled, pulled and started, and its imports."""
LOAD_BYTES = 1e9
"""Bytes of weights that are read a second."""
UTILIZATION = 0.3
"""Of an accelerator's peak, over a whole evaluation."""
CPU_TFLOPS = 0.08
"""About what a core with AVX2 gets done in float32."""
CHARACTERS_A_TOKEN = 4.0
RECENT_SECONDS = 60.0
"""For so long the last evaluations count as they were read: each run is planned twice, and many at once."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of a pod and, where its class has a price, what they cost; `basis` says what that rests on."""

    dataset: str
    seconds: float
    cost: float | None
    basis: str


def estimate(
    dataset: str,
    model: ModelVersion,
    size: PodSize,
    catalogue: Catalogue,
    store: ResultsStore,
    limit: int | None,
) -> Estimate:
    """The pod's time for one cell: as the model's last evaluation there took; without one, by its FLOPs.

    Two FLOPs a parameter and token, at `UTILIZATION` of the peak that the catalogue says.

    Raises UserError for a benchmark that was never prepared.
    """
    benchmark = store.benchmark(dataset)
    if benchmark is None:
        raise UserError(
            f"benchmark {dataset} is not prepared yet: run 'make evaluate' or the job prepare_benchmarks"
        )
    items = min(int(benchmark["items"]), limit or int(benchmark["items"]))
    before = _latest(dataset, ModelKey.parse(model.key).name, size.accelerator, store)
    if before is not None:
        seconds = _wall_seconds(before) * items / max(int(before["samples"]), 1)
        basis = f"{before['model']} took {_wall_seconds(before):.0f} s for {before['samples']} items"
    else:
        share = items / max(int(benchmark["items"]), 1)
        tokens = int(benchmark.get("characters", 0)) * share / CHARACTERS_A_TOKEN
        seconds = 2.0 * model.parameters * tokens / _flops(size, catalogue)
        basis = f"no evaluation there yet: {tokens:,.0f} tokens by their characters"
    return Estimate(dataset, seconds, _cost(size, seconds), basis)


def overhead(model: ModelVersion, size: PodSize) -> Estimate:
    """What a pod takes besides evaluating: it is started and loads the weights, once for all its cells."""
    seconds = START_SECONDS + model.weight_bytes / LOAD_BYTES
    return Estimate("", seconds, _cost(size, seconds), "start of the pod, weights")


def estimate_all(
    datasets: Sequence[str],
    model: ModelVersion,
    size: PodSize,
    catalogue: Catalogue,
    store: ResultsStore,
    limit: int | None,
) -> list[Estimate]:
    """The estimates of a pod that evaluates a model on these benchmarks, what it takes besides first."""
    cells = [estimate(dataset, model, size, catalogue, store, limit) for dataset in datasets]
    return [overhead(model, size), *cells]


def check_budget(
    expected: Sequence[Estimate],
    budget: float | None,
    store: ResultsStore,
    what: str,
    launched: float = 0.0,
) -> None:
    """Raise UserError where what this month has cost, `launched` and `expected` are over the budget."""
    costs = [entry.cost for entry in expected if entry.cost is not None]
    if budget is None or not costs:
        return
    spent = spent_this_month(store) + launched
    if spent + sum(costs) > budget:
        raise UserError(
            f"{what} is estimated at {sum(costs):.2f}, and {spent:.2f} of this month's {budget:.2f} "
            "are spent or launched (EVAL_BUDGET): raise it, evaluate fewer items (EVAL_LIMIT), or wait for "
            "the next month"
        )


def spent_this_month(store: ResultsStore) -> float:
    """The cost of the evaluations that ended in this calendar month (UTC), as of now: a budget is a bound."""
    month = f"{datetime.now(UTC):%Y-%m}"
    records = (record for _, record in store.json_files(f"evaluations/*/*/*/{RECORD}"))
    return sum(
        float(r.get("cost") or 0.0) for r in records if str(r.get("finished_at", "")).startswith(month)
    )


def _latest(dataset: str, name: str, accelerator: str, store: ResultsStore) -> EvaluationRecord | None:
    """The last evaluation of any version of the model there on such a class; one listing finds them all."""
    pattern = f"evaluations/{path_segment(dataset)}/{path_segment(name)}@*/*/{RECORD}"

    def read() -> dict[str, EvaluationRecord]:
        latest: dict[str, EvaluationRecord] = {}
        for _, found in store.json_files(pattern):
            record = cast(EvaluationRecord, found)
            if not record.get("samples") or record.get("origin") is not None:  # imported: it ran elsewhere
                continue
            before = latest.get(record.get("accelerator_class") or CPU)
            if before is None or str(record.get("finished_at")) > str(before.get("finished_at")):
                latest[record.get("accelerator_class") or CPU] = record
        return latest

    return _recent.get((store.scheme, store.root, pattern), read).get(accelerator)


_T = TypeVar("_T")


class _Recent:
    """What was read within the last `RECENT_SECONDS`, by what it is; a process plans in several threads."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], tuple[float, Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: tuple[str, ...], read: Callable[[], _T]) -> _T:
        now = _clock()
        with self._lock:
            self._found = {one: of for one, of in self._found.items() if now - of[0] < RECENT_SECONDS}
            if key in self._found:
                found: _T = self._found[key][1]
                return found
        found = read()
        with self._lock:
            self._found[key] = now, found  # as old as the beginning of its reading
        return found


_clock = time.monotonic
_recent = _Recent()


def _wall_seconds(record: EvaluationRecord) -> float:
    began, ended = map(datetime.fromisoformat, (record["started_at"], record["finished_at"]))
    return (ended - began).total_seconds()


def _flops(size: PodSize, catalogue: Catalogue) -> float:
    if size.accelerator == CPU:
        return size.cores * CPU_TFLOPS * 1e12
    return catalogue.accelerators[size.accelerator].tflops * size.count * UTILIZATION * 1e12


def _cost(size: PodSize, seconds: float) -> float | None:
    return None if size.price is None else size.price * seconds / 3600
