"""What evaluations will cost, and the budget that they must keep."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from resources.errors import UserError
from resources.pods import costing
from resources.pods.costing import Estimate, check_budget, estimate, estimate_all, spent_this_month
from resources.pods.sizing import size_of_evaluating
from resources.results import ResultsStore
from resources.storage import Listed
from tests.resources.pods.catalogues import catalogue, model

MODEL = model(8e9)
SIZE = size_of_evaluating(MODEL, catalogue())


def evaluation(store: ResultsStore, key: str, **values: Any) -> None:
    record = {
        "model": key, "samples": 100, "accelerator_class": SIZE.accelerator, "cost": 2.0,
        "started_at": "2026-11-01T10:00:00+00:00", "finished_at": "2026-11-01T10:10:00+00:00", **values,
    }  # fmt: skip
    folder = f"evaluations/squad/{key}/{len(values)}-{record['finished_at'][:13]}"
    store.put_json(f"{folder}/evaluation.json", record)


@pytest.fixture
def prepared(store: ResultsStore) -> ResultsStore:
    store.put_json(
        "benchmarks/squad/current.json", {"items": 1000, "characters": 4_000_000, "fingerprint": "f"}
    )
    return store


def test_without_history_the_flops_decide(prepared: ResultsStore) -> None:
    """Two FLOPs a parameter and token: here a million tokens, two devices with 50 TFLOPS each."""
    found = estimate("squad", MODEL, SIZE, catalogue(), prepared, None)
    assert SIZE.count == 2
    assert found.seconds == pytest.approx(2 * 8e9 * 1e6 / (2 * 50e12 * 0.3))
    assert SIZE.price is not None
    assert found.cost == pytest.approx(SIZE.price * found.seconds / 3600)
    tenth = estimate("squad", MODEL, SIZE, catalogue(), prepared, 100)
    assert tenth.seconds == pytest.approx(found.seconds / 10)


def test_the_last_evaluation_of_any_version_there_decides_where_there_is_one(prepared: ResultsStore) -> None:
    evaluation(prepared, "m8b@0")
    evaluation(prepared, "m8b@0", finished_at="2026-11-01T10:20:00+00:00")  # later, and slower
    evaluation(prepared, "m8b@0", accelerator_class="large", finished_at="2026-11-09T10:00:00+00:00")
    evaluation(prepared, "m8bx@0", finished_at="2026-11-09T10:00:00+00:00")  # another model
    found = estimate("squad", MODEL, SIZE, catalogue(), prepared, None)
    assert found.seconds == pytest.approx(1200 / 100 * 1000)
    assert found.basis == "m8b@0 took 1200 s for 100 items"


def test_a_pod_takes_time_besides_evaluating_once(prepared: ResultsStore) -> None:
    found = estimate_all(["squad", "squad"], MODEL, SIZE, catalogue(), prepared, None)
    assert [entry.dataset for entry in found] == ["", "squad", "squad"]
    assert found[0].seconds == pytest.approx(60 + 16)


def test_many_pods_are_sized_by_what_was_listed_once_within_a_minute(
    prepared: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run is planned when it is submitted and when it is launched. A listing for each version and
    benchmark, each time, would hold up the sensor of a large store for minutes. What was spent is exact.
    """
    now, walked = [0.0], []
    monkeypatch.setattr(costing, "_clock", lambda: now[0])
    monkeypatch.setattr(prepared.filesystem, "glob", None)
    listing = prepared.listing

    def counted(pattern: str) -> dict[str, Listed]:
        walked.append(pattern)
        return listing(pattern)

    monkeypatch.setattr(prepared, "listing", counted)

    def planned() -> tuple[float, float]:
        [_, found] = estimate_all(["squad"], MODEL, SIZE, catalogue(), prepared, None)
        check_budget([found], 1e9, prepared, "run x")
        return found.seconds, spent_this_month(prepared)

    def ended(version: int, seconds: float, cost: float) -> None:
        at = datetime.now(UTC)
        began = (at - timedelta(seconds=seconds)).isoformat()
        evaluation(prepared, f"m8b@{version}", finished_at=at.isoformat(), started_at=began, cost=cost)

    for version in range(20):
        ended(version, 10.0, 2.0)
    assert [planned() for _ in range(5)] == [(100.0, 40.0)] * 5
    assert len([pattern for pattern in walked if "/squad/" in pattern]) == 1
    ended(20, 60.0, 0.5)
    now[0] = 59.9
    assert planned() == (100.0, 40.5)
    now[0] = 60.0
    assert planned() == (600.0, 40.5)
    assert len([pattern for pattern in walked if "/squad/" in pattern]) == 2


def test_a_benchmark_that_was_never_prepared_is_named(store: ResultsStore) -> None:
    with pytest.raises(UserError, match="benchmark arc is not prepared yet"):
        estimate("arc", MODEL, SIZE, catalogue(), store, None)


def test_the_budget_counts_what_this_month_has_cost(prepared: ResultsStore) -> None:
    now = datetime.now(UTC)
    evaluation(prepared, "m@1", finished_at=now.isoformat())
    evaluation(prepared, "m@2", finished_at="2020-01-01T00:00:00+00:00", cost=1000.0)
    evaluation(prepared, "m@3", finished_at=now.isoformat(), cost=None)
    assert spent_this_month(prepared) == 2.0
    expected = [Estimate("squad", 1.0, 3.0, ""), Estimate("arc", 1.0, None, "")]
    check_budget(expected, 5.0, prepared, "run x")
    check_budget(expected, None, prepared, "run x")
    line = r"^run x is estimated at 3.00, and 2.00 of this month's 4.99 are spent or launched \(EVAL_BUDGET\)"
    with pytest.raises(UserError, match=line):
        check_budget(expected, 4.99, prepared, "run x")
    with pytest.raises(UserError, match=r"and 2\.50 of this month's 5.00"):
        check_budget(expected, 5.0, prepared, "run x", launched=0.5)
