"""Measures each pass through the model, tells whoever listens, and corrects the memory budget by it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from resources.engines import Step
from resources.engines.memory import Memory, PeakMeter, most_in_use

_MEASURED_BATCHES = 4


class BatchTooLargeError(Exception):
    """A batch fitted, but took so much that the rest should be planned again, smaller."""


class Meter:
    """Of one operation of an engine."""

    def __init__(self, device: torch.device, memory: Memory, listener: Callable[[Step], None]) -> None:
        self._device = device
        self._memory = memory
        self._listener = listener
        self._peak = PeakMeter(device)
        self._measured = 0

    @contextmanager
    def step(
        self,
        phase: Literal["prefill", "decode"],
        *,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
        sequences: int,
    ) -> Iterator[None]:
        """Around one pass. Raises BatchTooLargeError after one that took far more than was planned."""
        measures = phase == "prefill" and self._measured < _MEASURED_BATCHES
        if measures:
            self._peak.start()
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        too_large = False
        if measures:
            self._measured += 1
            too_large = self._memory.observe(prompt_tokens, self._peak.taken())
        self.tell(
            phase, seconds, prompt_tokens=prompt_tokens, output_tokens=output_tokens, sequences=sequences
        )
        if too_large:
            raise BatchTooLargeError

    def tell(
        self,
        phase: Literal["prefill", "decode"],
        seconds: float,
        *,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
        sequences: int,
    ) -> None:
        """Pass on what a pass did that was timed elsewhere."""
        self._listener(
            Step(phase, seconds, prompt_tokens, output_tokens, sequences, most_in_use(self._device))
        )
