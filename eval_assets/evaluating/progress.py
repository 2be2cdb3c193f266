"""How far a cell is, how fast, and what the model's passes add up to; knows neither Dagster nor torch."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from eval_assets.suite.items import Item
from resources.engines import Step
from resources.results import Cell

Phase = Literal["load", "prefill", "decode", "score"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a cell is. `work` is in characters shown to the model, a stand-in for time.

    Tokens, seconds (of the model at work), batch and memory are of this run only, what it did not take over.
    """

    cell: Cell
    done: int
    total: int
    resumed: int
    """Samples of `done` that an earlier run had finished."""
    work_done: int
    work_resumed: int
    work_total: int
    prompt_tokens: int
    """Tokens that went through the model, scored continuations included; a shared one counts once."""
    output_tokens: int
    sequences: int
    """Sequences in the latest pass through the model."""
    memory_bytes: int
    seconds: float

    def line(self) -> str:
        """Everything in one line, for a log."""
        seconds = max(self.seconds, 1e-9)
        left = time_left(self.seconds, self.work_done - self.work_resumed, self.work_total - self.work_done)
        return (
            f"{self.cell.model} on {self.cell.dataset}: {self.done:,}/{self.total:,} samples, "
            f"{(self.done - self.resumed) / seconds:,.1f} samples/s, "
            f"{self.prompt_tokens / seconds:,.0f} prompt tokens/s, "
            f"{self.output_tokens / seconds:,.0f} output tokens/s, "
            f"{left}, batch {self.sequences}, {self.memory_bytes / 1e9:.2f} GB"
        )


def time_left(seconds: float, work_done: int, work_left: int) -> str:
    """How long the rest takes at the pace so far."""
    if work_left and not work_done:
        return "time left unknown"
    left = seconds * work_left / max(work_done, 1)
    return f"{int(left // 60)}:{int(left % 60):02d} left"


def work_of(item: Item) -> int:
    """Characters that the model reads and writes for an item; what progress is measured in."""
    shown = (
        len(item.description)
        + len(item.query)
        + sum(len(example.query) + len(example.answer) for example in item.examples)
    )
    if item.choices:
        return shown * len(item.choices) + sum(map(len, item.choices))
    return shown + sum(len(text) for text in item.references[:1]) + 1


@dataclass(slots=True)
class Stretch:
    """When a phase of the model began and last ended (`time.perf_counter`), in so many passes through it.

    Phases take turns: what of the time between is this one's is in `Meter.seconds`.
    """

    began: float
    ended: float = 0.0
    passes: int = 0


class Meter:
    """Adds up a run's seconds by phase, tokens, widest batch and peak memory.

    `seconds`: `load` the weights; `prefill` and `decode`, from the end of one pass through the model to the
    end of the next, so that tokenizing and planning are in them; `score`, with writing.
    """

    def __init__(self) -> None:
        self.seconds: dict[Phase, float] = {"load": 0.0, "prefill": 0.0, "decode": 0.0, "score": 0.0}
        self.prompt_tokens = self.output_tokens = 0
        self.sequences = self.most_sequences = 0
        self._memory_bytes = self._peak_bytes = 0
        self._phase: Phase = "prefill"
        self.stretches: dict[Phase, Stretch] = {}
        self._marked_at = time.perf_counter()

    @property
    def model_seconds(self) -> float:
        return self.seconds["prefill"] + self.seconds["decode"]

    @property
    def memory_bytes(self) -> int:
        """In use at the latest pass through the model, on its device."""
        return self._memory_bytes or _process_peak_bytes()

    @property
    def peak_device_bytes(self) -> int:
        """The most that was in use on the model's device after a pass through it."""
        return self._peak_bytes

    @property
    def peak_memory_bytes(self) -> int:
        """The most that was in use, of the model's device or of this process's memory, whichever is more."""
        return max(self._peak_bytes, _process_peak_bytes())

    def add(self, step: Step) -> None:
        """Take in a pass through the model that has just ended."""
        self._phase = step.phase
        stretch = self.stretches.setdefault(step.phase, Stretch(self._marked_at))
        self.add_model_time()
        stretch.ended = self._marked_at
        stretch.passes += 1
        self.prompt_tokens += step.prompt_tokens
        self.output_tokens += step.output_tokens
        self.sequences = step.sequences
        self.most_sequences = max(self.most_sequences, step.sequences)
        self._memory_bytes = step.memory_bytes
        self._peak_bytes = max(self._peak_bytes, step.memory_bytes)

    def start_model_time(self) -> None:
        """From now on the model is at work."""
        self._marked_at = time.perf_counter()

    def add_model_time(self) -> None:
        """Up to now the model was at work."""
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._marked_at
        self._marked_at = now

    @contextmanager
    def timed(self, phase: Phase) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start


def _process_peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes, Linux in KiB
