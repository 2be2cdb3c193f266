"""How many tokens fit into memory: derived from the model's configuration, corrected by what happens."""

import os
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resources.engines.checkpoint import one_line
from resources.errors import UserError

_GIB = 1 << 30
_SHARE_OF_FREE = {"cpu": 0.7}
_SHARE_ON_ACCELERATOR = 0.9
_SHARE_FOR_BATCHES = 0.4
"""Of the budget; the rest is for keys and values of running texts and of paths that are still followed."""
_CAP_ON_CPU = 2048
_CAP_ON_ACCELERATOR = 16384
_SEQUENCES_ON_CPU = 128
_SEQUENCES_ON_ACCELERATOR = 512
_FLOOR_TOKENS = 16
_SLACK = 1.3
"""An estimate that was wrong by less than this is no reason to plan again."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`tokens` go through the model at a time; `sequences` are written, with room for `cached_tokens`."""

    tokens: int
    sequences: int
    cached_tokens: int

    def halved(self) -> "Limits":
        """Half of everything, down to one sequence and a few tokens."""
        return Limits(
            max(self.tokens // 2, min(_FLOOR_TOKENS, self.tokens)),
            max(self.sequences // 2, 1),
            max(self.cached_tokens // 2, 1),
        )

    def doubled(self, most: "Limits") -> "Limits":
        """Twice everything, up to `most`."""
        return Limits(
            min(self.tokens * 2, most.tokens),
            min(self.sequences * 2, most.sequences),
            min(self.cached_tokens * 2, most.cached_tokens),
        )

    @property
    def smallest(self) -> bool:
        """Whether halving changes nothing any more."""
        return self.sequences == 1 and self.tokens <= _FLOOR_TOKENS


class Memory:
    """The budget of one model on one device."""

    def __init__(
        self, model: Any, *, key_value_bytes: int, budget_bytes: int | None, batch_tokens: int | None
    ) -> None:
        """`budget_bytes` is for the process in all, weights included; None measures what is free.

        Raises UserError where the weights alone are over the budget.
        """
        self._device = model.device
        on_cpu = self._device.type == "cpu"
        used = in_use(self._device)
        if budget_bytes is not None and budget_bytes <= used:
            raise UserError(
                f"EVAL_MEMORY_GB={budget_bytes / _GIB:g} is all taken: the process with the model's weights "
                f"has {used / _GIB:.2f} GB in use; raise it or unset it"
            )
        share = _SHARE_OF_FREE.get(self._device.type, _SHARE_ON_ACCELERATOR)
        self._budget = budget_bytes - used if budget_bytes is not None else int(free(self._device) * share)
        self._token_bytes = _activation_bytes(model)
        self._key_value_bytes = max(key_value_bytes, 1)
        self._cap = batch_tokens or (_CAP_ON_CPU if on_cpu else _CAP_ON_ACCELERATOR)
        self._sequences = _SEQUENCES_ON_CPU if on_cpu else _SEQUENCES_ON_ACCELERATOR

    @property
    def limits(self) -> Limits:
        """What fits, as far as is known now."""
        tokens = int(self._budget * _SHARE_FOR_BATCHES / self._token_bytes)
        cached = int(self._budget * (1 - _SHARE_FOR_BATCHES) / self._key_value_bytes)
        return Limits(min(max(tokens, _FLOOR_TOKENS), self._cap), self._sequences, max(cached, 1))

    def observe(self, tokens: int, taken: int) -> bool:
        """Learn that a batch of `tokens` took `taken` bytes; whether the limits are now much lower."""
        before = self.limits.tokens
        if tokens >= self._cap // 4:  # what a small batch takes is mostly fixed
            self._token_bytes = max(self._token_bytes if taken <= 0 else taken / tokens, 1.0)
        return self.limits.tokens * _SLACK < before

    def description(self) -> dict[str, Any]:
        """For the evaluation's record: the budget in bytes and what it came to."""
        return {
            "memory_budget_bytes": self._budget,
            "batch_tokens": self.limits.tokens,
            "batch_sequences": self.limits.sequences,
        }


class PeakMeter:
    """What a pass through the model takes above what was in use before, where the platform tells."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def start(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        elif self._device.type == "cpu":
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again
            self._before = in_use(self._device)

    def taken(self) -> int:
        """Bytes since `start`; 0 where that can't be told."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        peak = _status("VmHWM") if self._device.type == "cpu" else 0
        return max(peak - self._before, 0)


def in_use(device: torch.device) -> int:
    """Bytes that the process, or the accelerator, has in use."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.current_allocated_memory())
    pages = Path("/proc/self/statm")
    if pages.is_file():
        return int(pages.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def most_in_use(device: torch.device) -> int:
    """As `in_use`, but on CUDA, which keeps count, the most that there was."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else in_use(device)


def free(device: torch.device) -> int:
    """Bytes that the process may still take: of the device, of the container, of its own limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    found = [_available()]
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # no such cgroup, or no limit ("max")
            found.append(int(Path(limit).read_text("ascii")) - int(Path(usage).read_text("ascii")))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(soft - _status("VmSize"))
    return max(min(found), 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; torch's CPU allocator says so with a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "out of memory" in text or "bad_alloc" in text
    )


def out_of_memory_line(error: BaseException, device: torch.device) -> str:
    """What the sample's error says."""
    return f"out of memory on {device} with this sample alone ({one_line(error, 120)})"


def release(device: torch.device) -> None:
    """Give freed memory back after a failure."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _activation_bytes(model: Any) -> float:
    """Bytes a token of a batch takes in one layer, the widest moment: a first guess, see `Memory.observe`."""
    config = model.config.get_text_config()
    hidden = int(getattr(config, "hidden_size", 1024))
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    experts = int(getattr(config, "num_experts_per_tok", None) or 1)
    size = torch.empty((), dtype=model.dtype).element_size()
    return float(size * (12 * hidden + 3 * inner * experts))


def _available() -> int:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes; 0 where there is none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0
