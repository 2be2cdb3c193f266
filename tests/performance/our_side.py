"""Time this project's engine on one work, from the requests to their answers.

    python -m tests.performance.our_side REQUEST.json OUTPUT.json

The request is ``{"model", "mirror", "threads", "slug", "items"}``. The output holds the figures, the items as
tests/parity/ours.py records them (with `output_tokens` of what was generated) and the aggregates.
"""

import time

STARTED = time.perf_counter(), time.process_time()

import json  # noqa: E402  (the imports below are timed)
import sys  # noqa: E402
from collections.abc import Callable, Iterator, Mapping, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, cast  # noqa: E402

from eval_assets.suite import load_suite  # noqa: E402
from resources.engines import Engine, GenerationResult  # noqa: E402
from resources.engines.settings import EngineSettings  # noqa: E402
from resources.engines.transformers_engine import TransformersEngine  # noqa: E402
from tests.parity.ours import Side, run_ours  # noqa: E402
from tests.performance.measure import Figures, peak_memory_bytes, timed  # noqa: E402
from tests.performance.works import ENGINE_WORKS  # noqa: E402


class Timed:
    """An engine that is timed until its last answer."""

    def __init__(self, engine: TransformersEngine, figures: Figures) -> None:
        self._engine = engine
        self._figures = figures
        self.output_tokens: list[int] = []

    @property
    def description(self) -> Mapping[str, Any]:
        return self._engine.description

    def __getattr__(self, name: str) -> Any:
        """The operations, timed, and whatever else an engine has."""
        found = getattr(self._engine, name)
        if name not in ("loglikelihoods", "generations", "rolling_loglikelihoods"):
            return found
        return lambda requests: self._answers(found, requests)

    def _answers(
        self, ask: Callable[[Sequence[Any]], Iterator[tuple[int, Any]]], requests: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        with timed(self._figures, "evaluation"):
            answers = list(ask(requests))
        self._figures["peak_bytes"] = peak_memory_bytes()
        self.output_tokens = [
            result.output_tokens
            for _, result in sorted(answers, key=lambda answer: answer[0])
            if isinstance(result, GenerationResult)
        ]
        return iter(answers)


def main() -> None:
    figures: Figures = {
        "import_wall": time.perf_counter() - STARTED[0],
        "import_cpu": time.process_time() - STARTED[1],
    }
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    path = Path(request["model"])
    settings = EngineSettings(device="cpu", dtype="float32", threads=request["threads"])
    with timed(figures, "load"):
        engine = TransformersEngine.load(path, settings)
    watched = Timed(engine, figures)
    side = Side(cast(Engine, watched), path)
    work = ENGINE_WORKS[request["slug"]]
    spec = work.adapt(load_suite()[work.benchmark])
    output = run_ours(spec, Path(request["mirror"]), side)
    generated = iter(watched.output_tokens)
    for item in output["items"]:
        for asked in item["requests"]:
            if asked["type"] == "generate_until":
                asked["output_tokens"] = next(generated)
    output |= {"figures": figures, "engine": dict(engine.description)}
    Path(sys.argv[2]).write_text(json.dumps(output), encoding="utf-8")


if __name__ == "__main__":
    main()
