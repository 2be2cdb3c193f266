from hypothesis import given
from hypothesis import strategies as st

from eval_assets.automation import plan
from resources.results import Cell

cells = st.builds(
    Cell,
    dataset=st.sampled_from(["arc", "mmlu", "squad"]),
    model=st.sampled_from(["a@1", "a@2", "b@1"]),
    fingerprint=st.text("abc", min_size=1, max_size=3),
)


@given(st.lists(cells), st.sets(st.text("abc", min_size=1, max_size=3)), st.dictionaries(
    st.sampled_from(["a@1", "a@2", "b@1"]), st.sets(st.sampled_from(["arc", "mmlu", "squad"])))
)  # fmt: skip
def test_a_plan_asks_for_each_missing_cell_once_and_for_nothing_else(
    wanted: list[Cell], finished: set[str], in_flight: dict[str, set[str]]
) -> None:
    """A cell forgotten is a version promoted unseen; a cell asked twice is paid twice."""
    rows = plan(wanted, finished, in_flight)
    asked = [(row.model, dataset) for row in rows for dataset in row.datasets]
    needed = {
        (cell.model, cell.dataset)
        for cell in wanted
        if cell.fingerprint not in finished and cell.dataset not in in_flight.get(cell.model, ())
    }
    assert sorted(asked) == sorted(needed)
    assert len({row.model for row in rows}) == len(rows)


@given(st.lists(cells))
def test_asking_again_while_the_runs_are_in_flight_asks_for_nothing(wanted: list[Cell]) -> None:
    rows = plan(wanted, set(), {})
    assert plan(wanted, set(), {row.model: row.datasets for row in rows}) == []
