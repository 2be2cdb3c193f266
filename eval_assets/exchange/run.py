"""One run of the harness, as its results file describes it; nothing in it is trusted."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from eval_assets.exchange.files import ResultsFile, number, text_number, time_in_name, whole
from eval_assets.exchange.names import OWN, Part, Target, is_name, model_key_of, names_of, targets_of
from eval_assets.suite.spec import BenchmarkSpec
from resources.errors import UserError
from resources.keys import check_dataset_key
from resources.records import Estimate, MetricRow

MOST_TASKS = 10_000


class _OwnMetric(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    metric: str
    group: str | None
    value: float
    stderr: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    sampling_share: float | None


class OwnEvaluation(BaseModel):
    """What this project had exported of an evaluation, exactly."""

    model_config = ConfigDict(extra="forbid", strict=True)

    metrics: list[_OwnMetric]
    primary_metric: str
    higher_is_better: bool | None
    items_available: int
    tasks: dict[str, str | None]
    total: str | None


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
        self.targets = self._own_targets(suite)
        for target in self.targets:
            for part in target.parts:
                tasks.pop(part.task, None)
        try:
            self.targets += targets_of(tasks, groups, suite)
        except UserError:  # one bad name: the others one by one
            for name, shots in tasks.items():
                try:
                    self.targets += targets_of({name: shots}, {}, suite)
                except UserError as error:
                    self.refused.append(str(error))
        if not self.targets:
            raise UserError("; ".join(self.refused) or "its 'results' have no task")

    def _own_targets(self, suite: Mapping[str, BenchmarkSpec]) -> list[Target]:
        """The evaluations of a file that was exported from here: it says itself which tasks make up which."""
        targets = []
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
            targets.append(Target(dataset, parts, own.total, parts[0].names, suite.get(dataset)))
        return targets

    def _groups(self) -> dict[str, tuple[str, ...]]:
        """The tasks below each group that has values, however deep."""
        below = section(self.content, "group_subtasks")
        found = {}
        for group in section(self.content, "groups"):
            leaves: dict[str, None] = {}
            waiting, seen = [group], {group}
            while waiting:
                for name in below.get(waiting.pop()) or ():
                    if not isinstance(name, str) or name in seen:
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


def own_evaluation(content: Mapping[str, Any], dataset: str) -> OwnEvaluation | None:
    """What this project had exported of an evaluation, exactly; None of a run of the harness itself.

    Raises UserError where it is not as this project writes it.
    """
    entry = section(section(content, OWN), "evaluations").get(dataset)
    if entry is None:
        return None
    try:
        own = OwnEvaluation.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    numbers = [value for row in own.metrics for value in row.model_dump().values()]
    if any(isinstance(value, (int, float)) and number(value) is None for value in numbers):
        raise UserError("a number is not finite")
    if not all(is_name(row.metric) and (row.group is None or is_name(row.group)) for row in own.metrics):
        raise UserError("a metric or group has a name that can't be one")
    if any(not 0 <= row.n <= 2**53 for row in own.metrics) or not 0 <= own.items_available <= 2**53:
        raise UserError("a number of items is out of range")
    return own


def own_rows(own: OwnEvaluation) -> list[MetricRow]:
    """The metrics as they were exported."""
    rows = []
    for row in own.metrics:
        values = row.model_dump()
        metric, group = values.pop("metric"), values.pop("group")
        rows.append(MetricRow(metric, group, Estimate(**values)))
    return rows


def section(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name)
    return found if isinstance(found, dict) else {}


def short(value: Any, most: int = 80) -> str:
    text = value if isinstance(value, str) else ""
    return text.encode("utf-8", "replace").decode()[:most]


def finite(value: Any) -> Any:
    """JSON data without NaN and infinities, which a record may not hold."""
    if isinstance(value, dict):
        return {short(name, 200): finite(entry) for name, entry in list(value.items())[:MOST_TASKS]}
    if isinstance(value, (str, type(None))):
        return None if value is None else short(value, 400)
    if isinstance(value, bool):
        return value
    return number(value) if not isinstance(value, int) or abs(value) > 2**53 else value
