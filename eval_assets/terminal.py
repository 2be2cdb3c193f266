"""What a terminal shows: progress, tables, and where things are."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from types import TracebackType
from typing import Any

import duckdb
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from eval_assets.automation import no_versions_message
from eval_assets.evaluations import LOG_SECONDS, progress_to
from eval_assets.leaderboard import COLUMNS, leaderboard_rows
from eval_assets.partitions import SUITE
from eval_assets.progress import Progress as CellProgress
from eval_assets.progress import time_left
from resources.catalog import CATALOG, Catalog
from resources.errors import UserError
from resources.results import Cell, ResultsStore
from resources.settings import Settings

console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)  # a pipe has no width


def register_models(patterns: Sequence[str]) -> None:
    """Register the versions that match; say what each one is."""
    from eval_assets.runs import Runs

    runs = Runs()
    keys = runs.models(patterns)
    if not patterns:
        for skipped in runs.registry.versions().skipped:
            console.print(f"skipped {skipped.place}: {skipped.reason}", style="yellow", markup=False)
    runs.register(keys)
    table = Table(
        "model version", "architecture", "parameters", "weights", "context", "chat template", "digest"
    )
    for key in keys:
        record = runs.store.model_version(key)
        if record is None:
            continue
        table.add_row(
            key,
            record["architecture"],
            f"{record['parameters']:,}",
            f"{record['weight_bytes'] / 1e6:,.0f} MB",
            f"{record['context_length']:,}",
            "yes" if record["chat_template"] else "no",
            record["digest"][:12],
        )
    console.print(table)


def evaluate_grid(patterns: Sequence[str], benchmarks: Sequence[str], *, force: bool) -> None:
    """Evaluate what is missing, with a progress bar, then print the leaderboard and where things are."""
    from eval_assets.runs import RunFailedError, Runs

    started = time.monotonic()
    datasets = [_known_benchmark(key) for key in benchmarks] or list(SUITE)
    runs = Runs()
    models = runs.models(patterns)
    if not models:
        raise UserError(no_versions_message(runs.registry))
    for key in runs.register(models, only_changed=True):
        console.print(f"registered {key}")
    failures: list[str] = []
    for key, failure in runs.prepare(datasets).items():
        if failure is None:
            console.print(f"prepared   {key}")
        else:
            failures.append(failure)
            datasets.remove(key)
    cells = runs.cells(models, datasets)
    requests = runs.missing(cells, force=force)
    asked = {(request.model, dataset) for request in requests for dataset in request.datasets}
    todo = {cell: benchmark for cell, benchmark in cells.items() if (cell.model, cell.dataset) in asked}
    rest = {cell: benchmark for cell, benchmark in cells.items() if cell not in todo}
    elsewhere = 0 if force else len(rest) - len(runs.finished(rest))
    if elsewhere:
        console.print(f"{elsewhere} of {len(cells)} cells are being evaluated by other runs.")
    elif not todo:
        console.print(f"All {len(cells)} cells are evaluated already: nothing to do.")
    if todo:
        new = {cell: b for cell, b in todo.items() if force or runs.store.committed(cell) is None}
        items = sum(benchmark.count for benchmark in new.values())
        console.print(f"{len(new)} of {len(cells)} cells to evaluate, {items:,} samples.")
        if len(new) < len(todo):
            console.print(f"{len(todo) - len(new)} cells are in the store already and are only recorded.")
        with _Bar(len(new), items, runs.work_left(new)) as bar, progress_to(bar.update):
            for request in requests:
                try:
                    runs.evaluate(request, force=force)
                except RunFailedError as error:
                    failures.append(str(error))
    verdicts: list[dict[str, Any]] = []
    try:
        verdicts += runs.judge(models)
    except RunFailedError as error:
        failures.append(str(error))
    try:
        runs.refresh_leaderboard()
        show_leaderboard()
        show_verdicts(verdicts)
    except UserError as error:
        failures.append(str(error))
    _say_where(runs.settings.store, time.monotonic() - started, models, datasets)
    if failures:
        raise UserError("; ".join(failures))


def show_leaderboard() -> None:
    """Print the leaderboard of all committed evaluations."""
    catalog = _catalog()
    rows = leaderboard_rows(catalog)
    if not rows:
        raise UserError(
            f"no evaluations in {Settings.from_environment().store} yet: run 'make demo' or 'make evaluate'"
        )
    table = Table(*COLUMNS)
    for column in (3, 4, 5):
        table.columns[column].justify = "right"
    for position, row in enumerate(rows):
        last = position + 1 == len(rows) or rows[position + 1].benchmark != row.benchmark
        table.add_row(*row.cells(), end_section=last)
    console.print(table)


def show_verdicts(verdicts: Sequence[Mapping[str, Any]]) -> None:
    """Print what was decided on model versions, and why."""
    for verdict in verdicts:
        against = f" against {verdict['baseline']}" if verdict["baseline"] else ""
        colour = {"failed": "red", "undecided": "yellow"}.get(verdict["status"], "green")
        console.print(f"[{colour}]{verdict['model']}{against}: {verdict['status']}[/], {verdict['action']}")
        console.print(f"  {verdict['reason']}", markup=False, soft_wrap=True)


def run_query(query: str) -> None:
    """Print the result of one query as a table."""
    catalog = _catalog()
    with catalog.connect() as connection:
        try:
            _print_result(connection.execute(query))
        except duckdb.Error as error:
            raise UserError(f"SQL: {str(error).splitlines()[0]}") from error


def sql_shell() -> None:
    """Read queries from the terminal until it ends; views and columns by ``.tables``."""
    catalog = _catalog()
    with catalog.connect() as connection:
        console.print(
            "Tables and views: " + ", ".join(_relations(connection)) + ".  End with ; — leave with Ctrl-D."
        )
        for query in _queries():
            try:
                _print_result(connection.execute(query))
            except duckdb.Error as error:
                console.print(f"SQL: {error}", style="red", markup=False)


def list_benchmarks() -> None:
    """Print the benchmarks that the YAML files declare; loading them has validated them."""
    table = Table("key", "task", "few-shot", "metrics", "source", "title")
    for key, spec in SUITE.items():
        fewshot = len(spec.fewshot.examples) or spec.fewshot.n
        source = spec.source.hub or spec.source.path or ""
        metrics = ", ".join(metric.name for metric in spec.metrics)
        table.add_row(key, spec.task, str(fewshot), metrics, source, spec.title)
    console.print(table)


def _catalog() -> Catalog:
    catalog = Catalog(ResultsStore(Settings.from_environment().store))
    catalog.refresh()
    return catalog


def _known_benchmark(key: str) -> str:
    if key in SUITE:
        return key
    near = get_close_matches(key, SUITE, n=1)
    raise UserError(
        f"unknown benchmark {key!r}{f': did you mean {near[0]!r}?' if near else ''} "
        "('make check-benchmarks' lists them; your own go into a folder named by EVAL_BENCHMARKS)"
    )


def _say_where(store: str, seconds: float, models: Sequence[str], datasets: Sequence[str]) -> None:
    console.print(f"\nDone in {seconds:,.0f} s. Everything is in {store}:", soft_wrap=True)
    console.print(
        "  evaluations/<benchmark>/<model>/<id>/   samples.parquet, metrics.parquet, evaluation.json"
    )
    console.print(f"  {CATALOG}                          the same as tables for DuckDB")
    console.print("\nTry next:")
    console.print("  make ui                                 the grid in Dagster's web UI")
    console.print('  Q="select * from comparisons" make -s sql')
    example = f"MODELS='{models[-1]}' BENCHMARKS={datasets[0] if datasets else 'hellaswag'}"
    console.print(f"  EVAL_LIMIT=500 make evaluate {example}", markup=False)


class _Bar:
    """All cells and the one at work; on a pipe a line every `LOG_SECONDS` and a line a cell."""

    def __init__(self, cells: int, samples: int, work: int) -> None:
        self._cells, self._samples = cells, samples
        self._done: dict[Cell, CellProgress] = {}
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._progress.add_task("starting", total=work, figures="")
        self._printed_at = time.monotonic()

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, progress: CellProgress) -> None:
        """Take in how far a cell is."""
        self._done[progress.cell] = progress
        done = self._done.values()
        finished = sum(p.done == p.total for p in done)
        samples = sum(p.done for p in done)
        work = sum(p.work_done for p in done)
        figures = (
            f"cell {min(finished + 1, self._cells)}/{self._cells}  {samples:,}/{self._samples:,} samples  "
            f"{self._left(work)}"
        )
        self._progress.update(self._task, completed=work, description=progress.line(), figures=figures)
        if console.is_terminal:
            return
        now = time.monotonic()
        if progress.done == progress.total:
            console.print(f"{progress.line()}  {figures}", markup=False)
        elif now - self._printed_at >= LOG_SECONDS:
            self._printed_at = now
            console.print(progress.line(), markup=False)

    def _left(self, work: int) -> str:
        resumed = sum(progress.work_resumed for progress in self._done.values())
        total = int(self._progress.tasks[0].total or 0)
        return time_left(time.monotonic() - self._started, work - resumed, total - work)


def _print_result(result: duckdb.DuckDBPyConnection) -> None:
    if result.description is None:
        return
    table = Table(*[column[0] for column in result.description])
    for row in result.fetchmany(1000):
        table.add_row(*[_cell(value) for value in row])
    console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "" if value is None else str(value)
    return text.replace("[", r"\[") if len(text) <= 200 else text[:197].replace("[", r"\[") + "..."


def _relations(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = connection.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'main' ORDER BY 1"
    )
    return [row[0] for row in rows.fetchall()]


def _queries() -> Iterator[str]:
    """Each query that is typed, up to its semicolon."""
    with suppress(ImportError):  # importing it gives input() line editing and a history
        import readline  # noqa: F401
    buffered: list[str] = []
    while True:
        try:
            line = input("sql> " if not buffered else "...> ") if sys.stdin.isatty() else input()
        except EOFError:
            if buffered:
                yield "\n".join(buffered)
            return
        except KeyboardInterrupt:
            buffered.clear()
            print()
            continue
        if line.strip() == ".tables" and not buffered:
            yield "SELECT table_name FROM information_schema.tables ORDER BY 1"
            continue
        buffered.append(line)
        if line.rstrip().endswith(";"):
            yield "\n".join(buffered)
            buffered.clear()
