"""Time lm_eval on one work. Runs inside the harness's environment; imports nothing of this project but the
parity comparison's way of running the harness's own tasks on local rows.

    python tests/performance/harness_side.py REQUEST.json OUTPUT.json

The request is ``{"model", "threads", "batch_sizes": [...], "mode", "work": {...}}``. Mode "search" times the
batch sizes on a few items and writes what it found; "run" answers everything with the first batch size and
writes the figures, the items and the aggregates; "ask" only writes what would be asked.
"""

import time

STARTED = time.perf_counter(), time.process_time()

import json  # noqa: E402  (the imports below are timed)
import statistics  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from importlib.metadata import version  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from tests.parity.run_harness import PACKAGES, LocalSquad, Recorder, read_from, run_work  # noqa: E402
from tests.performance.measure import Figures, peak_memory_bytes, timed  # noqa: E402

MEMORY_SHARE = 0.8
"""A batch that needs more of the memory that is free than this is not tried."""


class Ended(Exception):  # noqa: N818  (it is no error)
    """All that the mode wants is known: there is nothing more to evaluate."""


class Tasks(TaskManager):  # type: ignore[misc]  # lm_eval is untyped
    """The harness's tasks; its squadv2 fails with solved examples in this version, whose templates it is
    handed and doesn't take: it has none."""

    def load(self, *args: Any, **kwargs: Any) -> Any:
        found = super().load(*args, **kwargs)
        for task in found["tasks"].values():
            if type(task).__name__ == "SQuAD2":
                for name in ("doc_to_text", "doc_to_target"):
                    setattr(task, name, _without_template(getattr(task, name)))
        return found


def _without_template(method: Callable[[Any], str]) -> Callable[..., str]:
    return lambda doc, *_template: method(doc)


class Timed(Recorder):
    """The harness's model class, timed from the requests to their answers."""

    def __init__(
        self, *args: Any, mode: str, work: dict[str, Any], candidates: list[int], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.mode = mode
        self.work = work
        self.candidates = candidates
        self.figures: Figures = {}
        self.tried: list[dict[str, Any]] = []
        self.asked: list[list[dict[str, Any]]] = []
        self.new_tokens: int | None = work["max_new_tokens"]

    @property
    def max_gen_toks(self) -> int:
        return int(super().max_gen_toks) if self.new_tokens is None else self.new_tokens

    def loglikelihood(self, requests: Any, **kwargs: Any) -> Any:
        return self.answer("loglikelihood", super().loglikelihood, requests, **kwargs)

    def generate_until(self, requests: Any, **kwargs: Any) -> Any:
        return self.answer("generate_until", super().generate_until, requests, **kwargs)

    def loglikelihood_rolling(self, requests: Any, **kwargs: Any) -> Any:
        return self.answer("loglikelihood_rolling", super().loglikelihood_rolling, requests, **kwargs)

    def answer(self, kind: str, ask: Callable[..., Any], requests: Any, **kwargs: Any) -> Any:
        if kind != self.work["asked"]:
            # squadv2's likelihood of " unanswerable", which only its thresholds read: ours doesn't ask it, so
            # the harness is spared it too.
            for request in requests:
                self.pairs[request.args] = self._encode_pair(*request.args)
            return [(0.0, False)] * len(requests)
        if self.mode == "ask":
            self.asked = [
                [self.texts_of(kind, request.args) for request in asked]
                for asked in _by_item(requests).values()
            ]
            raise Ended
        if self.mode == "search":
            self.search(ask, requests)
            raise Ended
        with timed(self.figures, "evaluation"):
            answers = ask(requests, **kwargs)
        self.figures["peak_bytes"] = peak_memory_bytes()
        return answers

    def texts_of(self, kind: str, arguments: Any) -> dict[str, Any]:
        """A request's texts, as run_harness.py names them."""
        if kind == "loglikelihood_rolling":
            return {"type": kind, "text": arguments[0]}
        if kind == "loglikelihood":
            return {"type": kind, "context": arguments[0], "continuation": arguments[1]}
        limits = {"until": arguments[1]["until"], "max_new_tokens": self.max_gen_toks}
        return {"type": kind, "context": arguments[0], **limits}

    def search(self, ask: Callable[..., Any], requests: Any) -> None:
        """Time each batch size on the items whose length is nearest to the median one."""
        lengths = [len(self.tok_encode("".join(map(str, request.args[:2])))) for request in requests]
        by_item = _by_item(requests)
        longest = {
            item: max(len(str(request.args[0])) for request in asked) for item, asked in by_item.items()
        }
        median = statistics.median(longest.values())
        nearest = sorted(by_item, key=lambda item: abs(longest[item] - median))
        self.ask_items(ask, by_item, nearest[:1], 1)  # the first call of all is slower
        best = float("inf")
        for size in self.candidates:
            missing = memory_missing(self, self.work["asked"], size, max(lengths))
            if missing:
                self.tried.append({"batch": size, "skipped": missing})
                break
            count = max(self.work["search_items"], -(-size // self.work["rows_an_item"]))
            chosen = nearest[:count]
            figures = self.ask_items(ask, by_item, chosen, size)
            seconds = figures["search_wall"] / len(chosen)
            self.tried.append({"batch": size, "items": len(chosen), "seconds_an_item": seconds})
            if seconds >= best:
                break  # on a CPU, what is past the best only gets worse
            best = seconds
            if count >= len(nearest) and size >= len(nearest) * self.work["rows_an_item"]:
                break  # a larger batch would be the same one

    def ask_items(
        self, ask: Callable[..., Any], by_item: dict[Any, list[Any]], items: list[Any], size: int
    ) -> Figures:
        self.batch_size_per_gpu = size
        figures: Figures = {}
        with timed(figures, "search"):
            ask([request for item in items for request in by_item[item]])
        return figures


def _by_item(requests: Any) -> dict[Any, list[Any]]:
    by_item: dict[Any, list[Any]] = {}
    for request in requests:
        by_item.setdefault((request.task_name, request.doc_id), []).append(request)
    return by_item


def memory_missing(lm: Any, kind: str, size: int, longest: int) -> str:
    """Why a batch of the longest requests would not fit, or nothing; `generate` keeps no logits of a prompt.

    lm_eval holds the logits of all positions and their log_softmax, in float32.
    """
    if kind == "generate_until":
        return ""
    needed = size * longest * lm.model.config.vocab_size * 4 * 2
    free = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    if needed <= MEMORY_SHARE * free:
        return ""
    return f"would need {needed / 1e9:.0f} GB for its longest requests' logits"


def main() -> None:
    figures: Figures = {
        "import_wall": time.perf_counter() - STARTED[0],
        "import_cpu": time.process_time() - STARTED[1],
    }
    request = json.loads(Path(sys.argv[1]).read_text())
    work = request["work"]
    read_from([Path(work["mirror"])])
    import evaluate

    evaluate.load = lambda *_args, **_kwargs: LocalSquad
    torch.set_num_threads(request["threads"])
    sizes = request["batch_sizes"]
    with timed(figures, "load"):
        lm = Timed(
            pretrained=request["model"],
            device="cpu",
            dtype="float32",
            batch_size=sizes[0],
            mode=request["mode"],
            work=work,
            candidates=sizes,
        )
    lm.figures.update(figures)
    output: dict[str, Any] = {"versions": {name: version(name) for name in PACKAGES}}
    try:
        output |= run_work(lm, Tasks(), work)
        output["figures"] = lm.figures
    except Ended:
        output |= {"tried": lm.tried, "asked": lm.asked}
    Path(sys.argv[2]).write_text(json.dumps(output))


if __name__ == "__main__":
    main()
