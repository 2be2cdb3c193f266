"""How both sides are measured: the same few lines, run in both environments (standard library only)."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

Figures: TypeAlias = dict[str, float]
"""What was measured of one process: seconds and bytes by name."""


@contextmanager
def timed(figures: Figures, phase: str) -> Iterator[None]:
    """Add the phase's seconds to `figures`, by the clock (`phase_wall`) and of all threads (`phase_cpu`)."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        figures[f"{phase}_wall"] = figures.get(f"{phase}_wall", 0.0) + time.perf_counter() - wall
        figures[f"{phase}_cpu"] = figures.get(f"{phase}_cpu", 0.0) + time.process_time() - cpu


def engine_seconds(phases: Mapping[str, float]) -> float:
    """Of an evaluation's seconds by phase, those in which its model ran."""
    return sum(seconds for phase, seconds in phases.items() if phase not in ("load", "score"))


def peak_memory_bytes() -> int:
    """The most memory that this process has had in use.

    Linux's own mark of this program: ru_maxrss also counts what the process was before it started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
