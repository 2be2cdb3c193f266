"""An engine without a model: its numbers depend on the batch, as a real one's last bits do."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from resources.engines import (
    ChatMessage,
    Failure,
    GenerationRequest,
    GenerationResult,
    LoglikelihoodRequest,
    LoglikelihoodResult,
    RollingRequest,
    RollingResult,
    Step,
)


def number(*parts: object) -> float:
    """Between 0 and 1, from a hash."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:13], 16) / 16**13


class FakeEngine:
    """Answers in batches of `batch`. `failing` are continuations that can't be answered."""

    description: Mapping[str, Any] = {"engine": "fake", "device": "cpu"}
    fingerprint_fields: Mapping[str, Any] = {"dtype": "float32"}

    def __init__(self, batch: int = 8, failing: Collection[str] = (), memory_bytes: int = 0) -> None:
        self.on_step: Callable[[Step], None] = lambda _: None
        self.batch, self.failing, self.memory_bytes = batch, failing, memory_bytes
        self.before_batch: Callable[[], None] = lambda: None
        self.computed: list[int] = []
        self.batches = 0

    def apply_chat_template(self, messages: Sequence[ChatMessage]) -> str:
        return "\n".join(message["content"] for message in messages)

    def loglikelihoods(
        self, requests: Sequence[LoglikelihoodRequest], answered: Collection[int] = ()
    ) -> Iterator[tuple[int, LoglikelihoodResult | Failure]]:
        for start in range(0, len(requests), self.batch):
            batch = range(start, min(start + self.batch, len(requests)))
            left = [index for index in batch if index not in answered]
            if not left:
                continue
            self.before_batch()
            self.batches += 1
            noise = number([requests[index] for index in batch]) * 1e-5
            self.on_step(Step("prefill", 0.01, 10 * len(left), 0, len(left), self.memory_bytes))
            for index in left:
                self.computed.append(index)
                if requests[index].continuation in self.failing:
                    yield index, Failure("it is too long")
                else:
                    value = -10 * number(requests[index]) + noise
                    yield index, LoglikelihoodResult(value, False, 10, 2, 0)

    def generations(
        self, requests: Sequence[GenerationRequest], answered: Collection[int] = ()
    ) -> Iterator[tuple[int, GenerationResult | Failure]]:
        for index in range(len(requests)):
            if index not in answered:
                self.on_step(Step("prefill", 0.01, 10, 0, 1, self.memory_bytes))
                self.on_step(Step("decode", 0.01, 0, 3, 1, self.memory_bytes))
                yield index, GenerationResult("Paris", "stop", 10, 3, 0)

    def rolling_loglikelihoods(
        self, requests: Sequence[RollingRequest], answered: Collection[int] = ()
    ) -> Iterator[tuple[int, RollingResult | Failure]]:
        for index in range(len(requests)):
            if index not in answered:
                yield index, RollingResult(-10.0, 5)

    def close(self) -> None: ...
