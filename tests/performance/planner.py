"""How long the planner takes: requests as a large benchmark has them, without a model.

    python -m tests.performance.planner REQUEST.json OUTPUT.json

The request is ``{"items": the most requests}``.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from resources.engines.planner import plan
from tests.performance.measure import peak_memory_bytes

_CHOICES = 4
_SUBJECTS = 57
_SHARED, _QUESTION, _CHOICE = 200, 40, 3  # tokens
_VOCABULARY = 49_152
_BUDGET = 4096


def sequences(requests: int) -> list[np.ndarray[tuple[int], np.dtype[np.int32]]]:
    """Multiple choice: each subject's items share a prompt, each item's choices a question."""
    draw = np.random.default_rng(1234)
    shared = draw.integers(0, _VOCABULARY, (_SUBJECTS, _SHARED), np.int32)
    items = -(-requests // _CHOICES)
    questions = draw.integers(0, _VOCABULARY, (items, _QUESTION), np.int32)
    choices = draw.integers(0, _VOCABULARY, (items, _CHOICES, _CHOICE), np.int32)
    return [
        np.concatenate([shared[item % _SUBJECTS], questions[item], choices[item, choice]])
        for item in range(items)
        for choice in range(_CHOICES)
    ][:requests]


def bench_planner(most: int) -> dict[str, float]:
    """Seconds to plan 10,000, 100,000, ... requests, up to `most`."""
    seconds = {}
    count = min(10_000, most)
    while count <= most:
        asked = sequences(count)
        started = time.perf_counter()
        plan(asked, _BUDGET)
        seconds[str(count)] = time.perf_counter() - started
        count *= 10
    return seconds


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    seconds = bench_planner(request["items"])
    output = {"seconds": seconds, "peak_bytes": peak_memory_bytes()}
    Path(sys.argv[2]).write_text(json.dumps(output), encoding="utf-8")


if __name__ == "__main__":
    main()
