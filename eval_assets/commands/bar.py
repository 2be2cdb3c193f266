"""The progress bar of a grid that is being evaluated."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from eval_assets.evaluating.progress import Progress as CellProgress
from eval_assets.evaluating.progress import time_left
from eval_assets.evaluations import LOG_SECONDS
from resources.results import Cell


class Bar:
    """All cells and the one at work; on a pipe a line every `LOG_SECONDS` and a line a cell."""

    def __init__(self, console: Console, cells: int, samples: int, work: int) -> None:
        self._console = console
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

    def __enter__(self) -> "Bar":
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
        if self._console.is_terminal:
            return
        now = time.monotonic()
        if progress.done == progress.total:
            self._console.print(f"{progress.line()}  {figures}", markup=False)
        elif now - self._printed_at >= LOG_SECONDS:
            self._printed_at = now
            self._console.print(progress.line(), markup=False)

    def _left(self, work: int) -> str:
        resumed = sum(progress.work_resumed for progress in self._done.values())
        total = int(self._progress.tasks[0].total or 0)
        return time_left(time.monotonic() - self._started, work - resumed, total - work)
