"""The text that a model is shown before it answers, assembled as the reference harness does.

Source: lm_eval 0.4.13, `ConfigurableTask.fewshot_context` and `build_qa_turn` (lm_eval/api/task.py),
`Message`, `maybe_delimit` and `multiturn_to_singleturn` (lm_eval/api/utils.py). A prefill is its
`gen_prefix`.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from eval_assets.suite.items import Example, Item
from eval_assets.suite.spec import BenchmarkSpec
from eval_assets.suite.templates import joined
from resources.engines import ChatMessage
from resources.errors import UserError
from resources.records import Sample

ChatTemplate: TypeAlias = Callable[[Sequence[ChatMessage]], str]
T = TypeVar("T")


def prompt_of(spec: BenchmarkSpec, item: Item, chat_template: ChatTemplate | None) -> str:
    """Description, solved examples and question; through the model's chat template if `spec.chat` says so.

    Raises UserError where the benchmark asks for a chat template and the model has none.
    """
    if spec.chat is None:
        return item.description + _examples_and_query(spec, item)
    if chat_template is None:
        raise UserError(
            f"{spec.key}: the benchmark asks through a chat template and the model has none; "
            "evaluate a model that has one, or take 'chat' out of the benchmark"
        )
    return chat_template(chat_messages(spec, item))


def chat_messages(spec: BenchmarkSpec, item: Item) -> list[ChatMessage]:
    """The conversation that ends with the question, or with the prefill as the beginning of the answer.

    System prompt and description are its system turn.
    """
    messages: list[ChatMessage] = []
    system = joined(item.system or "", item.description, spec.fewshot_delimiter)
    if system:
        messages.append({"role": "system", "content": system})
    if spec.chat is not None and not spec.chat.fewshot_as_turns:
        messages.append({"role": "user", "content": _examples_and_query(spec, item)})
    else:
        for example in item.examples:
            messages.append({"role": "user", "content": example.query})
            messages.append({"role": "assistant", "content": example.answer})
        messages.append({"role": "user", "content": item.query})
    if item.prefill:
        messages.append({"role": "assistant", "content": item.prefill})
    return messages


def _examples_and_query(spec: BenchmarkSpec, item: Item) -> str:
    solved = (_solved(spec, example) + spec.fewshot_delimiter for example in item.examples)
    return "".join(solved) + item.query


def _solved(spec: BenchmarkSpec, example: Example) -> str:
    if spec.chat is not None and spec.chat.prefill:
        return joined(example.query, example.answer, spec.delimiter)
    return example.query + spec.delimiter + example.answer


def answered(item: Item, prompt: str) -> Sample:
    """The sample of an item without the model's answer."""
    return Sample(
        sample_id=item.sample_id,
        index=item.index,
        group=item.group,
        cluster=item.cluster,
        prompt=prompt,
        target=item.target,
        choices=item.choices,
        labels=item.labels,
        references=item.references,
        incorrect_references=item.incorrect_references,
    )


def all_of(kind: type[T], values: Sequence[object], count: int | None = None) -> list[T]:
    """The values, which must all be of one class; anything else is an engine's or a caller's bug."""
    if count is not None and len(values) != count:
        raise ValueError(f"{len(values)} results where {count} were asked for")
    checked = [value for value in values if isinstance(value, kind)]
    if len(checked) != len(values):
        raise TypeError(
            f"expected {kind.__name__}, found {sorted({type(value).__name__ for value in values})}"
        )
    return checked
