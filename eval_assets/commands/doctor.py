"""``doctor``: everything that a user could have wrong, a line each with what to do."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from eval_assets.commands.output import Output, output

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from resources.registries.sources import RegistrySource
    from resources.results import ResultsStore
    from resources.settings import Settings

Level = Literal["ok", "note", "wrong"]
_MARKS: dict[Level, tuple[str, str]] = {"ok": ("ok   ", "green"), "note": ("note ", "yellow"),
                                        "wrong": ("WRONG", "red")}  # fmt: skip
LITTLE_SPACE = 2 * 2**30
"""Bytes that a large benchmark's evaluation can need at once, with its temporary copies."""
CLOCK_TOLERANCE = 30.0
"""Seconds by which another machine's clock may differ: schedules and histories compare times of several."""
DEVICES = Path("/dev")
HUB = "https://huggingface.co"
SILENT_DAEMON = 120.0
"""Seconds without a heartbeat (one is due every 30) after which the daemon counts as not running."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do where it is not right."""

    subject: str
    level: Level
    text: str


@click.command()
@output
def doctor(out: Output) -> None:
    """Check versions, settings, store, registry, data, instance, daemon, GPU and clock; 1 if one is wrong."""
    findings = []
    for finding in examine():
        findings.append(finding)
        mark, style = _MARKS[finding.level]
        out.say(f"{mark} {finding.subject}: {finding.text}", style=None if finding.level == "ok" else style)
    wrong = sum(finding.level == "wrong" for finding in findings)
    out.say(f"{wrong} of {len(findings)} things are wrong" if wrong else "everything that is needed is there")
    out.document([asdict(finding) for finding in findings])
    sys.exit(1 if wrong else 0)


def examine() -> Iterator[Finding]:
    """Look at everything, each thing whatever the others are; no look lasts longer than its time-outs."""
    from resources.errors import UserError
    from resources.settings import Settings

    again = "pip install -c constraints.txt -e . installs what belongs together"
    yield from _look("packages", again, _packages)
    try:
        settings = Settings.from_environment()
    except UserError as error:
        yield Finding("settings", "wrong", str(error))
        return
    yield Finding("settings", "ok", f"store {settings.store}, registry {settings.registry}")
    checks: list[tuple[str, str, Callable[[], Iterator[Finding]]]] = [
        ("benchmarks", "correct EVAL_BENCHMARKS or its files", lambda: _benchmarks(settings)),
        ("store", "correct EVAL_STORE, or what its server needs to let you in", lambda: _store(settings)),
        ("models", "correct EVAL_REGISTRY or EVAL_MODELS", lambda: _models(settings)),
        ("instance", "correct dagster.yaml in DAGSTER_HOME, or what it names", _instance),
        ("device", again, lambda: _device(settings)),
        ("cluster", "correct EVAL_ACCELERATORS", lambda: _cluster(settings)),
    ]
    for subject, advice, check in checks:
        yield from _look(subject, advice, check)


def _look(subject: str, advice: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    from resources.errors import UserError

    try:
        yield from check()
    except UserError as error:
        yield Finding(subject, "wrong", str(error))
    except Exception as error:  # what a library raises of a broken set-up may be anything; the rest goes on
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        yield Finding(subject, "wrong", f"{line}: {advice}")


def _packages() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    wrong = []
    needed = [Requirement(text) for text in requires("continuous-model-evaluation") or ()]
    for one in needed:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(one.name)
        except PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
        else:
            if not one.specifier.contains(found, prereleases=True):
                wrong.append(f"{one.name} is {found}, not {one.specifier}")
    python = ".".join(map(str, sys.version_info[:3]))
    if wrong:
        yield Finding("packages", "wrong", f"{'; '.join(wrong)}: pip install -c constraints.txt -e .")
    else:
        yield Finding("packages", "ok", f"Python {python}, torch {version('torch')}, "
                                        f"dagster {version('dagster')}")  # fmt: skip


def _benchmarks(settings: "Settings") -> Iterator[Finding]:
    from eval_assets.suite import benchmark_files, load_suite

    suite = load_suite(list(settings.benchmarks))
    yield Finding("benchmarks", "ok", f"{len(suite)} are declared and valid")
    files = {key: benchmark_files(spec, settings.data_mirror) for key, spec in suite.items()}
    from_hub = [key for key, of_one in files.items() if suite[key].source.hub and not of_one]
    missing = [f"{key} ({path})" for key, of_one in files.items() for path in of_one if not path.exists()]
    if missing:
        yield Finding(
            "data", "wrong", f"files are missing: {', '.join(missing)}: correct the benchmark's path"
        )
    if from_hub and os.environ.get("HF_HUB_OFFLINE") == "1":
        text = (
            f"no rows in {settings.data_mirror} for {', '.join(from_hub)}, and HF_HUB_OFFLINE=1: mirror them"
        )
        yield Finding("data", "note", text)
    elif from_hub:
        text = (
            f"{', '.join(from_hub)} come from the hub; the others are in {settings.data_mirror} or in files"
        )
        yield Finding("data", "note", text)
    elif not missing:
        yield Finding("data", "ok", f"rows of all benchmarks are in {settings.data_mirror} or in files")


def _store(settings: "Settings") -> Iterator[Finding]:
    from eval_assets.leaderboard import leaderboard_cells
    from resources.catalog import Catalog
    from resources.results import ResultsStore

    store = ResultsStore(settings.store)
    yield from _writable(store)
    catalog = Catalog(store)
    refresh = catalog.refresh()
    cells = len(leaderboard_cells(catalog))
    for note in refresh.notes:
        yield Finding("catalogue", "wrong" if refresh.damaged else "note", note)
    yield Finding("catalogue", "ok", f"{refresh.total} evaluations, {cells} cells have a current one")


def _writable(store: "ResultsStore") -> Iterator[Finding]:
    """Write, read back, remove; of a store elsewhere, compare clocks."""
    import shutil
    from contextlib import suppress

    name = f"doctor-{os.getpid()}.txt"
    path = f"{store.root}/{name}"
    before = time.time()
    try:
        with store.writing(name):
            store.put(name, b"written by the doctor; can be removed\n")
        skew = store.filesystem.modified(path).timestamp() - (before + time.time()) / 2
    finally:
        with suppress(OSError):
            store.filesystem.rm_file(path)
    if store.is_local:
        free = shutil.disk_usage(store.root).free
        level: Level = "ok" if free >= LITTLE_SPACE else "wrong"
        more = "" if level == "ok" else ": free some space, or set EVAL_STORE to another disk"
        yield Finding("store", level, f"{store.root} is writable, {free / 2**30:,.1f} GiB free{more}")
    else:
        yield Finding("store", "ok", f"{store.scheme}://{store.root} is writable")
        yield _clock("the store", skew)


def _clock(whose: str, skew: float) -> Finding:
    if abs(skew) > CLOCK_TOLERANCE:
        text = f"that of {whose} is {skew:+,.0f} s from this machine's: set both by NTP"
        return Finding("clock", "wrong", text)
    return Finding("clock", "ok", f"that of {whose} and this machine's differ by {abs(skew):.1f} s")


def _clocks(sources: "Sequence[RegistrySource]", settings: "Settings") -> Iterator[Finding]:
    """This machine's clock beside those of the registries, to the second; a local folder's is its own."""
    urls = [one.mlflow or (one.hub.endpoint or HUB if one.hub is not None else "") for one in sources]
    compared = 0
    for url in dict.fromkeys(url for url in urls if url.startswith(("http://", "https://"))):
        before = time.time()
        date = _date_of(url)
        if date is not None:
            compared += 1
            yield _clock(url, date - (before + time.time()) / 2)
    if not compared and "://" not in settings.store:
        yield Finding("clock", "ok", "no other machine's to compare with: store and registries are local")


def _date_of(url: str) -> float | None:
    """When a server says it is; None where it doesn't."""
    import urllib.error
    import urllib.request
    from email.utils import parsedate_to_datetime

    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10) as answer:
            date = answer.headers["Date"]
    except urllib.error.HTTPError as error:  # an answer, too
        date = error.headers["Date"]
    except OSError:  # what is looked at under "models" says so
        return None
    return parsedate_to_datetime(date).timestamp() if date else None


def _models(settings: "Settings") -> Iterator[Finding]:
    from eval_assets.grid.tracking import Tracking, open_tracked, tracked
    from resources.errors import UserError
    from resources.settings import VARIABLES

    # Who has named no registry may not need one.
    asked_for = settings.models is not None or settings.registry != str(
        Path(VARIABLES["registry"].default).absolute()
    )
    entries = tracked(settings).models
    for entry in entries:
        registry = open_tracked(settings, Tracking(models=(entry,)))
        try:
            found = registry.versions()
        except UserError as error:
            if asked_for:
                yield Finding("models", "wrong", str(error))
                continue
            found = None
        for skipped in found.skipped if found is not None else ():
            yield Finding("models", "note", f"{skipped.place} is left out: {skipped.reason}")
        if found is not None and found.keys:
            yield Finding("models", "ok", f"{len(found.keys)} versions in {registry.root}")
        elif asked_for:
            text = f"no version of {entry.names} in {registry.root}: put one there, or correct EVAL_MODELS"
            yield Finding("models", "wrong", text)
        else:
            text = (
                f"none in {registry.root}, where the grid's are ('make inputs' brings the demo's, yours go "
                "into <name>/<version>/); 'evaluate FOLDER' needs none"
            )
            yield Finding("models", "note", text)
    yield from _clocks([entry.registry for entry in entries], settings)


def _instance() -> Iterator[Finding]:
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        yield Finding("instance", "note", "DAGSTER_HOME is not set: no UI and no schedules; make ui sets it")
        return
    if not Path(home).is_dir():
        text = f"DAGSTER_HOME={home} is no folder: 'make instance' makes that of the make targets"
        yield Finding("instance", "wrong", text)
        return
    import dagster as dg
    from dagster._daemon.controller import get_daemon_statuses

    with dg.DagsterInstance.get() as instance:
        runs = instance.get_runs_count()
        launcher = type(instance.run_launcher).__name__
        yield Finding("instance", "ok", f"{home}: {runs:,} runs, started by {launcher}")
        yield from _database_clock(instance)
        if instance.is_ephemeral:
            return
        required = sorted(instance.get_required_daemon_types())
        statuses = get_daemon_statuses(instance, required, ignore_errors=True)
        beats = [one.last_heartbeat.timestamp for one in statuses.values() if one.last_heartbeat is not None]
        age = time.time() - max(beats) if beats else None
        if age is None:
            text = "has never run on this instance: 'make ui' or 'dagster-daemon run' starts it"
            yield Finding("daemon", "note", text)
        elif age > SILENT_DAEMON:
            text = f"last heartbeat {age / 60:,.0f} minutes ago: start it, or sensors and queues stand still"
            yield Finding("daemon", "wrong", text)
        else:
            late = [
                name
                for name, one in statuses.items()
                if one.last_heartbeat is None or time.time() - one.last_heartbeat.timestamp > SILENT_DAEMON
            ]
            if late:
                yield Finding("daemon", "wrong", f"no heartbeat of {', '.join(late)}: restart the daemon")
            else:
                yield Finding("daemon", "ok", f"last heartbeat {age:.0f} s ago")


def _database_clock(instance: "DagsterInstance") -> Iterator[Finding]:
    from dagster._core.storage.runs import SqlRunStorage

    storage = instance.run_storage
    if not isinstance(storage, SqlRunStorage):
        return
    with storage.connect() as connection:
        if connection.dialect.name == "postgresql":  # SQLite's clock is this machine's
            before = time.time()
            seconds = connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one()
            yield _clock("the instance's database", float(seconds) - (before + time.time()) / 2)


def _device(settings: "Settings") -> Iterator[Finding]:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    unused = sorted(str(path) for name in ("nvidia[0-9]*", "kfd") for path in DEVICES.glob(name))
    if settings.device == "cuda" and not gpus:
        text = "EVAL_DEVICE=cuda, but torch sees no GPU: install its CUDA build and the driver, or unset it"
        yield Finding("device", "wrong", text)
    elif settings.device == "mps" and not mps:
        yield Finding("device", "wrong", "EVAL_DEVICE=mps, but torch sees none: unset it")
    elif gpus and settings.device != "cpu":
        free, total = torch.cuda.mem_get_info(0)
        name = torch.cuda.get_device_name(0)
        text = f"{gpus} x {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        yield Finding("device", "ok", text)
    elif unused and settings.device == "auto":
        why = "sees none: look at the driver, and at what the container may use"
        if torch.version.cuda is None and torch.version.hip is None:
            why = "is a build for CPUs: install one for them"
        here = f"a GPU is here ({', '.join(unused)}), but torch {torch.__version__}"
        yield Finding("device", "wrong", f"{here} {why}, or say EVAL_DEVICE=cpu")
    else:
        what = "mps" if mps and settings.device != "cpu" else f"CPU, {settings.threads} threads"
        yield Finding("device", "ok", what)


def _cluster(settings: "Settings") -> Iterator[Finding]:
    if settings.accelerators is None:
        return
    from resources.launcher import catalogue_of

    names = ", ".join(catalogue_of(settings).accelerators) or "CPUs only"
    yield Finding("cluster", "ok", f"classes: {names}; 'make cluster-check' tries the cluster itself")
