"""This project's side of the comparison: items asked and scored, in the form of the harness's dump."""

from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

from eval_assets.metrics import ScoringSettings, estimate_metrics, score_samples
from eval_assets.suite import BenchmarkSpec, normalize
from eval_assets.tasks import task_for
from resources.datasets import read_rows
from resources.engines import (
    Engine,
    GenerationRequest,
    LoglikelihoodRequest,
    Request,
    Result,
    RollingRequest,
)
from resources.engines.tokens import TextEncoder, rolling_windows
from tests.parity.differences import Comparison

Record = dict[str, Any]

NATS_OF_A_TIE = 1e-3
"""Two tokens whose log-likelihoods are closer may change places with the size of a batch."""


class Side:
    """An engine, and the tokens of what it is asked."""

    def __init__(self, engine: Engine, path: Path) -> None:
        from transformers import AutoTokenizer

        self.engine = engine
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.tokenizer = tokenizer
        self.encoder = TextEncoder(tokenizer)
        self.context_length: int = engine.description["context_length"]


def run_ours(spec: BenchmarkSpec, mirror: Path, side: Side) -> Record:
    """A benchmark on the rows of `mirror`: each item's requests with texts, token ids, answers and scores."""
    items = normalize(spec, partial(read_rows, mirror=mirror)).items
    task = task_for(spec)
    template = side.engine.apply_chat_template if spec.chat is not None else None
    requests = [task.requests(item, template) for item in items]
    results = _ask(side.engine, requests)
    samples = [
        task.sample(item, asked, answered)
        for item, asked, answered in zip(items, requests, results, strict=True)
    ]
    score_samples(samples, spec.metrics, ScoringSettings())
    records = [
        {
            "requests": [
                _record(request, result, side) for request, result in zip(asked, answered, strict=True)
            ],
            "metrics": dict(sample.scores),
            "error": sample.error,
        }
        for asked, answered, sample in zip(requests, results, samples, strict=True)
    ]
    whole = {
        row.metric: {"value": row.estimate.value, "stderr": row.estimate.stderr, "n": row.estimate.n}
        for row in estimate_metrics(samples, spec.metrics)
        if row.group is None
    }
    return {"items": records, "aggregates": whole}


def name_exceptions(comparison: Comparison, side: Side) -> None:
    """Say of each generated text that differs why: a tie between two tokens, or a character cut in half."""
    for exception in comparison.exceptions:
        if exception.ours == exception.theirs.rstrip("\ufffd"):
            exception.reason = "the limit of tokens cuts a character in half, which ours leaves out"
            exception.excused = True
            continue
        gap = _gap(side, exception.prompt, exception.ours, exception.theirs)
        exception.reason = (
            f"where the texts part, the model finds our token {gap:+.1e} nats likelier than theirs"
        )
        exception.excused = abs(gap) <= NATS_OF_A_TIE


def _gap(side: Side, prompt: str, ours: str, theirs: str) -> float:
    """The log-likelihood of our text less theirs, up to the first token that differs; all before cancels."""
    before = len(side.encoder.prompts([prompt])[prompt])
    tokens = side.encoder.prompts([prompt + ours, prompt + theirs])
    mine, other = (tokens[prompt + text].tolist()[before:] for text in (ours, theirs))
    at = next(i for i, (a, b) in enumerate(zip_longest(mine, other)) if a != b)
    requests = [
        LoglikelihoodRequest(prompt, side.tokenizer.decode(kept[: at + 1]) or side.tokenizer.eos_token)
        for kept in (mine, other)
    ]
    found: dict[int, Any] = dict(side.engine.loglikelihoods(requests))
    return float(found[0].loglikelihood - found[1].loglikelihood)


def _ask(engine: Engine, requests: Sequence[Sequence[Request]]) -> list[list[Result]]:
    flat = [request for asked in requests for request in asked]
    answers: list[Any] = [None] * len(flat)
    if isinstance(flat[0], GenerationRequest):
        found: Any = engine.generations(cast(list[GenerationRequest], flat))
    elif isinstance(flat[0], RollingRequest):
        found = engine.rolling_loglikelihoods(cast(list[RollingRequest], flat))
    else:
        found = engine.loglikelihoods(cast(list[LoglikelihoodRequest], flat))
    for index, result in found:
        answers[index] = result
    remaining = iter(answers)
    return [[next(remaining) for _ in asked] for asked in requests]


def _record(request: Request, result: Any, side: Side) -> Record:
    encoder = side.encoder
    if isinstance(request, RollingRequest):
        tokens = encoder.texts([request.text])[request.text]
        windows = rolling_windows(tokens, encoder.prefix_token, side.context_length)
        return {
            "type": "loglikelihood_rolling",
            "text": request.text,
            "ids": tokens.tolist(),
            "windows": [[len(context), len(continuation)] for context, continuation in windows],
            "loglikelihood": result.loglikelihood,
        }
    if isinstance(request, GenerationRequest):
        return {
            "type": "generate_until",
            "context": request.prompt,
            "context_ids": encoder.prompts([request.prompt])[request.prompt].tolist(),
            "until": list(request.stop),
            "max_new_tokens": request.max_new_tokens,
            "text": result.text,
        }
    ((context, continuation),) = encoder.pairs([(request.context, request.continuation)])
    return {
        "type": "loglikelihood",
        "context": request.context,
        "continuation": request.continuation,
        "context_ids": context.tolist(),
        "continuation_ids": continuation.tolist(),
        "loglikelihood": result.loglikelihood,
        "is_greedy": result.is_greedy,
    }
