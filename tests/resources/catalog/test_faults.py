"""What can happen to a catalogue while it is refreshed or read, and that it comes out right."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

import resources.catalog.catalogue
from resources.catalog import CATALOG, SCHEMA_VERSION, Catalog
from resources.errors import BusyError, UserError
from resources.results import ResultsStore
from tests.conftest import ROOT
from tests.eval_assets.test_full_disk import on_a_small_disk
from tests.resources.catalog.relations import relations
from tests.resources.catalog.test_catalogue import commit, query

COUNT = "SELECT count(*) FROM evaluations"


@pytest.fixture
def catalog(store: ResultsStore) -> Catalog:
    """The catalogue of three evaluations."""
    for number in range(3):
        commit(store, f"m@{number}", [1.0, 0.0])
    catalog = Catalog(store)
    catalog.refresh()
    return catalog


def refreshers(*arguments: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.resources.catalog.refreshers", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_refresh_killed_at_twenty_moments_leaves_a_good_catalogue_and_the_next_one_is_whole(
    store: ResultsStore, catalog: Catalog, tmp_path: Path
) -> None:
    """A leaderboard that is gone, or half of one, because somebody pressed Ctrl-C twice."""
    spare = tmp_path / CATALOG
    shutil.copy(catalog.path, spare)
    for number in range(3, 6):
        commit(store, f"m@{number}", [1.0, 0.0])
    lines = refreshers("kill", store.root, spare, 20)
    assert len(lines) == 20
    for line in lines:
        how, left, then, leftovers = line.replace("signal 9", "killed").split(" ", 3)
        assert (how, then, leftovers) == ("killed", "6", "[]"), line
        assert left in ("3", "6")
    assert lines[0].split()[2] == "3"


def test_what_a_killed_refresh_has_left_is_removed(store: ResultsStore, catalog: Catalog) -> None:
    left = Path(store.root, f".{CATALOG}.0123")
    left.write_bytes(b"half of one")
    Path(f"{left}.wal").write_bytes(b"")
    Path(f"{left}.spill").mkdir()
    Path(f"{left}.spill", "block").write_bytes(b"what did not fit into memory")
    commit(store, "m@3", [1.0, 0.0])
    assert catalog.refresh().added == 1
    assert sorted(path.name for path in Path(store.root).iterdir()) == [
        ".catalog.lock", CATALOG, "evaluations",
    ]  # fmt: skip


def test_several_refreshers_at_once_are_all_right(store: ResultsStore, catalog: Catalog) -> None:
    for number in range(3, 9):
        commit(store, f"m@{number}", [1.0, 0.0])
    told = [line.split() for line in refreshers("together", store.root, 4)]
    assert [total for _, total in told] == ["9"] * 4
    assert "6" in {added for added, _ in told}
    assert query(catalog, "SELECT count(*), count(DISTINCT model) FROM evaluations") == [(9, 9)]
    assert query(catalog, "SELECT count(*) FROM samples") == [(18,)]


STOPPED = """
import os, signal, sys
from resources.catalog import Catalog, tables
from resources.results import ResultsStore
def stop(*_):
    os.kill(os.getpid(), signal.SIGSTOP)
tables.take_out = stop
Catalog(ResultsStore(sys.argv[1])).refresh()
"""


def test_a_refresher_that_stands_still_keeps_no_reader_waiting_and_no_refresher_for_ever(
    store: ResultsStore, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, "m@3", [1.0, 0.0])
    monkeypatch.setattr(resources.catalog.catalogue, "_PATIENCE_SECONDS", 0.2)
    with subprocess.Popen([sys.executable, "-c", STOPPED, store.root], cwd=ROOT) as stopped:
        try:
            wait_for_stop(stopped.pid)
            assert query(catalog, COUNT) == [(3,)]
            with pytest.raises(
                BusyError, match=r"another process has been refreshing .*wait for it or end it"
            ):
                catalog.refresh()
        finally:
            stopped.send_signal(signal.SIGKILL)
    assert catalog.refresh().added == 1  # the lock went with its process


def wait_for_stop(pid: int) -> None:
    state = ""
    while state != "T":
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        assert state != "Z", "it has ended"


def test_a_reader_keeps_the_old_file_and_the_next_one_in_the_same_process_sees_the_new(
    store: ResultsStore, catalog: Catalog
) -> None:
    """DuckDB opens a path once a process: the exporter would show the morning's results all day."""
    with catalog.connect() as reader:
        for number in range(3, 6):
            commit(store, f"m@{number}", [1.0, 0.0])
            assert catalog.refresh().added == 1
            assert query(catalog, COUNT) == [(number + 1,)]
        assert reader.execute(COUNT).fetchall() == [(3,)]
    assert query(catalog, COUNT) == [(6,)]


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_catalogue_is_made_again_and_that_is_told(
    store: ResultsStore, catalog: Catalog, part: float
) -> None:
    whole, path = relations(catalog), Path(catalog.path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    refresh = catalog.refresh()
    assert refresh.told.startswith("the catalogue was made from 3 evaluations: it was damaged (")
    assert refresh.notes == [refresh.told]
    assert "\n" not in refresh.told
    assert relations(catalog) == whole


def test_a_damaged_block_is_one_line_for_a_reader_and_the_next_refresh_that_meets_it_makes_all_again(
    store: ResultsStore, catalog: Catalog
) -> None:
    path = Path(catalog.path)
    content = bytearray(path.read_bytes())
    for place in range(12_288 + 100, len(content), 4096):
        content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"the catalogue .* is damaged .*remove it and refresh"):
        query(catalog, "SELECT * FROM samples")
    commit(store, "m@3", [1.0, 0.0])
    refresh = catalog.refresh()
    assert (refresh.total, "it was damaged" in refresh.told) == (4, True)
    assert query(catalog, "SELECT count(*) FROM samples") == [(8,)]


def test_a_deleted_catalogue_is_made_again_and_that_is_told(catalog: Catalog) -> None:
    whole = relations(catalog)
    Path(catalog.path).unlink()
    assert catalog.refresh().told == "the catalogue was made from 3 evaluations: there was none"
    assert relations(catalog) == whole


@pytest.mark.parametrize("version", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
def test_a_catalogue_of_another_version_is_made_again_and_that_is_told(
    catalog: Catalog, version: int
) -> None:
    with duckdb.connect(catalog.path) as connection:
        connection.execute("UPDATE catalog_version SET version = ?", [version])
    assert catalog.refresh().told == (
        f"the catalogue was made from 3 evaluations: it is of version {version}, "
        f"this program's is {SCHEMA_VERSION}"
    )
    assert query(catalog, "FROM catalog_version") == [(SCHEMA_VERSION,)]


OPEN = """
import sys, duckdb
with duckdb.connect(sys.argv[1]) as connection:
    connection.execute("CREATE TABLE notes AS SELECT 'not of the catalogue' AS note")
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_shell_that_holds_the_catalogue_open_for_writing_stops_nobody(
    store: ResultsStore, catalog: Catalog
) -> None:
    """``duckdb catalog.duckdb`` does that by default; its person goes to lunch."""
    command = [sys.executable, "-c", OPEN, catalog.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "open\n"
        assert query(catalog, COUNT) == [(3,)]
        commit(store, "m@3", [1.0, 0.0])
        assert catalog.refresh().added == 1
        assert query(catalog, COUNT) == [(4,)]
        shell.communicate("")
    assert query(catalog, COUNT) == [(4,)]
    assert catalog.refresh().told == ""


FULL = """
import sys
from pathlib import Path
from resources.catalog import Catalog, tables
from resources.errors import UserError
from resources.results import ResultsStore
from tests.resources.catalog.test_catalogue import commit, query

root = sys.argv[1]
store = ResultsStore(root)
commit(store, "m@0", [1.0, 0.0])
catalog = Catalog(store)
catalog.refresh()
commit(store, "m@1", [1.0, 0.0])
take_in, ballast = tables.take_in, Path(root, "ballast")

def fill(*arguments):
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    take_in(*arguments)

tables.take_in = fill
try:
    catalog.refresh()
except UserError as error:
    print(error)
print(query(catalog, "SELECT count(*) FROM samples"))
ballast.unlink()
tables.take_in = take_in
print(catalog.refresh().total, query(catalog, "SELECT count(*) FROM samples"))
print(sorted(path.name for path in Path(root).iterdir()))
"""


def test_a_full_disk_is_one_line_and_leaves_the_catalogue_as_it_was(tmp_path: Path) -> None:
    done = on_a_small_disk(tmp_path / "disk", "12m", '"$1" -c "$2" "$0"', sys.executable, FULL)
    assert done.returncode == 0, done.stderr
    line, before, after, files = done.stdout.splitlines()
    assert line.startswith(f"results store: can't write {tmp_path}/disk/{CATALOG}: ")
    assert "No space left" in line
    assert line.endswith("the catalogue is as it was")
    assert (before, after) == ("[(2,)]", "2 [(4,)]")
    assert files == f"['.catalog.lock', '{CATALOG}', 'evaluations']"


READ_ONLY = """
import sys
from pathlib import Path
from resources.catalog import Catalog
from resources.results import ResultsStore
from tests.resources.catalog.test_catalogue import query
catalog = Catalog(ResultsStore(sys.argv[1]))
for _ in range(2):
    refresh = catalog.refresh()
    print(refresh.added, refresh.total, refresh.notes)
    print(query(catalog, "SELECT count(*) FROM samples"), catalog.path)
"""


def as_a_viewer(store: Path, folder: Path) -> list[str]:
    """Refresh and query twice where the store is mounted read-only."""
    folder.mkdir()
    done = subprocess.run(
        [
            "unshare", "--map-root-user", "--mount", "sh", "-c",
            'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && TMPDIR="$3" "$1" -c "$2" "$0"',
            str(store), sys.executable, READ_ONLY, str(folder),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_viewer_who_may_not_write_reads_the_catalogue_that_is_there(
    store: ResultsStore, catalog: Catalog, tmp_path: Path
) -> None:
    lines = as_a_viewer(Path(store.root), tmp_path / "viewer")
    assert lines == ["0 3 []", f"[(6,)] {catalog.path}"] * 2
    assert not list((tmp_path / "viewer").iterdir())


@pytest.mark.parametrize("there", [True, False])
def test_a_viewer_who_may_not_write_has_what_is_new_in_a_catalogue_of_their_own(
    store: ResultsStore, catalog: Catalog, tmp_path: Path, there: bool
) -> None:
    if there:
        commit(store, "m@3", [1.0, 0.0])
    else:
        Path(catalog.path).unlink()
    first, asked, second, again = as_a_viewer(Path(store.root), tmp_path / "viewer")
    count = 4 if there else 3
    added = 1 if there else 3
    assert first.startswith(f"{added} {count} [\"{store.root} can't be written: what is new in it is in ")
    assert second.startswith(f"0 {count} [")
    assert asked == again
    assert asked.startswith(f"[({2 * count},)] {tmp_path}/viewer/")
    # The next command goes on from it.
    assert as_a_viewer(Path(store.root), tmp_path / "other")[0].startswith(f"{added} {count}")
