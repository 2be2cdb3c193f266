"""What a measurement ran on, without a name or a path of the machine."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("torch", "transformers", "tokenizers")


def describe() -> dict[str, str]:
    """Processor, cores, memory, Python and the packages that numbers and speed depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    described = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": platform.system(),
        "python": platform.python_version(),
    }
    return described | {package: version(package) for package in _PACKAGES}


def busy_share(seconds: float = 1.0) -> float:
    """The share of the processor in use now, before a measurement, which others' work makes worthless."""
    if not Path("/proc/stat").exists():
        return 0.0
    before = _ticks()
    time.sleep(seconds)
    total, idle = (after - start for after, start in zip(_ticks(), before, strict=True))
    return 1 - idle / max(total, 1)


def _ticks() -> tuple[int, int]:
    """All of the processor's time until now, and the idle part of it."""
    counts = [int(count) for count in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(counts), counts[3] + counts[4]


def _processor() -> str:
    """The processor's model and its vector instructions."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in path.read_text().splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = fields.get("flags", "").split()
    vectors = [name for flag, name in (("avx2", "AVX2"), ("avx512f", "AVX-512")) if flag in flags]
    return ", ".join([fields.get("model name", platform.machine()), *vectors])
