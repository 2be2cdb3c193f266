"""What should run: one pure function from the state of the world to the runs to request.

It looks at what is there and what is running and never at events. So it is right after any crash, lost or
repeated tick, restart or clock jump; and asking again while what it asked for is in flight asks for nothing.
"""

import hashlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum


def short(text: str) -> str:
    """A fingerprint as tasks carry it: 16 digits, for whatever text says what a task rests on."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Work(StrEnum):
    """The kinds of work, in the order in which one makes the next possible."""

    REGISTER = "register"
    PREPARE = "prepare"
    EVALUATE = "evaluate"
    JUDGE = "judge"


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work. A changed `fingerprint` makes it another one, with a clean record.

    REGISTER has a model and the revision of its files, PREPARE a dataset and the signature of its source,
    EVALUATE both and the cell's fingerprint, JUDGE a model and what its verdict would rest on.
    """

    work: Work
    model: str = ""
    dataset: str = ""
    fingerprint: str = ""

    @property
    def place(self) -> tuple[Work, str, str]:
        """What can be in flight only once, whatever its fingerprint."""
        return self.work, self.model, self.dataset


@dataclass(frozen=True, slots=True)
class Failures:
    """How a task has failed: so often in a row, last at (seconds since the epoch), and why.

    `permanent`: trying again can't help, its input must change.
    """

    times: int
    last_at: float
    reason: str
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient the function is. Seconds; a wait doubles with each failure."""

    tries: int = 3
    first_wait: float = 60.0
    longest_wait: float = 3600.0
    requests_at_once: int = 100

    def wait_after(self, times: int) -> float:
        """How long to wait after the n-th failure in a row."""
        return float(min(self.first_wait * 2 ** (times - 1), self.longest_wait))


@dataclass(frozen=True, slots=True)
class Version:
    """A tracked model version in its registry.

    `revision` is what its registry says of its files now, `registered` whether they are recorded as they are.
    `baseline` is the key of the version that it is compared with, if there is one, and `family` are the
    datasets that gate it. `judged` is the fingerprint of its latest verdict; `reopened` says that it is to be
    given again all the same: a cell that it lacked has come since, or a crash came between it and the alias.
    """

    model: str
    revision: str
    registered: bool
    datasets: tuple[str, ...]
    baseline: str | None = None
    judged: str | None = None
    reopened: bool = False


@dataclass(frozen=True, slots=True)
class World:
    """All that the function knows. Versions are in the order of their registration."""

    now: float
    versions: tuple[Version, ...]
    signatures: Mapping[str, str]
    """Dataset -> signature of its source as it is today."""
    prepared: Set[str]
    """Datasets whose stored items are those of today's source."""
    fingerprints: Mapping[tuple[str, str], str]
    """(model, dataset) -> today's fingerprint, of every registered version and prepared dataset."""
    finished: Set[tuple[str, str, str]]
    """(model, dataset, fingerprint) of every evaluation that is committed and shown."""
    in_flight: Set[tuple[Work, str, str]]
    """`Task.place` of what is queued or running."""
    failures: Mapping[Task, Failures] = field(default_factory=dict)
    not_looked_at: tuple[str, ...] = ()
    """What there was no time to look at, in words for a person; of that what was recorded is believed."""


@dataclass(frozen=True, slots=True)
class Request:
    """One run. Of an evaluation it is a model's row: `tasks` are its cells."""

    work: Work
    tasks: tuple[Task, ...]

    @property
    def model(self) -> str:
        return self.tasks[0].model

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(task.dataset for task in self.tasks)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to request now, what waits for a later try (until when), and what is given up."""

    requests: tuple[Request, ...]
    waiting: Mapping[Task, float]
    given_up: Mapping[Task, Failures]
    left: int
    """Requests that the next call makes, since `Policy.requests_at_once` are made at a time."""


def reconcile(world: World, policy: Policy = Policy()) -> Decision:
    """The runs to request so that everything wanted comes to be; pure.

    A version that others are compared with comes before them. A task that failed waits, twice as long each
    time; after `Policy.tries` failures, or one that is permanent, it is given up until its fingerprint
    changes or a person clears its record.
    """
    ready: list[Task] = []
    waiting: dict[Task, float] = {}
    given_up: dict[Task, Failures] = {}

    def sort(tasks: Iterable[Task]) -> None:
        for task in tasks:
            failed = world.failures.get(task)
            if failed is not None and (failed.permanent or failed.times >= policy.tries):
                given_up[task] = failed
            elif task.place in world.in_flight:
                continue
            elif failed is not None and 0 <= world.now - failed.last_at < policy.wait_after(failed.times):
                # A clock that was set back would make the wait endless: a failure to come counts as over.
                waiting[task] = failed.last_at + policy.wait_after(failed.times)
            else:
                ready.append(task)

    sort(_wanted(world))
    sort(list(_judgements(world, given_up)))
    requests = list(_rows(ready, world.failures))
    return Decision(
        tuple(requests[: policy.requests_at_once]),
        waiting,
        given_up,
        max(len(requests) - policy.requests_at_once, 0),
    )


def _wanted(world: World) -> Iterable[Task]:
    """Everything but verdicts that is not there yet, what others need first."""
    baselines = {version.baseline for version in world.versions}
    ordered = sorted(world.versions, key=lambda version: version.model not in baselines)
    needed = {dataset for version in world.versions for dataset in version.datasets}
    for version in ordered:
        if not version.registered:
            yield Task(Work.REGISTER, version.model, "", version.revision)
    for dataset in sorted(needed - set(world.prepared)):
        yield Task(Work.PREPARE, "", dataset, world.signatures.get(dataset, ""))
    for version in ordered:
        if not version.registered:
            continue
        for dataset in version.datasets:
            fingerprint = world.fingerprints.get((version.model, dataset))
            if fingerprint is None or dataset not in world.prepared:
                continue
            if (version.model, dataset, fingerprint) not in world.finished:
                yield Task(Work.EVALUATE, version.model, dataset, fingerprint)


def _judgements(world: World, given_up: Mapping[Task, Failures]) -> Iterable[Task]:
    """Verdicts that can be given: every cell of the version and of its baseline is done or given up.

    Of each model one at a time, in the order of registration: a verdict can move the alias that the next
    version is compared with.
    """
    settled = {(task.model, task.dataset) for task in given_up if task.work is Work.EVALUATE}
    settled |= {(model, dataset) for model, dataset, fingerprint in world.finished
                if world.fingerprints.get((model, dataset)) == fingerprint}  # fmt: skip
    unprepared = {task.dataset for task in given_up if task.work is Work.PREPARE}
    known = {version.model: version for version in world.versions}
    held = {model.rpartition("@")[0] for work, model, _ in world.in_flight if work is Work.JUDGE}
    for version in world.versions:
        name = version.model.rpartition("@")[0]
        if not version.registered or not version.datasets:
            continue
        if version.baseline == version.model and not version.reopened:
            continue  # in production: it is not compared with itself
        family = [dataset for dataset in version.datasets if dataset not in unprepared]
        compared = [version.model]
        baseline = known.get(version.baseline or "")
        if baseline is not None and baseline.registered:
            compared.append(baseline.model)
        elif baseline is not None and not _given_up(baseline, given_up):
            continue  # it is evaluated first
        if not all((model, dataset) in settled for model in compared for dataset in family):
            continue
        task = judgement(version, world.fingerprints)
        if (version.judged == task.fingerprint and not version.reopened) or name in held:
            continue
        if task not in world.failures:
            held.add(name)  # the next one is compared with what production is then
        yield task


def judgement(version: Version, fingerprints: Mapping[tuple[str, str], str]) -> Task:
    """The verdict on a version as a task: another one once any of its cells has another fingerprint.

    Not so when the alias of its baseline moves: a version is judged against what was in production then.
    """
    cells = [f"{dataset}={fingerprints.get((version.model, dataset), '')}" for dataset in version.datasets]
    return Task(Work.JUDGE, version.model, "", short("\n".join(cells)))


def _given_up(version: Version, given_up: Mapping[Task, Failures]) -> bool:
    return Task(Work.REGISTER, version.model, "", version.revision) in given_up


def _rows(tasks: Iterable[Task], failures: Mapping[Task, Failures]) -> Iterable[Request]:
    """One request a model for all its cells, so that its weights are loaded once; one a task otherwise.

    A cell that failed before gets a run of its own: what is wrong with it must not hold up the others.
    """
    rows: dict[tuple[str, ...], list[Task]] = {}
    for task in tasks:
        together = task.work is Work.EVALUATE and task not in failures
        rows.setdefault((task.work, task.model, "" if together else task.dataset), []).append(task)
    for row in rows.values():
        yield Request(row[0].work, tuple(row))
