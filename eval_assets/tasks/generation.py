"""What does a model answer in its own words?"""

from collections.abc import Sequence
from dataclasses import dataclass

from eval_assets.suite.items import Item
from eval_assets.suite.spec import BenchmarkSpec
from eval_assets.tasks.prompts import ChatTemplate, all_of, answered, prompt_of
from resources.engines import GenerationRequest, GenerationResult, Request, Result
from resources.records import Sample


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """One generation request an item. Metrics, not the task, extract and normalize the output."""

    spec: BenchmarkSpec

    def requests(self, item: Item, chat_template: ChatTemplate | None) -> Sequence[Request]:
        prompt = prompt_of(self.spec, item, chat_template)
        generation = self.spec.generation
        return [GenerationRequest(prompt, generation.stop, generation.max_new_tokens)]

    def sample(self, item: Item, requests: Sequence[Request], results: Sequence[Result]) -> Sample:
        [asked] = all_of(GenerationRequest, requests, 1)
        [result] = all_of(GenerationResult, results, 1)
        sample = answered(item, asked.prompt)
        if result.finish_reason == "nan":
            sample.error = "the model's scores for the next token were NaN"
        sample.output = result.text
        sample.finish_reason = result.finish_reason
        sample.prompt_tokens = result.prompt_tokens
        sample.output_tokens = result.output_tokens
        sample.truncated_tokens = result.truncated_tokens
        return sample
