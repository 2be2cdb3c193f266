"""Asking a model all of a benchmark's items; knows neither Dagster nor torch."""

from collections.abc import Collection, Iterator, Sequence
from typing import cast

from eval_assets.suite.items import Item
from eval_assets.suite.spec import BenchmarkSpec
from eval_assets.tasks import prompts, task_for
from resources.engines import (
    Engine,
    Failure,
    GenerationRequest,
    LoglikelihoodRequest,
    Request,
    Result,
    RollingRequest,
)
from resources.records import Sample


def answers(
    engine: Engine, spec: BenchmarkSpec, items: Sequence[Item], finished: Collection[str]
) -> Iterator[Sample]:
    """Samples with the model's answers, each as soon as its last request is answered, not yet scored.

    `finished` are the ids of samples that an earlier run has. The engine gets their requests, too, every
    item's in the benchmark's order: so it makes the same batches, and the numbers are those of an undisturbed
    run. An item that the engine can't answer becomes a sample with an error.
    """
    task = task_for(spec)
    template = engine.apply_chat_template if spec.chat else None
    asked = [task.requests(item, template) for item in items]
    requests = [request for of_item in asked for request in of_item]
    owners = [(number, place) for number, of_item in enumerate(asked) for place in range(len(of_item))]
    answered = {index for index, (number, _) in enumerate(owners) if items[number].sample_id in finished}
    if len(answered) == len(requests):
        return
    results: list[dict[int, Result]] = [{} for _ in items]
    for index, result in _ask(engine, requests, answered):
        number, place = owners[index]
        results[number][place] = result
        if len(results[number]) < len(asked[number]):
            continue
        in_order = [results[number].pop(place) for place in range(len(asked[number]))]
        failed = next((result for result in in_order if isinstance(result, Failure)), None)
        if failed is None:
            yield task.sample(items[number], asked[number], in_order)
        else:
            sample = prompts.answered(items[number], _prompt_of(asked[number][0]))
            sample.error = failed.reason
            yield sample


def _ask(
    engine: Engine, requests: Sequence[Request], answered: Collection[int]
) -> Iterator[tuple[int, Result]]:
    """Give all requests of a cell to the operation that their class stands for."""
    match requests[0]:
        case LoglikelihoodRequest():
            return engine.loglikelihoods(cast(Sequence[LoglikelihoodRequest], requests), answered)
        case GenerationRequest():
            return engine.generations(cast(Sequence[GenerationRequest], requests), answered)
        case RollingRequest():
            return engine.rolling_loglikelihoods(cast(Sequence[RollingRequest], requests), answered)


def _prompt_of(request: Request) -> str:
    match request:
        case LoglikelihoodRequest():
            return request.context
        case GenerationRequest():
            return request.prompt
        case RollingRequest():
            return ""
