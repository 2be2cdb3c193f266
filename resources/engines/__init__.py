"""The protocol between tasks and the software that runs a model.

Tasks speak text, engines speak tokens: a task never sees a token id and an engine never sees a
benchmark. An engine is given *all* requests of a cell at once, so that it may order, batch and share
them as it likes, and yields each result with the index of its request as soon as it is known.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
class Sampling:
    """Draw each token at random instead of taking the likeliest.

    `temperature` is above 0; `top_k` 0 and `top_p` 1 leave all tokens. The draws depend on `seed`, the prompt
    and the request's `draw`, and on nothing else that is asked or computed beside it.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 1234


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Continue `prompt` until a stop string, an end-of-text token or `max_new_tokens`.

    Greedily without `sampling`. `draw` numbers the outputs that are asked for one prompt: each has random
    numbers of its own.
    """

    prompt: str
    stop: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling | None = None
    draw: int = 0


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


@dataclass(frozen=True, slots=True)
class Failure:
    """What is yielded for a request that can't be answered although others can: why, in one line."""

    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """One pass through the model, told to `Engine.on_step` when it is done.

    `prompt_tokens` and `output_tokens` went through the model (a shared one counts once), for `sequences`
    sequences. `memory_bytes` is what the process, or the accelerator, has in use.
    """

    phase: Literal["prefill", "decode"]
    seconds: float
    prompt_tokens: int
    output_tokens: int
    sequences: int
    memory_bytes: int


Request: TypeAlias = LoglikelihoodRequest | GenerationRequest | RollingRequest
Result: TypeAlias = LoglikelihoodResult | GenerationResult | RollingResult | Failure


class Engine(Protocol):
    """Runs one model. Not thread-safe; one engine lives as long as its process or until `close`.

    A result whose log-likelihood is NaN or infinite is yielded as it is: judging it is not the engine's work.

    Each operation takes all requests of a cell, also those that an earlier run has answered (`answered`, by
    their indices): they are planned but neither computed nor yielded. So a batch has the same content, and
    its numbers are the same to the last bit, wherever an earlier run stopped.
    """

    on_step: Callable[[Step], None]
    """Called after each pass through the model; does nothing unless it is set."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What the numbers depend on: device, dtype, threads, context length, versions, ... (JSON-able)."""
        ...

    @property
    def fingerprint_fields(self) -> Mapping[str, Any]:
        """The settings that may change a score beyond rounding, known before weights are loaded."""
        ...

    def apply_chat_template(self, messages: Sequence[ChatMessage]) -> str:
        """Render a conversation as the model's prompt, ending where the assistant's answer begins.

        A last message of the assistant's is the answer's beginning: the prompt ends with its text.
        """
        ...

    def loglikelihoods(
        self, requests: Sequence[LoglikelihoodRequest], answered: Collection[int] = ()
    ) -> Iterator[tuple[int, LoglikelihoodResult | Failure]]:
        """Yield ``(index of the request, result)`` for each request once, in any order."""
        ...

    def generations(
        self, requests: Sequence[GenerationRequest], answered: Collection[int] = ()
    ) -> Iterator[tuple[int, GenerationResult | Failure]]:
        """Yield ``(index of the request, result)`` for each request once, in any order."""
        ...

    def rolling_loglikelihoods(
        self, requests: Sequence[RollingRequest], answered: Collection[int] = ()
    ) -> Iterator[tuple[int, RollingResult | Failure]]:
        """Yield ``(index of the request, result)`` for each request once, in any order."""
        ...

    def close(self) -> None:
        """Free the weights."""
        ...
