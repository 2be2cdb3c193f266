"""The protocol between tasks and the software that runs a model.

Tasks speak text, engines speak tokens: a task never sees a token id and an engine never sees a
benchmark. An engine is given *all* requests of a cell at once, so that it may order, batch and share
them as it likes, and yields each result with the index of its request as soon as it is known.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

ChatMessage: TypeAlias = Mapping[str, str]
"""One turn of a conversation: ``{"role": "system" | "user" | "assistant", "content": text}``."""


@dataclass(frozen=True, slots=True)
class LoglikelihoodRequest:
    """How likely is `continuation` after `context`? An empty context means the start of a text."""

    context: str
    continuation: str


@dataclass(frozen=True, slots=True)
class LoglikelihoodResult:
    """`loglikelihood`: nats over all the continuation's tokens. `is_greedy`: every token is the argmax."""

    loglikelihood: float
    is_greedy: bool
    prompt_tokens: int
    continuation_tokens: int
    truncated_tokens: int
    """Tokens cut from the left of the context because the input was longer than the model's context."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Continue `prompt` greedily until a stop string, an end-of-text token or `max_new_tokens`."""

    prompt: str
    stop: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """`text` excludes the stop string and anything after it.

    `finish_reason` "nan": the model's output was not a number, so that `text` is worth nothing.
    """

    text: str
    finish_reason: Literal["stop", "eos", "length", "nan"]
    prompt_tokens: int
    output_tokens: int
    truncated_tokens: int


@dataclass(frozen=True, slots=True)
class RollingRequest:
    """How likely is a whole text, of any length, read in disjoint windows of the model's context?"""

    text: str


@dataclass(frozen=True, slots=True)
class RollingResult:
    """`loglikelihood`: nats, summed over every token of the text."""

    loglikelihood: float
    tokens: int


Request: TypeAlias = LoglikelihoodRequest | GenerationRequest | RollingRequest
Result: TypeAlias = LoglikelihoodResult | GenerationResult | RollingResult


class Engine(Protocol):
    """Runs one model. Not thread-safe; one engine lives as long as its process or until `close`.

    A result whose log-likelihood is NaN or infinite is yielded as it is: judging it is not the engine's work.
    """

    @property
    def description(self) -> Mapping[str, Any]:
        """What the numbers depend on: device, dtype, threads, context length, versions, ... (JSON-able)."""
        ...

    @property
    def fingerprint_fields(self) -> Mapping[str, Any]:
        """The settings that may change a score beyond rounding, known before weights are loaded."""
        ...

    def apply_chat_template(self, messages: Sequence[ChatMessage]) -> str:
        """Render a conversation as the model's prompt, ending where the assistant's answer begins."""
        ...

    def loglikelihoods(
        self, requests: Sequence[LoglikelihoodRequest]
    ) -> Iterator[tuple[int, LoglikelihoodResult]]:
        """Yield ``(index of the request, result)`` for each request once, in any order."""
        ...

    def generations(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, GenerationResult]]:
        """Yield ``(index of the request, result)`` for each request once, in any order."""
        ...

    def rolling_loglikelihoods(
        self, requests: Sequence[RollingRequest]
    ) -> Iterator[tuple[int, RollingResult]]:
        """Yield ``(index of the request, result)`` for each request once, in any order."""
        ...

    def close(self) -> None:
        """Free the weights."""
        ...
