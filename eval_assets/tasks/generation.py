"""What does a model answer in its own words?"""

from collections.abc import Sequence
from dataclasses import dataclass

from eval_assets.suite.items import Item
from eval_assets.suite.spec import BenchmarkSpec
from eval_assets.tasks.prompts import ChatTemplate, all_of, answered, prompt_of
from resources.engines import GenerationRequest, GenerationResult, Request, Result, Sampling
from resources.records import Output, Sample


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """One generation request an output. Metrics, not the task, extract and normalize what comes back."""

    spec: BenchmarkSpec

    def requests(self, item: Item, chat_template: ChatTemplate | None) -> Sequence[Request]:
        prompt = prompt_of(self.spec, item, chat_template)
        generation = self.spec.generation
        sampling = None
        if generation.temperature:
            sampling = Sampling(generation.temperature, generation.top_p, generation.top_k, generation.seed)
        return [
            GenerationRequest(prompt, generation.stop, generation.max_new_tokens, sampling, draw)
            for draw in range(generation.outputs)
        ]

    def sample(self, item: Item, requests: Sequence[Request], results: Sequence[Result]) -> Sample:
        asked = all_of(GenerationRequest, requests, self.spec.generation.outputs)
        found = all_of(GenerationResult, results, len(asked))
        sample = answered(item, asked[0].prompt)
        if any(result.finish_reason == "nan" for result in found):
            sample.error = "the model's scores for the next token were NaN"
        sample.output = found[0].text
        sample.finish_reason = found[0].finish_reason
        sample.prompt_tokens = found[0].prompt_tokens
        sample.output_tokens = sum(result.output_tokens for result in found)
        sample.truncated_tokens = found[0].truncated_tokens
        if len(found) > 1:
            sample.outputs = tuple(
                Output(result.text, result.finish_reason, result.output_tokens) for result in found
            )
        return sample
