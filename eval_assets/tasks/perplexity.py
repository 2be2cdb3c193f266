"""How surprising is a text to a model, from its start (rolling) or after a prompt?"""

from collections.abc import Sequence
from dataclasses import dataclass

from eval_assets.suite.items import Item
from eval_assets.suite.spec import BenchmarkSpec
from eval_assets.tasks.prompts import ChatTemplate, all_of, answered, prompt_of
from resources.engines import (
    LoglikelihoodRequest,
    LoglikelihoodResult,
    Request,
    Result,
    RollingRequest,
    RollingResult,
)
from resources.records import Sample


@dataclass(frozen=True, slots=True)
class PerplexityTask:
    """With a `prompt`, one log-likelihood request of delimiter and text; without, one rolling request."""

    spec: BenchmarkSpec

    def requests(self, item: Item, chat_template: ChatTemplate | None) -> Sequence[Request]:
        text = item.references[0]
        if not self.spec.prompt:
            return [RollingRequest(text)]
        # Other than a choice, the text keeps its delimiter under a chat template: in the harness a
        # log-likelihood task writes it into the target itself.
        return [LoglikelihoodRequest(prompt_of(self.spec, item, chat_template), self.spec.delimiter + text)]

    def sample(self, item: Item, requests: Sequence[Request], results: Sequence[Result]) -> Sample:
        if not self.spec.prompt:
            all_of(RollingRequest, requests, 1)
            [rolling] = all_of(RollingResult, results, 1)
            sample = answered(item, "")
            sample.loglikelihoods = [rolling.loglikelihood]
            sample.choice_tokens = [rolling.tokens]
            return sample
        [asked] = all_of(LoglikelihoodRequest, requests, 1)
        [result] = all_of(LoglikelihoodResult, results, 1)
        sample = answered(item, asked.context)
        sample.loglikelihoods = [result.loglikelihood]
        sample.choice_tokens = [result.continuation_tokens]
        sample.is_greedy = [result.is_greedy]
        sample.prompt_tokens = result.prompt_tokens
        sample.truncated_tokens = result.truncated_tokens
        return sample
