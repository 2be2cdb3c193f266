"""Real files of lm_eval with anything put anywhere in them: taken or refused, never a traceback."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eval_assets.exchange import export_harness, import_harness
from eval_assets.suite import load_suite
from resources.catalog import Catalog
from resources.errors import UserError
from resources.results import ResultsStore

HARNESS = Path(__file__).parent / "harness"
SUITE = load_suite()
CONTENT: dict[str, dict[str, Any]] = {
    run: json.loads(next(HARNESS.glob(f"{run}/*/results_*.json")).read_text()) for run in ("tasks", "part")
}
LINES = {
    path.name.rpartition("_")[0].removeprefix("samples_"): [
        json.loads(line) for line in path.read_text().splitlines()
    ]
    for path in HARNESS.glob("*/*/samples_*")
}
TASKS = {
    "tasks": ("hellaswag", "gsm8k", "wikitext", "truthfulqa_mc1", "truthfulqa_mc2", "squadv2"),
    "part": tuple(task for task in LINES if task.startswith("mmlu_")),
}
"""Of a run of single tasks, and of one of a group."""

TEXT = st.text(max_size=20) | st.sampled_from(
    [
        "../../x",
        "a|b",
        "'; DROP TABLE samples; --",
        "\ud83d",
        "\x00",
        "nan",
        "1e999",
        "hellaswag",
        "acc,none",
        "",
    ]
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.sampled_from([10**400, -1, 2**63])
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def _put(data: st.DataObject, value: Any, anything: Any) -> Any:
    """The JSON value with something else at some place in it; mostly deep down."""
    if isinstance(value, (dict, list)) and value and data.draw(st.integers(0, 9)):
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        place = data.draw(st.sampled_from(places))
        if data.draw(st.integers(0, 19)) == 0 and isinstance(value, dict):
            name = data.draw(TEXT)
            return {(name if key == place else key): entry for key, entry in value.items()}
        copy = dict(value) if isinstance(value, dict) else list(value)
        copy[place] = _put(data, value[place], anything)
        return copy
    return anything


def _tasks_only(content: dict[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """The file with fewer tasks, so that what is put in is more often where it matters."""
    found = dict(content)
    for name in ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "task_hashes"):
        kept = {*tasks, *content.get("groups", ())}
        found[name] = {task: entry for task, entry in content[name].items() if task in kept}
    return found


# Without shrinking: an example takes a good part of a second, and what failed is printed anyway.
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
@given(st.data())
def test_nothing_in_a_file_ever_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Results files come from anywhere, and are edited by hand."""
    folder = tmp_path_factory.mktemp("hostile")
    run = data.draw(st.sampled_from(sorted(TASKS)))
    content: Any = _tasks_only(CONTENT[run], TASKS[run])
    lines = {task: [dict(line) for line in LINES[task]] for task in TASKS[run]}
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            content = _put(data, content, data.draw(ANYTHING))
        else:
            task = data.draw(st.sampled_from(TASKS[run]))
            lines[task] = _put(data, lines[task], data.draw(ANYTHING))
    (folder / "results_2026-01-02T03-04-05.000006.json").write_text(json.dumps(content))
    for task, rows in lines.items():
        text = "".join(json.dumps(row) + "\n" for row in rows) if isinstance(rows, list) else json.dumps(rows)
        (folder / f"samples_{task}_2026-01-02T03-04-05.000006.jsonl").write_text(text)
    store = ResultsStore(str(folder / "store"))
    before = set(folder.rglob("*"))
    refusal = ""
    try:
        done = import_harness([folder], store, SUITE)
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        return
    assert not any("\n" in line for line in done.refused)
    assert all(path.is_relative_to(store.root) for path in set(folder.rglob("*")) - before)
    assert not any(one.new for one in import_harness([folder], store, SUITE).evaluations)
    catalog = Catalog(store)
    assert catalog.refresh().total == len(done.evaluations)
    with catalog.connect() as connection:
        connection.execute("SELECT * FROM leaderboard").fetchall()
        connection.execute("SELECT count(*) FROM sample_scores").fetchall()
    before = {path for path in folder.rglob("*") if path.is_file()}
    exported = export_harness(store, SUITE, folder / "out").files
    written = {path for path in folder.rglob("*") if path.is_file()} - before
    assert {path for path in written if not path.is_relative_to(store.root)} == set(exported)
    assert all(path.parent.parent == folder / "out" for path in exported)
    again = ResultsStore(str(folder / "again"))
    back = import_harness([folder / "out"], again, SUITE)
    assert {one.dataset for one in back.evaluations} == {one.dataset for one in done.evaluations}
