"""Who gets a pod: never more devices than there are, nobody starved, hardly any device idle."""

import heapq

from hypothesis import given
from hypothesis import strategies as st

from resources.pods.queueing import STARVING_SECONDS, Waiting, admit
from tests.resources.pods.catalogues import catalogue

OFFERS = catalogue()  # eight devices of "large", any number of "small"


def run(
    name: str, count: int = 1, priority: int = 0, waited: float = 0.0, accelerator: str = "large"
) -> Waiting:
    return Waiting(name, accelerator, count, priority, waited)


waiting_runs = st.lists(
    st.tuples(
        st.sampled_from(["large", "small", "cpu"]),
        st.integers(1, 8),
        st.integers(-10, 10),
        st.floats(0, 5000),
    ),
    max_size=30,
).map(lambda rows: [Waiting(str(place), *row) for place, row in enumerate(rows)])


@given(waiting_runs, st.integers(0, 8))
def test_never_more_devices_are_given_than_there_are_and_everyone_is_answered(
    waiting: list[Waiting], used: int
) -> None:
    admitted, reasons = admit(waiting, {"large": used}, OFFERS)
    given = sum(w.count for w in waiting if w.run_id in admitted and w.accelerator == "large")
    assert given <= 8 - used or given == 0
    assert sorted([*admitted, *reasons]) == sorted(w.run_id for w in waiting)
    assert all(w.run_id in admitted for w in waiting if w.accelerator != "large")


def test_the_urgent_go_first_and_of_equals_who_has_waited_longest() -> None:
    waiting = [
        run("night", 4, -10, 50),
        run("late", 4, 0, 10),
        run("early", 4, 0, 20),
        run("person", 4, 10, 0),
    ]
    admitted, reasons = admit(waiting, {}, OFFERS)
    assert admitted == ["person", "early"]
    assert reasons["late"] == "waits for 4 of class large: 0 of 8 free, 0 runs ahead"
    assert reasons["night"] == "waits for 4 of class large: 0 of 8 free, 1 runs ahead"


def test_small_runs_use_what_a_large_one_leaves_until_that_has_waited_too_long() -> None:
    small = [run(f"s{n}", 1, 0, 5) for n in range(3)]
    admitted, _ = admit([run("whole", 8, 0, 60), *small], {"large": 2}, OFFERS)
    assert admitted == ["s0", "s1", "s2"]
    admitted, _ = admit([run("whole", 8, 0, STARVING_SECONDS), *small], {"large": 2}, OFFERS)
    assert admitted == []
    admitted, _ = admit([run("whole", 8, 0, STARVING_SECONDS), *small], {}, OFFERS)
    assert admitted == ["whole"]


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 100)), min_size=1, max_size=60))
def test_all_are_done_in_the_time_that_list_scheduling_promises(jobs: list[tuple[int, int]]) -> None:
    """Graham's bound for jobs that need several machines at once: at most twice the least there can be.

    Each is admitted at most once, and none is left over.
    """
    left = {str(place): job for place, job in enumerate(jobs)}
    arrived = dict.fromkeys(left, 0.0)
    ends: list[tuple[float, str]] = []
    now, done = 0.0, []
    while left or ends:
        busy = sum(jobs[int(name)][0] for _, name in ends)
        waiting = [run(name, count, 0, now - arrived[name]) for name, (count, _) in left.items()]
        for name in admit(waiting, {"large": busy}, OFFERS)[0]:
            heapq.heappush(ends, (now + left.pop(name)[1], name))
        now, name = heapq.heappop(ends)
        done.append(name)
    assert sorted(done) == sorted(map(str, range(len(jobs))))
    least = max(max(length for _, length in jobs), sum(count * length for count, length in jobs) / 8)
    assert now <= 2 * least


def test_a_hundred_equal_runs_on_eight_devices_leave_none_idle() -> None:
    left, now = [f"r{n:03}" for n in range(100)], 0.0
    ends: list[float] = []
    while left or ends:
        admitted, _ = admit([run(name) for name in left], {"large": len(ends)}, OFFERS)
        for name in admitted:
            left.remove(name)
            heapq.heappush(ends, now + 60.0)
        now = heapq.heappop(ends)
    assert now == 13 * 60.0  # ceil(100 / 8)
