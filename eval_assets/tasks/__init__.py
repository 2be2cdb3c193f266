"""How items become requests and answers become samples; one file a task type, none knows Dagster or torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from eval_assets.suite.items import Item
from eval_assets.suite.spec import BenchmarkSpec, TaskType
from eval_assets.tasks.generation import GenerationTask
from eval_assets.tasks.multiple_choice import MultipleChoiceTask
from eval_assets.tasks.perplexity import PerplexityTask
from eval_assets.tasks.prompts import ChatTemplate
from resources.engines import Request, Result
from resources.records import Sample

__all__ = ["SCORING_VERSION", "ChatTemplate", "Task", "task_for"]

SCORING_VERSION = "2"
"""Part of every evaluation's fingerprint: raise it when a change makes any score come out differently.
tests/eval_assets/test_scoring_version.py notices when the code of tasks or metrics changed."""


class Task(Protocol):
    """A task type."""

    def requests(self, item: Item, chat_template: ChatTemplate | None) -> Sequence[Request]:
        """What to ask a model about an item; every request of a task type has the same class."""
        ...

    def sample(self, item: Item, requests: Sequence[Request], results: Sequence[Result]) -> Sample:
        """The item with the model's answers, not yet scored. `results` are in the order of `requests`."""
        ...


_TASKS: Mapping[TaskType, Callable[[BenchmarkSpec], Task]] = {
    "multiple_choice": MultipleChoiceTask,
    "generation": GenerationTask,
    "perplexity": PerplexityTask,
}


def task_for(spec: BenchmarkSpec) -> Task:
    """The task of a benchmark."""
    return _TASKS[spec.task](spec)
