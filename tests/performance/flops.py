"""Counting what a work costs at least: floating-point operations, from the token ids that were asked.

A multiplication and an addition are two operations. A token that goes through the layers costs
2 x non-embedding parameters, and 4 x hidden size in each layer for each position that it attends to; a
position whose next token is asked for costs 2 x hidden size x vocabulary in the output head. Nothing else is
counted, on neither side.
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")
_UNKNOWN = -1  # the id of a generated token: what comes after a prompt is the same wherever the prompt is


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the costs depend on. `width` is heads x the size of a head, `parameters` without embeddings."""

    layers: int
    hidden: int
    width: int
    vocabulary: int
    parameters: int

    @classmethod
    def read(cls, folder: Path) -> "ModelShape":
        """The shape of a model folder with one safetensors file."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with (folder / "model.safetensors").open("rb") as file:
            tensors = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return cls(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            width=heads * (config.get("head_dim") or hidden // heads),
            vocabulary=config["vocab_size"],
            parameters=sum(
                prod(tensor["shape"])
                for name, tensor in tensors.items()
                if name != "__metadata__" and not name.endswith(_EMBEDDINGS)
            ),
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """A sequence that a model reads, of whose last `outputs` positions the next token is asked for."""

    tokens: tuple[int, ...]
    outputs: int

    @classmethod
    def of_scoring(cls, context: Sequence[int], continuation: Sequence[int]) -> "Reading":
        """The last token is never read: its likelihood is the last output."""
        return cls((*context, *continuation[:-1]), len(continuation))

    @classmethod
    def of_generation(cls, prompt: Sequence[int], generated: int) -> "Reading":
        """A prompt and the tokens generated after it; the last one is never read."""
        return cls((*prompt, *[_UNKNOWN] * (generated - 1)), generated)


@dataclass(frozen=True, slots=True)
class Count:
    """`tokens` through the layers, positions that they `attended` to (their own too), positions `headed`."""

    tokens: int
    attended: int
    headed: int

    def flops(self, model: ModelShape) -> int:
        """Floating-point operations."""
        return (
            2 * model.parameters * self.tokens
            + 4 * model.width * model.layers * self.attended
            + 2 * model.hidden * model.vocabulary * self.headed
        )


def whole(readings: Iterable[Reading], *, all_headed: bool) -> Count:
    """The work of a method that reads every request whole, without padding, as lm_eval does.

    Requests that read the same tokens are read once. `all_headed`: the output head is computed at all
    positions (lm_eval's log-likelihoods), not only where it is asked for (`generate`).
    """
    outputs: dict[tuple[int, ...], int] = {}
    for reading in readings:
        outputs[reading.tokens] = max(outputs.get(reading.tokens, 0), reading.outputs)
    lengths = [len(tokens) for tokens in outputs]
    return Count(
        tokens=sum(lengths),
        attended=sum(length * (length + 1) // 2 for length in lengths),
        headed=sum(lengths) if all_headed else sum(outputs.values()),
    )


def least(readings: Iterable[Reading]) -> Count:
    """The least that any exact method computes: each distinct prefix once, the head where it is asked for."""
    tokens = attended = 0
    previous: tuple[int, ...] = ()
    owners: list[int] = []  # by depth: the first of the sorted readings that has this prefix
    headed: set[tuple[int, int]] = set()
    for number, reading in enumerate(sorted(readings, key=lambda reading: reading.tokens)):
        length, shared = len(reading.tokens), _shared(previous, reading.tokens)
        tokens += length - shared
        attended += (length * (length + 1) - shared * (shared + 1)) // 2
        owners[shared:] = [number] * (length - shared)
        headed.update((owners[depth], depth) for depth in range(length - reading.outputs, length))
        previous = reading.tokens
    return Count(tokens, attended, len(headed))


def _shared(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def readings_of(record: Mapping[str, Any]) -> list[Reading]:
    """A recorded request (tests/parity/ours.py, and `output_tokens` of a generated one) as what is read."""
    if record["type"] == "generate_until":
        return [Reading.of_generation(record["context_ids"], max(record["output_tokens"], 1))]
    if record["type"] == "loglikelihood":
        return [Reading.of_scoring(record["context_ids"], record["continuation_ids"])]
    readings, start = [], 0
    for context, scored in record["windows"]:
        # A window's context is the token that stands for a text's beginning, or the text before the window.
        before = record["ids"][start - context : start] if start else [_UNKNOWN] * context
        readings.append(Reading.of_scoring(before, record["ids"][start : start + scored]))
        start += scored
    return readings
