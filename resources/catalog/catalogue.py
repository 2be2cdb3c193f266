"""The catalogue of a results store: refreshed by one process at a time, read by any number.

A refresh looks at every file's size and time, reads what is new or changed, takes it into a copy of the
present catalogue and puts the copy in its place by one rename. Readers keep the file that they have open and
never wait. What can't be gone on with (none there, damaged, of another version) is made again from nothing.
"""

import errno
import fcntl
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from resources.catalog import copies, intake, tables
from resources.catalog.copies import CATALOG
from resources.catalog.intake import EVALUATIONS, Content, Damage, Source
from resources.catalog.schema import create
from resources.errors import BusyError, TransientError, UserError
from resources.results import ResultsStore

_MEMORY = "400MB"
"""DuckDB's share of a refresh's memory; what needs more goes to a temporary file."""
_FULL = "No space left on device"
_PATIENCE_SECONDS = 300.0
_LOOK_SECONDS = 0.05
_opening = threading.Lock()
_readers: dict[Path, tuple[object, int]] = {}
"""Path -> which file of that path this process has open, and how many read it."""
_elsewhere: dict[str, Path] = {}
"""Store -> this process's catalogue of it, where the store can't be written."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """What a refresh did: evaluations added, removed, in the catalogue now, and changed (read again).

    `damaged` of the store's files can't be read (table `damaged` says which and why); `told` is one line on
    anything unusual, such as a catalogue that had to be made again, or empty.
    """

    added: int
    removed: int
    total: int
    changed: int = 0
    damaged: int = 0
    told: str = ""

    @property
    def notes(self) -> list[str]:
        """What a person should hear of it, a line each."""
        lines = [self.told] if self.told else []
        if self.damaged:
            lines.append(
                f"{self.damaged:,} of the store's files can't be read and are left out; restore or remove "
                "them (select * from damaged)"
            )
        return lines


@dataclass(frozen=True, slots=True)
class _Difference:
    """Between a catalogue and the store.

    `base` is the catalogue to go on from (None: make it anew, `why`), `before` the evaluations in it; `gone`
    is to be taken out, `wanted` to be read. `damages` are those that need not be looked at again; with
    `nothing` to do, all that are there still.
    """

    base: Path | None
    why: str
    before: frozenset[str]
    found: Mapping[str, Source]
    gone: Sequence[str]
    wanted: Sequence[Source]
    nothing: bool = False
    damages: Sequence[Damage] = ()


class Catalog:
    """The catalogue of a results store."""

    def __init__(self, store: ResultsStore) -> None:
        self._store = store
        self._path = f"{store.root}/{CATALOG}"

    @property
    def path(self) -> str:
        """Where it is: in the store, or on this machine after a refresh that could not write there."""
        return str(_elsewhere.get(self._store.root, self._path))

    def refresh(self) -> Refresh:
        """Make the catalogue say what the committed evaluations say; without a change it is left alone.

        Where the store can't be written, a copy in a temporary folder of this machine is refreshed, which
        `connect` then opens. Raises BusyError where another process refreshes for minutes, TransientError
        where the disk is full or an object store doesn't answer, UserError for a folder with a ``?``.
        """
        _elsewhere.pop(self._store.root, None)
        if not self._store.is_local:
            with tempfile.TemporaryDirectory(prefix=".", dir=copies.own_folder(self._store)) as folder:
                return self._refresh_remote(Path(folder))
        root = Path(self._store.root)
        if "?" in self._store.root:
            raise UserError(
                f"no catalogue can be made in {root}: DuckDB takes '?' for the beginning of options; "
                "name a folder without one in EVAL_STORE"
            )
        try:
            return self._refresh_in(root, root / CATALOG)
        except PermissionError:
            pass
        except OSError as error:
            if error.errno != errno.EROFS:
                raise self._refused(error) from error
        own = copies.own_folder(self._store)
        theirs = root / CATALOG
        if theirs.exists() and _newer(theirs, own / CATALOG):
            shutil.copyfile(theirs, own / CATALOG)
        return self._own(self._refresh_in(own, own / CATALOG), own / CATALOG)

    @contextmanager
    def connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection to the catalogue as it is; raises UserError where there is none."""
        path = _elsewhere.get(self._store.root)
        if path is None:
            path = Path(self._path) if self._store.is_local else copies.fetched(self._store)[0]
        if path is None or not path.exists():
            raise UserError(
                f"no catalogue in {self._store.root}: materialize the asset 'leaderboard' ('make demo' does)"
            )
        try:
            with _opened(path) as connection:
                yield connection
        except duckdb.Error as error:
            if not _is_of_file(error):
                raise
            raise UserError(
                f"the catalogue {self.path} is damaged ({_line(error)}): remove it and refresh, it is "
                "made again"
            ) from error

    # -- one refresh ------------------------------------------------------------------------------

    def _refresh_in(self, folder: Path, target: Path) -> Refresh:
        looked_at = _identity(target)
        difference = self._difference(target)
        if difference.nothing:
            return _result(difference, difference.damages)
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if _identity(target) != looked_at:  # another process refreshed it while we looked
                difference = self._difference(target)
                if difference.nothing:
                    return _result(difference, difference.damages)
            _remove(folder, f".{CATALOG}.")  # of a refresh that was killed
            made = folder / f".{CATALOG}.{uuid.uuid4().hex}"
            try:
                refresh = self._made(difference, made)
                # A write-ahead log beside it would be that of a person's own session on the old file.
                Path(f"{target}.wal").unlink(missing_ok=True)
                made.replace(target)
                return refresh
            finally:
                _remove(folder, made.name)

    def _refresh_remote(self, folder: Path) -> Refresh:
        made = folder / CATALOG
        for _ in range(5):
            base, sign = copies.fetched(self._store)
            difference = self._difference(base or made)
            if difference.nothing:
                return _result(difference, difference.damages)
            refresh = self._made(difference, made)
            listed = self._store.listing(CATALOG).get(CATALOG)
            if (listed.sign if listed else "") == sign:
                try:
                    put = self._store.put_file(CATALOG, made)
                except TransientError as error:
                    if not isinstance(error.__cause__, PermissionError):
                        raise
                    own = copies.own_folder(self._store) / CATALOG
                    made.replace(own)
                    return self._own(refresh, own)
                if put is not None:
                    copies.keep(self._store, put, made)
                return refresh
            made.unlink()  # another process was quicker: go on from its own
        raise BusyError(f"{self._path}: other processes refresh it all the time; try again later")

    def _own(self, refresh: Refresh, path: Path) -> Refresh:
        _elsewhere[self._store.root] = path
        told = f"{self._store.root} can't be written: what is new in it is in a catalogue of your own, {path}"
        return replace(refresh, told=told)

    def _difference(self, base: Path) -> _Difference:
        found = intake.look(self._store)
        known, why = _known(base)
        if known is None:
            return _Difference(None, why, frozenset(), found, (), _sorted(found.values()))
        before = frozenset(
            path for path in known.signs if path.startswith(f"{EVALUATIONS}/") and path not in known.damaged
        )
        same = {path for path, sign in known.signs.items() if path in found and found[path].sign == sign}
        wanted = [source for path, source in found.items() if path not in same]
        gone = [path for path in known.signs if path not in same]
        if len(gone) > len(known.signs) / 2:
            # Making it anew costs less than taking most of it out, and leaves no holes in the file.
            return _Difference(None, "", before, found, (), _sorted(found.values()))
        damages = [Damage(found[path], *known.damaged[path]) for path in known.damaged.keys() & same]
        if not gone and all(source.path in known.damaged for source in wanted):
            again = [d for batch in intake.read(self._store, wanted) for d in batch if isinstance(d, Damage)]
            all_now = {damage.source.path: (damage.path, damage.reason) for damage in [*damages, *again]}
            if all_now == known.damaged:
                return _Difference(base, "", before, found, (), (), True, [*damages, *again])
        return _Difference(base, "", before, found, gone, _sorted(wanted), damages=damages)

    def _made(self, difference: _Difference, made: Path) -> Refresh:
        try:
            return self._written(difference, made)
        except duckdb.Error as error:
            if not _is_of_file(error):
                raise
            if difference.base is None or _FULL in str(error):
                raise self._refused(error) from error
            again = replace(
                difference,
                base=None,
                why=f"it was damaged ({_line(error)})",
                gone=(),
                wanted=_sorted(difference.found.values()),
                damages=(),
            )
        _remove(made.parent, made.name)
        try:
            return self._written(again, made)
        except duckdb.Error as error:
            if not _is_of_file(error):
                raise
            raise self._refused(error) from error

    def _written(self, difference: _Difference, made: Path) -> Refresh:
        if difference.base is not None:
            shutil.copyfile(difference.base, made)
        settings: dict[str, Any] = {"memory_limit": _MEMORY, "temp_directory": f"{made}.spill"}
        read: list[Damage] = []
        with duckdb.connect(str(made), config=settings) as connection:
            # One transaction: each commit would write blocks that the next one writes again.
            connection.execute("SET enable_progress_bar = false")
            connection.execute("BEGIN")
            if difference.base is None:
                create(connection)
            tables.take_out(connection, difference.gone)
            for batch in intake.read(self._store, difference.wanted):
                tables.take_in(connection, [item for item in batch if isinstance(item, Content)])
                read += [item for item in batch if isinstance(item, Damage)]
            tables.note_damage(connection, difference.damages, read)
            connection.execute("COMMIT")
            connection.execute("CHECKPOINT")
        return _result(difference, [*difference.damages, *read])

    def _refused(self, error: Exception) -> TransientError:
        reason = _FULL if _FULL in str(error) else _line(error)
        return TransientError(
            f"results store: can't write {self._path}: {reason}; free some space or check the "
            "permissions of EVAL_STORE; the catalogue is as it was"
        )


def _result(difference: _Difference, damages: Sequence[Damage]) -> Refresh:
    bad = {damage.source.path for damage in damages}
    now = {p for p, source in difference.found.items() if source.kind == EVALUATIONS and p not in bad}
    changed = now & difference.before & {source.path for source in difference.wanted}
    if difference.base is None:  # then all was read, and what was changed isn't known
        changed = set()
    told = ""
    if difference.why and now:
        told = f"the catalogue was made from {len(now):,} evaluations: {difference.why}"
    added, removed = now - difference.before, difference.before - now
    return Refresh(len(added), len(removed), len(now), len(changed), len(bad), told)


def _known(path: Path) -> tuple[tables.Known | None, str]:
    """What the catalogue at `path` was made from; or None, and why it can't be gone on with."""
    if not path.exists():
        return None, "there was none"
    try:
        with _opened(path) as connection:
            return tables.known(connection), ""
    except ValueError as error:
        return None, str(error)
    except duckdb.Error as error:
        return None, f"it was damaged ({_line(error)})"


def _sorted(sources: Iterable[Source]) -> list[Source]:
    return sorted(sources, key=lambda source: source.path)


@contextmanager
def _opened(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that can only read the catalogue at `path`, as it is now.

    A process has one database a path: it would go on with an old file as long as anybody in it does. And a
    person's own session that may write keeps everyone else out. In both cases a copy is read.
    """
    with ExitStack() as stack:
        identity = _identity(path)
        with _opening:
            known, readers = _readers.get(path, (identity, 0))
            if known == identity:
                _readers[path] = (identity, readers + 1)
                stack.callback(_closed, path)
        try:
            if known != identity:
                raise duckdb.ConnectionException("open here as it was before")
            connection = _connected(path)
        except (duckdb.IOException, duckdb.ConnectionException) as error:
            if not isinstance(error, duckdb.ConnectionException) and "lock" not in str(error):
                raise
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory()), CATALOG)
            shutil.copyfile(path, copy)
            connection = _connected(copy)
        with connection:
            yield connection


def _connected(path: Path) -> duckdb.DuckDBPyConnection:
    # Beside a catalogue in a store that can't be written there is no place for what doesn't fit into memory.
    spill = str(Path(tempfile.gettempdir(), f"catalogue-{os.getpid()}.spill"))
    connection = duckdb.connect(str(path), True, {"temp_directory": spill})
    connection.execute("SET enable_progress_bar = false")  # it would be printed into what a command prints
    return connection


def _closed(path: Path) -> None:
    with _opening:
        identity, readers = _readers.pop(path)
        if readers > 1:
            _readers[path] = (identity, readers - 1)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the one lock of refreshers; the system releases it when a process ends, however it ends."""
    with (folder / f".{CATALOG.removesuffix('.duckdb')}.lock").open("w") as file:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BusyError(
                        f"another process has been refreshing {folder / CATALOG} for "
                        f"{_PATIENCE_SECONDS:.0f} s; wait for it or end it first"
                    ) from None
                time.sleep(_LOOK_SECONDS)
        yield


def _remove(folder: Path, beginning: str) -> None:
    """Remove what begins so: a file, its log, the folder of what did not fit into memory."""
    for path in folder.iterdir():
        if path.name.startswith(beginning):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file is at `path`; each refresh puts another one there."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _newer(one: Path, other: Path) -> bool:
    return not other.exists() or one.stat().st_mtime_ns > other.stat().st_mtime_ns


def _is_of_file(error: duckdb.Error) -> bool:
    """Whether a file is damaged or can't be written, which DuckDB has several exceptions for."""
    kinds = (duckdb.SerializationException, duckdb.InternalException, duckdb.FatalException)
    told = ("orrupt", "Could not", _FULL, "not a valid DuckDB", "database file")
    return isinstance(error, kinds) or any(text in str(error) for text in told)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
