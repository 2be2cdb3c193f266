"""``benchmarks``: what there is to be asked, whether its files are right, and what a model is shown."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eval_assets.commands.cluster import estimate
from eval_assets.commands.output import BENCHMARK, MODEL, Output, benchmark_named, output

if TYPE_CHECKING:
    from eval_assets.tasks import ChatTemplate
    from resources.engines import Request


@click.group()
def benchmarks() -> None:
    """Benchmarks: list, validate, preview an item's prompt, estimate a cost."""


benchmarks.add_command(estimate, "cost")


@benchmarks.command("list")
@output
def list_benchmarks(out: Output) -> None:
    """List the benchmarks that the YAML files declare; loading them validates them."""
    from eval_assets.partitions import SUITE
    from resources.results import ResultsStore
    from resources.settings import Settings

    store = ResultsStore(Settings.from_environment().store)
    found = []
    for key, spec in SUITE.items():
        record = store.benchmark(key) or {}
        found.append(
            {
                "key": key,
                "task": spec.task,
                "fewshot": len(spec.fewshot.examples) or spec.fewshot.n,
                "metrics": [metric.name for metric in spec.metrics],
                "primary_metric": spec.primary_metric,
                "source": spec.source.hub or spec.source.path or "",
                "items": record.get("items"),
                "title": spec.title,
            }
        )
    columns = ("key", "task", "few-shot", "metrics", "source", "items", "title")
    rows = [
        (
            str(one["key"]),
            str(one["task"]),
            str(one["fewshot"]),
            ", ".join(metric.name for metric in SUITE[str(one["key"])].metrics),
            str(one["source"]),
            "not prepared" if one["items"] is None else f"{one['items']:,}",
            str(one["title"]),
        )
        for one in found
    ]
    out.table(columns, rows, right=("few-shot", "items"))
    out.document(found)


@benchmarks.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=True, path_type=Path))
@output
def validate(out: Output, files: Sequence[Path]) -> None:
    """Check YAML files or folders of them, by default the suite and EVAL_BENCHMARKS.

    The first mistake is one line that names the file, the field and the rule; the status is then 2.
    """
    from eval_assets.suite import load_suite
    from resources.settings import Settings

    whole = {path for path in files if path.is_dir()}
    named = {path.stem for path in files} - {path.stem for path in whole}
    folders = whole | {path.parent for path in files if path not in whole}
    suite = load_suite(sorted(folders) if files else list(Settings.from_environment().benchmarks))
    keys = [key for key, spec in suite.items() if not files or key in named or spec.folder in whole]
    out.say(f"{len(keys)} benchmarks are right: {', '.join(keys)}")
    out.document({"valid": keys})


@benchmarks.command()
@click.argument("benchmark", type=BENCHMARK)
@click.option("--item", default=0, show_default=True, type=click.IntRange(0), help="which item, from 0")
@click.option("--model", type=MODEL, help="a registered version whose chat template and tokens to show")
@output
def preview(out: Output, benchmark: str, item: int, model: str | None) -> None:
    """Show exactly what a model is asked for one item: prompt, continuations, what counts as right."""
    from dataclasses import asdict
    from functools import partial

    from eval_assets.partitions import SUITE
    from eval_assets.suite import normalize
    from eval_assets.tasks import task_for
    from resources.datasets import read_rows
    from resources.errors import UserError
    from resources.settings import Settings

    key = benchmark_named(benchmark)
    spec, settings = SUITE[key], Settings.from_environment()
    normalized = normalize(spec, partial(read_rows, mirror=settings.data_mirror))
    if item >= len(normalized.items):
        raise UserError(f"{key} has {len(normalized.items):,} items: --item 0 to {len(normalized.items) - 1}")
    if spec.chat is not None and model is None:
        raise UserError(f"{key} asks through a chat template: name a version that has one by --model")
    tokenizer, template = (None, None) if model is None else _tokenizer(model)
    one = normalized.items[item]
    asked = task_for(spec).requests(one, template if spec.chat is not None else None)
    requests = [{**asdict(request), **_token_counts(request, tokenizer)} for request in asked]
    _show_requests(out, requests)
    if one.target is not None:
        out.say(f"right: choice {one.target}, {one.choices[one.target]!r}")
    if one.references and spec.task == "generation":
        out.say(f"references: {', '.join(map(repr, one.references))}")
    out.document({"benchmark": key, "item": asdict(one), "requests": requests})


def _tokenizer(model: str) -> "tuple[Any, ChatTemplate]":
    from functools import partial
    from pathlib import Path

    from resources.engines.chat import load_tokenizer, render_chat
    from resources.errors import UserError
    from resources.keys import ModelKey
    from resources.results import ResultsStore
    from resources.settings import Settings

    record = ResultsStore(Settings.from_environment().store).model_version(str(ModelKey.parse(model)))
    if record is None:
        raise UserError(f"model version {model} is not registered: run 'register' first")
    folder = Path(record["path"])
    tokenizer = load_tokenizer(folder)
    return tokenizer, partial(render_chat, tokenizer, path=folder)


def _token_counts(request: "Request", tokenizer: Any) -> dict[str, int]:
    """Tokens that the engine would make of a request."""
    from resources.engines import GenerationRequest, LoglikelihoodRequest
    from resources.engines.tokens import TextEncoder

    if tokenizer is None:
        return {}
    encoder = TextEncoder(tokenizer)
    if isinstance(request, LoglikelihoodRequest):
        context, continuation = next(encoder.pairs([(request.context, request.continuation)]))
        return {"context_tokens": len(context), "continuation_tokens": len(continuation)}
    text = request.prompt if isinstance(request, GenerationRequest) else request.text
    (tokens,) = encoder.prompts([text]).values()
    return {"tokens": len(tokens)}


def _show_requests(out: Output, requests: Sequence[dict[str, object]]) -> None:
    shown: object = None
    for request in requests:
        text = request.get("context", request.get("prompt", request.get("text")))
        if text != shown:
            shown = text
            out.say("shown to the model", style="bold")
            out.say(str(text))
        for name, value in request.items():
            if name not in ("context", "prompt", "text") and value not in (None, (), [], ""):
                out.say(f"{name.replace('_', ' ')}: {value!r}")
