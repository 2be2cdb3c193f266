"""What a safetensors file says about itself, read without loading it and believed only as far as it checks.

Format: 8 bytes little-endian header length, a JSON header, then the tensors' data without gaps
(https://github.com/huggingface/safetensors#format).
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from resources.errors import UserError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

_BITS = {
    **{
        "BOOL": 8,
        "U8": 8,
        "I8": 8,
        "F8_E4M3": 8,
        "F8_E5M2": 8,
        "F8_E8M0": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
    },
    **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16},
    **{"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64},
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's name, dtype as safetensors spells it, shape, and size in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_tensors(path: Path, what: str) -> list[Tensor]:
    """The tensors of a file.

    Raises UserError, starting with `what`, where the header contradicts itself or the size of the file.
    """
    size = path.stat().st_size
    where = f"{what}: {path.name}"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8:
            raise UserError(f"{where} is truncated: {size} bytes; copy it again")
        if length > MAX_HEADER_BYTES:
            raise UserError(f"{where} is not a safetensors file: it claims a header of {length:,} bytes")
        if 8 + length > size:
            raise UserError(
                f"{where} is truncated: its header has {length:,} bytes, the file {size:,}; copy it again"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        if not isinstance(header, dict):
            raise ValueError("no JSON object")
        header.pop("__metadata__", None)
        entries = sorted((_entry(name, value) for name, value in header.items()), key=lambda e: (e[1], e[2]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{where} is not a safetensors file: its header can't be read ({error})") from None
    end = 0
    for tensor, start, stop in entries:
        if start != end or stop - start != tensor.size:
            raise UserError(
                f"{where} is damaged: tensor {tensor.name!r} should take {tensor.size:,} bytes from "
                f"{end:,}, its header says {start:,} to {stop:,}; copy it again"
            )
        end = stop
    data = size - 8 - length
    if data != end:
        state = "is truncated" if data < end else "is damaged"
        raise UserError(
            f"{where} {state}: {data:,} bytes of tensors, its header names {end:,}; copy it again"
        )
    return [tensor for tensor, _, _ in entries]


def _entry(name: str, value: dict[str, object]) -> tuple[Tensor, int, int]:
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has a wrong shape or wrong offsets")
    bits = math.prod(shape) * _BITS[dtype]
    return Tensor(name, dtype, tuple(shape), -(-bits // 8)), offsets[0], offsets[1]


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def stated_size(read: Callable[[int, int], bytes]) -> int:
    """How many bytes a file should have by its own header; ``read(start, length)`` gives bytes of it.

    Only the header is read, and nothing else of it is checked. Raises ValueError where there is none (yet).
    """
    start = read(0, 8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
        raise ValueError("it doesn't begin with a header")
    raw = read(8, length)
    if len(raw) < length:
        raise ValueError(f"{len(raw):,} of {length:,} bytes of its header are there")
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(raw).items() if name != "__metadata__"]
        return 8 + length + int(max(ends, default=0))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ValueError("its header can't be read") from None
