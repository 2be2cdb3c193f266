"""Catalogues on this machine: those of object stores, which DuckDB reads locally, and a viewer's own."""

import hashlib
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from resources.appearing import appearing
from resources.errors import UserError
from resources.results import ResultsStore

CATALOG = "catalog.duckdb"
_KEPT = 2
"""Versions of an object store's catalogue: one that was looked up just now may not go before it is opened."""
_LEFT_SECONDS = 86_400.0


def own_folder(store: ResultsStore) -> Path:
    """This user's folder for catalogues of a store; the next command finds what is in it."""
    base = Path(tempfile.gettempdir(), f"catalogues-{os.getuid()}")
    with suppress(FileExistsError):
        base.mkdir(mode=0o700)
    stat = base.lstat()
    if stat.st_uid != os.getuid() or not base.is_dir() or base.is_symlink():
        raise UserError(f"{base} belongs to another user: set TMPDIR to a folder of your own")
    name = os.path.realpath(store.root) if store.is_local else f"{store.scheme}://{store.root}"
    folder = base / hashlib.sha256(name.encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    return folder


def fetched(store: ResultsStore) -> tuple[Path | None, str]:
    """An object store's catalogue as it is now, on this machine, and its sign; None where there is none.

    It is downloaded where this machine doesn't have it yet. Nobody may write to it.
    """
    listed = store.listing(CATALOG).get(CATALOG)
    if listed is None:
        return None, ""
    path = _path(store, listed.sign)
    if not path.exists():
        with appearing(path) as file:
            store.filesystem.get_file(f"{store.root}/{CATALOG}", file.name)
        _tidy(path.parent)
    with suppress(FileNotFoundError):
        os.utime(path)
    return path, listed.sign


def keep(store: ResultsStore, sign: str, made: Path) -> None:
    """Keep a file as the object store's catalogue that has this sign; it is moved."""
    path = _path(store, sign)
    made.replace(path)
    _tidy(path.parent)


def _path(store: ResultsStore, sign: str) -> Path:
    return own_folder(store) / f"{hashlib.sha256(sign.encode()).hexdigest()[:16]}.duckdb"


def _tidy(folder: Path) -> None:
    """Remove all but the latest versions, and what killed processes have left; others may be at it, too."""
    with suppress(FileNotFoundError):
        versions = [path for path in folder.glob("[!.]*.duckdb") if path.name != CATALOG]
        for old in sorted(versions, key=lambda path: -path.stat().st_mtime_ns)[_KEPT:]:
            old.unlink()
        for left in folder.glob(".*"):
            if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
