"""Scores with a real limit of the process's address space; prints what came of it as one line of JSON.

Run by test_transformers_engine.py in a process of its own, because a limit can't be taken back.
"""

import json
import logging
import resource
import sys
from pathlib import Path

import torch

from resources.engines import Failure, LoglikelihoodRequest, LoglikelihoodResult
from resources.engines.settings import EngineSettings
from resources.engines.transformers_engine import TransformersEngine

ROOM = 150 << 20
TEXT = "The quick brown fox jumps over the lazy dog and runs on through the forest. "


class _Counting(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.halved = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.halved += "out of memory" in record.getMessage()


def main(model: str) -> None:
    torch.set_num_threads(1)
    settings = EngineSettings(device="cpu", dtype="float32", threads=1, batch_tokens=8192)
    requests = [LoglikelihoodRequest(f"{number}. " + TEXT * 12, " The end.") for number in range(40)]
    engine = TransformersEngine.load(Path(model), settings)
    free = dict(engine.loglikelihoods(requests[:4]))
    size = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        if line.startswith("VmSize")
    )
    counting = _Counting()
    logging.getLogger("resources.engines.transformers_engine").addHandler(counting)
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    limited = dict(engine.loglikelihoods(requests))
    differences = [
        abs(one.loglikelihood - other.loglikelihood) / one.continuation_tokens
        for one, other in ((free[index], limited[index]) for index in free)
        if isinstance(one, LoglikelihoodResult) and isinstance(other, LoglikelihoodResult)
    ]
    print(
        json.dumps(
            {
                "halved": counting.halved,
                "failures": sum(isinstance(result, Failure) for result in limited.values()),
                "largest_difference": max(differences),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
