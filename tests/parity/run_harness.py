"""Run lm_eval's own tasks on local rows and write down, item by item, what it asked and what came out.

This file runs inside the harness's environment and imports nothing of this project. The tasks are the
harness's own definitions, unchanged; only where rows come from is replaced: `datasets.load_dataset` reads
``<mirror of the work>/<path>/<name or default>/<split>.parquet``.

    python run_harness.py REQUEST.json OUTPUT.json

The request is ``{"model": folder, "batch_size": n, "threads": n, "works": [...]}``; a work is ``{"name",
"tasks", "mirror", "num_fewshot", "first_n", "max_length", "chat", "system"}``. The output holds the package
versions and, for each work, its items (requests with their texts, token ids and answers; the value of each
metric) and the harness's own aggregates.
"""

import json
import math
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
from lm_eval import evaluator, utils
from lm_eval.api.metrics import aggregate_subtask_metrics
from lm_eval.api.samplers import get_sampler
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

PACKAGES = (
    "lm_eval",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "sacrebleu",
    "rouge_score",
    "torchmetrics",
)


class Recorder(HFLM):  # type: ignore[misc]  # lm_eval is untyped
    """The harness's own model class, which also keeps the token ids of what it is asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.pairs: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        self.prompts: dict[str, list[int]] = {}
        super().__init__(*args, **kwargs)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> Any:
        for key, context, continuation in requests:
            if key is not None:
                self.pairs[key] = (list(context), list(continuation))
        return super()._loglikelihood_tokens(requests, **kwargs)

    def tok_batch_encode(self, strings: Any, *args: Any, **kwargs: Any) -> Any:
        ids, mask = super().tok_batch_encode(strings, *args, **kwargs)
        for string, row, kept in zip(strings, ids, mask, strict=True):
            self.prompts[string] = row[kept.bool()].tolist()
        return ids, mask

    def windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """The windows in which the harness reads a long text, by its own functions."""
        return [
            utils.make_disjoint_window(window)
            for window in utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
        ]


def read_from(mirrors: list[Path]) -> None:
    """Let `datasets.load_dataset` find hub datasets below the last of `mirrors`; anything else is refused."""
    load_files = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, **_: Any) -> Any:
        folder = mirrors[-1] / path / (name or "default")
        files = {file.stem: str(file) for file in sorted(folder.glob("*.parquet"))}
        if not files:
            raise FileNotFoundError(f"{folder}: no <split>.parquet here")
        return load_files("parquet", data_files=files, cache_dir=str(mirrors[-1] / ".cache"))

    datasets.load_dataset = load_dataset


def squad_score(predictions: Any, references: Any) -> dict[str, float]:
    """Exact match and F1 as `evaluate.load("squad_v2")` gives them, in percent.

    That metric is a script on the model hub; torchmetrics carries the same official functions. A question
    without an answer has the empty string for its answer there, which torchmetrics wants written out.
    """
    from torchmetrics.functional.text import squad

    asked = [{"id": p["id"], "prediction_text": p["prediction_text"]} for p in predictions]
    known = []
    for reference in references:
        texts = list(reference["answers"]["text"]) or [""]
        known.append({"id": reference["id"], "answers": {"text": texts, "answer_start": [0] * len(texts)}})
    scores = squad(asked, known)
    return {"exact": float(scores["exact_match"]), "f1": float(scores["f1"])}


class LocalSquad:
    """Stands where `evaluate.load("squad_v2")` would be."""

    @staticmethod
    def compute(predictions: Any, references: Any) -> dict[str, float]:
        return squad_score(predictions, references)


def request_of(lm: Recorder, kind: str, arguments: Any, answer: Any) -> dict[str, Any]:
    """One request in plain data: its texts, its token ids, the model's answer."""
    if kind == "loglikelihood_rolling":
        windows = lm.windows(arguments[0])
        return {
            "type": kind,
            "text": arguments[0],
            "ids": [token for _, continuation in windows for token in continuation],
            "windows": [[len(context), len(continuation)] for context, continuation in windows],
            "loglikelihood": answer,
        }
    if kind == "generate_until":
        return {
            "type": kind,
            "context": arguments[0],
            "context_ids": lm.prompts[arguments[0]],
            "until": arguments[1]["until"],
            "max_new_tokens": arguments[1].get("max_gen_toks", lm.max_gen_toks),
            "text": answer,
        }
    context_ids, continuation_ids = lm.pairs[tuple(arguments)]
    return {
        "type": kind,
        "context": arguments[0],
        "continuation": arguments[1],
        "context_ids": context_ids,
        "continuation_ids": continuation_ids,
        "loglikelihood": answer[0],
        "is_greedy": answer[1],
    }


def kind_of(arguments: Any) -> str:
    if len(arguments) == 1:
        return "loglikelihood_rolling"
    return "generate_until" if isinstance(arguments[1], dict) else "loglikelihood"


def metric_value(task: Any, name: str, value: Any) -> float | None:
    """A metric of one item: as it is where it is a number, aggregated over this item alone otherwise."""
    if isinstance(value, (bool, int, float)) or hasattr(value, "item"):
        return float(value)
    if name in ("exact", "f1", "word_perplexity", "byte_perplexity", "bits_per_byte"):
        return float(task.aggregation()[name]([value]))
    return None


def items_of(lm: Recorder, task: Any, task_name: str, logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The logged samples of a task, one entry a document with all of its filters' metrics."""
    by_document: dict[int, dict[str, Any]] = {}
    for sample in logged:
        arguments = sample["arguments"]
        item = by_document.setdefault(
            sample["doc_id"],
            {
                "task": task_name,
                "doc_id": sample["doc_id"],
                "requests": [
                    request_of(lm, kind_of(asked), asked, answers[0])
                    for asked, answers in zip(arguments, sample["resps"], strict=True)
                ],
                "filtered": {},
                "metrics": {},
            },
        )
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        if suffix:
            item["filtered"][sample["filter"]] = sample["filtered_resps"][0]
        for name in sample["metrics"]:
            value = metric_value(task, name, sample[name])
            if value is not None:
                item["metrics"][name + suffix] = value
    return [by_document[index] for index in sorted(by_document)]


def aggregates(results: dict[str, Any], counts: dict[str, int]) -> dict[str, dict[str, float]]:
    """The harness's aggregate of each metric; over several tasks its own mean, weighted by size."""
    by_metric: dict[str, list[tuple[float, float | None, int]]] = defaultdict(list)
    for task_name, count in counts.items():
        values = results[task_name]
        for key, value in values.items():
            name, _, filter_name = key.partition(",")
            if name.endswith("_stderr") or not isinstance(value, (int, float)) or isinstance(value, bool):
                continue
            stderr = values.get(f"{name}_stderr,{filter_name}")
            label = name if filter_name == "none" else f"{name},{filter_name}"
            by_metric[label].append((value, stderr if isinstance(stderr, float) else None, count))
    found = {}
    for label, entries in by_metric.items():
        values = [entry[0] for entry in entries]
        sizes = [entry[2] for entry in entries]
        found[label] = {"value": float(aggregate_subtask_metrics(values, sizes, True)), "n": sum(sizes)}
        if len(entries) == 1 and entries[0][1] is not None and not math.isnan(entries[0][1]):
            found[label]["stderr"] = entries[0][1]
    return found


def run_work(lm: Recorder, manager: TaskManager, work: dict[str, Any]) -> dict[str, Any]:
    """Evaluate the tasks of one work together, the way `lm_eval run` does."""
    tasks = manager.load(work["tasks"])["tasks"]
    for task in tasks.values():
        if work.get("first_n"):
            task.sampler = get_sampler("first_n")(list(task.fewshot_docs()))
        if task.get_config("num_fewshot") is None or work.get("num_fewshot") is not None:
            task.set_config("num_fewshot", work.get("num_fewshot") or 0)
        task.set_fewshot_seed(seed=1234)
    lm._max_length = work.get("max_length")
    started = time.monotonic()
    outcome = evaluator.evaluate(
        lm=lm,
        task_dict={"tasks": tasks, "groups": {}, "group_map": {}},
        bootstrap_iters=100,
        log_samples=True,
        system_instruction=work.get("system"),
        apply_chat_template=bool(work.get("chat")),
        fewshot_as_multiturn=bool(work.get("chat")),
    )
    seconds = time.monotonic() - started
    items = []
    for name, task in tasks.items():
        items += items_of(lm, task, name, outcome["samples"][name])
    counts = {name: len(outcome["samples"][name]) // len(task._filters) for name, task in tasks.items()}
    return {"items": items, "aggregates": aggregates(outcome["results"], counts), "seconds": seconds}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    mirrors: list[Path] = []
    read_from(mirrors)
    import evaluate

    evaluate.load = lambda *_args, **_kwargs: LocalSquad
    torch.set_num_threads(request.get("threads", 2))
    lm = Recorder(
        pretrained=request["model"], device="cpu", dtype="float32", batch_size=request.get("batch_size", 8)
    )
    manager = TaskManager()
    works = {}
    for work in request["works"]:
        mirrors.append(Path(work["mirror"]))
        works[work["name"]] = run_work(lm, manager, work)
        print(f"{work['name']}: {len(works[work['name']]['items'])} items", file=sys.stderr, flush=True)
    output = {"versions": {name: version(name) for name in PACKAGES}, "works": works}
    Path(sys.argv[2]).write_text(json.dumps(output))


if __name__ == "__main__":
    main()
