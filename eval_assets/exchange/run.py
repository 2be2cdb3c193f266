"""One run of the harness, as its results file describes it; nothing in it is trusted."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from eval_assets.exchange.files import ResultsFile, time_in_name
from eval_assets.exchange.names import (
    OWN,
    Destination,
    Part,
    check_task_name,
    destinations_of,
    model_key_of,
    names_of,
)
from eval_assets.exchange.own import own_evaluation
from eval_assets.exchange.untrusted import number, section, text_number, whole
from eval_assets.suite.spec import BenchmarkSpec
from resources.errors import UserError
from resources.keys import check_dataset_key

MOST_TASKS = 10_000
Anything = TypeVar("Anything")


class Run:
    """One run of the harness: a results file that was read."""

    def __init__(
        self, file: ResultsFile, given: Mapping[str, str], suite: Mapping[str, BenchmarkSpec]
    ) -> None:
        """Raises UserError for a file without a model or without tasks."""
        self.file = file
        self.content = content = file.content
        self.model = model_key_of(content, given)
        self.refused: list[str] = []
        self.results = {
            str(name): entry for name, entry in content["results"].items() if isinstance(entry, dict)
        }
        if len(self.results) > MOST_TASKS:
            raise UserError(f"it has {len(self.results):,} tasks; at most {MOST_TASKS:,} are read")
        groups = self._groups()
        tasks = {
            name: self.shots(name)
            for name in self.results
            if name not in groups and name not in section(content, "groups")
        }
        self.destinations = self._own_destinations(suite)
        for destination in self.destinations:
            for part in destination.parts:
                tasks.pop(part.task, None)
        # Without the bad names first: one of them must not take a whole group apart.
        self.destinations += destinations_of(self._named(tasks), self._named(groups), suite)
        if not self.destinations:
            raise UserError("; ".join(self.refused) or "its 'results' have no task")

    def _named(self, found: dict[str, Anything]) -> dict[str, Anything]:
        """Those whose names make keys; the others are in `refused`."""
        usable = {}
        for name, value in found.items():
            try:
                check_task_name(name)
                usable[name] = value
            except UserError as error:
                self.refused.append(str(error))
        return usable

    def _own_destinations(self, suite: Mapping[str, BenchmarkSpec]) -> list[Destination]:
        """The evaluations of a file that was exported from here: it says itself which tasks make up which."""
        found = []
        for dataset in section(section(self.content, OWN), "evaluations"):
            try:
                own = own_evaluation(self.content, check_dataset_key(dataset))
                if own is None or not own.tasks or not own.tasks.keys() <= self.results.keys():
                    raise UserError("its tasks are not in the results")
            except UserError as error:
                self.refused.append(f"{OWN}.evaluations: {dataset[:80]!r}: {error}")
                continue
            shots = self.shots(next(iter(own.tasks)))
            parts = tuple(
                Part(task, group, names_of(dataset, task, shots)) for task, group in own.tasks.items()
            )
            found.append(Destination(dataset, parts, own.total, suite.get(dataset)))
        return found

    def _groups(self) -> dict[str, tuple[str, ...]]:
        """The tasks below each group that has values, however deep."""
        below: dict[str, list[str]] = {}
        for group, members in section(self.content, "group_subtasks").items():
            if isinstance(members, list) and all(isinstance(name, str) for name in members):
                below[group] = members
            else:
                self.refused.append(f"group_subtasks: {group[:80]!r} has no list of tasks; taken as no group")
        found = {}
        for group in section(self.content, "groups"):
            leaves: dict[str, None] = {}
            waiting, seen = [group], {group}
            while waiting:
                for name in below.get(waiting.pop(), ()):
                    if name in seen:
                        continue
                    seen.add(name)
                    if below.get(name):
                        waiting.append(name)
                    elif name in self.results:
                        leaves[name] = None
            if leaves:
                found[group] = tuple(leaves)
        return found

    def entry(self, name: str) -> dict[str, Any]:
        """The values of a task or a group."""
        entry = self.results.get(name) or section(self.content, "groups").get(name)
        return entry if isinstance(entry, dict) else {}

    def config(self, task: str) -> dict[str, Any]:
        return section(section(self.content, "configs"), task)

    def shots(self, task: str) -> int | None:
        """The number of solved examples, None where the file doesn't say."""
        overall = section(self.content, "config").get("num_fewshot")
        for value in (
            section(self.content, "n-shot").get(task),
            self.config(task).get("num_fewshot"),
            overall,
        ):
            found = whole(value, 1000)
            if found is not None:
                return found
        return None

    def size(self, task: str, which: str) -> int | None:
        """How many items a task has ('original') or was asked ('effective')."""
        counted = whole(section(section(self.content, "n-samples"), task).get(which))
        return counted if counted is not None else whole(self.entry(task).get("sample_len"))

    def times(self) -> tuple[str, str]:
        """When the run began and ended, in ISO 8601; the same at every import of the file."""
        began = number(self.content.get("date"))
        took = text_number(self.content.get("total_evaluation_time_seconds")) or 0.0
        try:
            start = datetime.fromtimestamp(began, UTC) if began is not None and began >= 0 else None
            if start is not None:
                return start.isoformat(), (start + timedelta(seconds=max(took, 0.0))).isoformat()
        except (OverflowError, OSError, ValueError):
            pass
        named = time_in_name(self.file.path)
        try:
            start = datetime.fromisoformat(named).replace(tzinfo=UTC) if named else None
        except ValueError:
            start = None
        start = start or datetime.fromtimestamp(self.file.path.stat().st_mtime, UTC)
        return start.isoformat(), start.isoformat()
