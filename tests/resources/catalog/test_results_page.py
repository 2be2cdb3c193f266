"""docs/results.md says what is there: its tables are the catalogue's, its queries and snippets run."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from resources.catalog import Catalog
from resources.results import ResultsStore
from tests.conftest import ROOT
from tests.performance import made_store
from tests.performance.made_store import make_store
from tests.resources.catalog.relations import relations

PAGE = (ROOT / "docs" / "results.md").read_text()
MADE = {
    "smollm2-135m": "model-01",
    "'hellaswag'": "'hellaswag_1'",
    '"hellaswag"': '"hellaswag_1"',
    "'mmlu'": "'mmlu_1'",
}
"""Names of the page, and what the made store has in their place."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def of_made_store(text: str) -> str:
    for name, made in MADE.items():
        text = text.replace(name, made)
    return text


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """The catalogue of a made store, of which something is damaged and a version deleted."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_store, "NAMES", 3)
        make_store(folder / ".eval", 190, 60)
    next(folder.glob(".eval/evaluations/squad_1/model-02@2/*/samples.parquet")).write_bytes(b"cut off")
    store = ResultsStore(str(folder / ".eval"))
    store.save_model_version("model-02@1", {"digest": "d", "deleted": True})
    catalog = Catalog(store)
    catalog.refresh()
    yield catalog
    shutil.rmtree(folder)


def test_every_table_of_the_catalogue_is_on_the_page_with_its_columns(catalog: Catalog) -> None:
    sections = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^###|\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))
    told = {
        name: re.findall(r"^\| `(\w+)` \| (.+?) \|", text, flags=re.MULTILINE)
        for name, text in sections.items()
    }
    for name, text in sections.items():
        if same := re.search(r"The columns of `(\w+)`", text):
            told[name] = told[same[1]]
    with catalog.connect() as connection:
        rows = connection.execute(
            "SELECT table_name, column_name, replace(data_type, 'TIMESTAMP WITH TIME ZONE', 'TIMESTAMPTZ') "
            "FROM information_schema.columns WHERE table_schema = 'main' ORDER BY ordinal_position"
        ).fetchall()
    there: dict[str, list[tuple[str, str]]] = {}
    for name, column, kind in rows:
        there.setdefault(name, []).append((column, kind))
    assert told == there


def test_there_are_twelve_queries_and_each_finds_something(catalog: Catalog) -> None:
    """A query of the page that fails, or finds nothing for a reason that nobody sees, is worse than none."""
    queries = blocks("sql")
    assert len(queries) == 12
    with catalog.connect() as connection:
        found = {query: len(connection.execute(of_made_store(query)).fetchall()) for query in queries}
    assert not [query for query, rows in found.items() if not rows]


@pytest.mark.parametrize("snippet", blocks("python"))
def test_the_snippets_run_in_a_folder_with_a_store(
    catalog: Catalog, snippet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(catalog.path).parent.parent)
    names: dict[str, object] = {}
    exec(of_made_store(snippet), names)
    results = [names[name] for name in ("rows", "best", "worst") if name in names]
    assert [len(result) > 0 for result in results] == [True]  # type: ignore[arg-type]


def test_what_the_shell_is_given_is_a_query(catalog: Catalog) -> None:
    (command,) = blocks("sh")
    query = re.fullmatch(r'python -m eval_assets sql "(.+)"\n', command)
    assert query is not None
    with catalog.connect() as connection:
        assert connection.execute(of_made_store(query[1])).fetchall()


def test_the_made_catalogue_has_something_in_every_table(catalog: Catalog) -> None:
    """Else the tests above would be satisfied by less than they say."""
    assert not [name for name, rows in relations(catalog).items() if not rows]
