"""Which of several given answers does a model find likeliest?"""

from collections.abc import Sequence
from dataclasses import dataclass

from eval_assets.suite.items import Item
from eval_assets.suite.spec import BenchmarkSpec
from eval_assets.tasks.prompts import ChatTemplate, all_of, answered, prompt_of
from resources.engines import LoglikelihoodRequest, LoglikelihoodResult, Request, Result
from resources.records import Sample


@dataclass(frozen=True, slots=True)
class MultipleChoiceTask:
    """One log-likelihood request a choice; the choices of an item share their context."""

    spec: BenchmarkSpec

    def requests(self, item: Item, chat_template: ChatTemplate | None) -> Sequence[Request]:
        prompt = prompt_of(self.spec, item, chat_template)
        # A chat template ends where the answer's first character belongs, a prefill with a word before it; so
        # says the harness (ConfigurableTask.construct_requests).
        after_word = bool(item.prefill) and not item.prefill[-1].isspace()
        delimiter = self.spec.delimiter if self.spec.chat is None or after_word else ""
        return [LoglikelihoodRequest(prompt, delimiter + choice) for choice in item.choices]

    def sample(self, item: Item, requests: Sequence[Request], results: Sequence[Result]) -> Sample:
        asked = all_of(LoglikelihoodRequest, requests, len(item.choices))
        likelihoods = all_of(LoglikelihoodResult, results, len(item.choices))
        sample = answered(item, asked[0].context)
        sample.loglikelihoods = [result.loglikelihood for result in likelihoods]
        sample.choice_tokens = [result.continuation_tokens for result in likelihoods]
        sample.is_greedy = [result.is_greedy for result in likelihoods]
        sample.prompt_tokens = max(result.prompt_tokens for result in likelihoods)
        sample.truncated_tokens = max(result.truncated_tokens for result in likelihoods)
        return sample
