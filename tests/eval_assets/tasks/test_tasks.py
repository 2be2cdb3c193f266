"""Items become requests, with and without a chat template; results become samples."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_assets.suite import BenchmarkSpec, Example, Item
from eval_assets.tasks import task_for
from eval_assets.tasks.prompts import chat_messages
from resources.engines import (
    ChatMessage,
    GenerationRequest,
    GenerationResult,
    LoglikelihoodRequest,
    LoglikelihoodResult,
    Request,
    Result,
    RollingRequest,
    RollingResult,
    Sampling,
)
from resources.errors import UserError
from resources.records import SAMPLE_SCHEMA, Output, Sample

ITEM = Item(
    sample_id="0123456789abcdef",
    index=3,
    group="g",
    cluster="c",
    description="Answer.\n\n",
    system=None,
    examples=(Example("Q: 1+1?\nA:", "two"), Example("Q: 1+2?\nA:", "three")),
    query="Q: 2+2?\nA:",
    choices=("four", "five"),
    target=0,
    labels=(1, 0),
    references=("four", "4"),
    incorrect_references=("five",),
)
FEWSHOT = "Q: 1+1?\nA: two\n\nQ: 1+2?\nA: three\n\n"


def spec(task: str, **fields: Any) -> BenchmarkSpec:
    own: dict[str, Any] = {
        "multiple_choice": {"prompt": "p", "choices": "c", "target": "t", "metrics": ["acc"]},
        "generation": {"prompt": "p", "references": "r", "metrics": ["exact_match"]},
        "perplexity": {"text": "t", "metrics": ["perplexity"]},
    }[task]
    base = {"key": "quiz", "version": 1, "title": "t", "source": {"path": "x.csv"}, "task": task}
    document = {**base, **own, "primary_metric": own["metrics"][0], **fields}
    return BenchmarkSpec.model_validate(document)


def template(messages: Sequence[ChatMessage]) -> str:
    return "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + "<assistant>"


def requests(benchmark: BenchmarkSpec, item: Item = ITEM, chat: Any = None) -> list[Request]:
    return list(task_for(benchmark).requests(item, chat))


def prompt(benchmark: BenchmarkSpec, item: Item = ITEM, chat: Any = None) -> str:
    [request] = requests(benchmark, item, chat)
    assert isinstance(request, GenerationRequest)
    return request.prompt


def test_a_prompt_is_description_examples_and_query() -> None:
    assert prompt(spec("generation")) == "Answer.\n\n" + FEWSHOT + "Q: 2+2?\nA:"


def test_delimiters_are_the_benchmarks_own() -> None:
    benchmark = spec("generation", delimiter="=>", fewshot_delimiter="\n##\n")
    assert prompt(benchmark) == "Answer.\n\nQ: 1+1?\nA:=>two\n##\nQ: 1+2?\nA:=>three\n##\nQ: 2+2?\nA:"


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(), st.text()), max_size=3), st.text(), st.text(), st.text(max_size=3))
def test_nothing_is_lost_or_changed_between_the_parts_of_a_prompt(
    pairs: list[tuple[str, str]], query: str, description: str, delimiter: str
) -> None:
    examples = tuple(Example(q, a) for q, a in pairs)
    item = dataclasses.replace(ITEM, examples=examples, query=query, description=description)
    expected = description + "".join(q + delimiter + a + "\n\n" for q, a in pairs) + query
    assert prompt(spec("generation", delimiter=delimiter), item) == expected


def test_each_choice_is_a_continuation_after_the_delimiter() -> None:
    context = "Answer.\n\n" + FEWSHOT + "Q: 2+2?\nA:"
    assert requests(spec("multiple_choice")) == [
        LoglikelihoodRequest(context, " four"),
        LoglikelihoodRequest(context, " five"),
    ]


def test_generation_asks_with_the_benchmarks_parameters() -> None:
    benchmark = spec("generation", generation={"max_new_tokens": 7, "stop": ["\n", "Q:"]})
    [request] = requests(benchmark)
    assert isinstance(request, GenerationRequest)
    assert (request.stop, request.max_new_tokens) == (("\n", "Q:"), 7)


def test_without_a_temperature_one_output_is_asked_for_and_decoded_greedily() -> None:
    [request] = requests(spec("generation", generation={"temperature": 0}))
    assert isinstance(request, GenerationRequest)
    assert (request.sampling, request.draw) == (None, 0)


def test_each_output_of_an_item_is_a_request_with_a_draw_of_its_own() -> None:
    """Draws that share their number are the same text ten times, and pass@10 is pass@1."""
    sampling = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "seed": 7, "outputs": 3}
    asked = requests(spec("generation", generation={**sampling, "stop": ["\n", "Q:"], "max_new_tokens": 5}))
    shown = "Answer.\n\n" + FEWSHOT + "Q: 2+2?\nA:"
    drawn = Sampling(0.8, 0.95, 40, 7)
    assert asked == [GenerationRequest(shown, ("\n", "Q:"), 5, drawn, draw) for draw in range(3)]


def test_a_text_is_read_from_its_start_or_after_a_prompt() -> None:
    assert requests(spec("perplexity")) == [RollingRequest("four")]
    item = dataclasses.replace(ITEM, description="", examples=())
    after = spec("perplexity", prompt="p")
    assert requests(after, item) == [LoglikelihoodRequest("Q: 2+2?\nA:", " four")]


def test_a_chat_has_the_examples_as_turns_and_the_description_in_the_system_turn() -> None:
    """As lm_eval 0.4.13 with --apply_chat_template --fewshot_as_multiturn."""
    assert prompt(spec("generation", chat={}), chat=template) == (
        "<system>Answer.\n\n</><user>Q: 1+1?\nA:</><assistant>two</><user>Q: 1+2?\nA:</><assistant>three</>"
        "<user>Q: 2+2?\nA:</><assistant>"
    )


def test_a_chat_may_have_the_examples_in_one_turn() -> None:
    benchmark = spec("generation", chat={"fewshot_as_turns": False})
    expected = f"<system>Answer.\n\n</><user>{FEWSHOT}Q: 2+2?\nA:</><assistant>"
    assert prompt(benchmark, chat=template) == expected


@pytest.mark.parametrize(
    ("system", "description", "turn"),
    [
        ("You are kind.", "Answer.", "You are kind.\n\nAnswer."),
        ("You are kind.\n", "Answer.", "You are kind.\nAnswer."),
        ("You are kind.", "", "You are kind."),
    ],
)
def test_system_prompt_and_description_are_joined_as_the_harness_does(
    system: str, description: str, turn: str
) -> None:
    item = dataclasses.replace(ITEM, system=system, description=description, examples=())
    assert prompt(spec("generation", chat={}), item, template).startswith(f"<system>{turn}</><user>")


def test_a_chat_without_system_prompt_and_description_has_no_system_turn() -> None:
    item = dataclasses.replace(ITEM, description="", examples=())
    assert prompt(spec("generation", chat={}), item, template) == "<user>Q: 2+2?\nA:</><assistant>"


def test_under_a_chat_template_a_choice_starts_at_once_and_a_text_keeps_its_delimiter() -> None:
    """The harness's rule: a space after the assistant's header would be another token sequence."""
    choices = requests(spec("multiple_choice", chat={}), chat=template)
    assert [request.continuation for request in choices if isinstance(request, LoglikelihoodRequest)] == [
        "four",
        "five",
    ]
    [text] = requests(spec("perplexity", prompt="p", chat={}), chat=template)
    assert isinstance(text, LoglikelihoodRequest)
    assert text.continuation == " four"


PREFILLED = dataclasses.replace(
    ITEM,
    description="",
    examples=(Example("Q: 1+1?\nA:", "It is two"), Example("Q: 1+2?\n", "It is three")),
    prefill="It is",
)


@pytest.mark.parametrize(
    ("as_turns", "conversation"),
    [
        (
            True,
            [
                ("user", "Q: 1+1?\nA:"),
                ("assistant", "It is two"),
                ("user", "Q: 1+2?\n"),
                ("assistant", "It is three"),
                ("user", "Q: 2+2?\nA:"),
                ("assistant", "It is"),
            ],
        ),
        (
            False,
            [
                ("user", "Q: 1+1?\nA: It is two\n\nQ: 1+2?\nIt is three\n\nQ: 2+2?\nA:"),
                ("assistant", "It is"),
            ],
        ),
    ],
)
def test_a_prefill_is_a_last_turn_of_the_assistants(
    as_turns: bool, conversation: list[tuple[str, str]]
) -> None:
    """What lm_eval 0.4.13's build_qa_turn and multiturn_to_singleturn give for a gen_prefix; with another
    conversation a benchmark that begins the answer can't be compared with published scores."""
    benchmark = spec("generation", chat={"prefill": "It is", "fewshot_as_turns": as_turns})
    messages = chat_messages(benchmark, PREFILLED)
    assert [(message["role"], message["content"]) for message in messages] == conversation
    assert prompt(benchmark, PREFILLED, template) == template(messages)


@pytest.mark.parametrize(
    ("prefill", "choice"), [("It is", " four"), ("It is:\n", "four"), ("```", " four"), ("", "four")]
)
def test_a_choice_follows_a_prefill_after_the_delimiter_unless_white_space_is_there(
    prefill: str, choice: str
) -> None:
    """The harness's rule (construct_requests); "isfour" is a word that no model expects."""
    item = dataclasses.replace(ITEM, prefill=prefill)
    first = requests(spec("multiple_choice", chat={"prefill": "p"}), item, template)[0]
    assert isinstance(first, LoglikelihoodRequest)
    assert first.continuation == choice


def test_a_model_without_a_chat_template_is_said_in_one_line() -> None:
    with pytest.raises(UserError, match=r"quiz: .* chat template and the model has none"):
        requests(spec("generation", chat={}), chat=None)


def test_a_benchmark_that_does_not_chat_ignores_the_models_template() -> None:
    assert "<user>" not in prompt(spec("generation"), chat=template)


def sampled(benchmark: BenchmarkSpec, results: Sequence[Result]) -> Sample:
    task = task_for(benchmark)
    return task.sample(ITEM, task.requests(ITEM, None), results)


def test_a_multiple_choice_sample_has_a_value_a_choice_in_order() -> None:
    sample = sampled(
        spec("multiple_choice"),
        [LoglikelihoodResult(-1.5, True, 20, 1, 3), LoglikelihoodResult(-2.5, False, 21, 2, 4)],
    )
    assert (sample.loglikelihoods, sample.choice_tokens, sample.is_greedy) == (
        [-1.5, -2.5],
        [1, 2],
        [True, False],
    )
    assert (sample.prompt_tokens, sample.truncated_tokens, sample.output_tokens) == (21, 4, 0)
    assert (sample.sample_id, sample.index, sample.group, sample.cluster) == (ITEM.sample_id, 3, "g", "c")
    assert (sample.choices, sample.target, sample.labels) == (("four", "five"), 0, (1, 0))
    assert (sample.references, sample.incorrect_references) == (("four", "4"), ("five",))
    assert sample.prompt == "Answer.\n\n" + FEWSHOT + "Q: 2+2?\nA:"
    assert (sample.output, sample.error, sample.scores) == (None, None, {})


def test_a_generation_sample_keeps_the_output_as_it_came() -> None:
    sample = sampled(spec("generation"), [GenerationResult(" four \n", "length", 30, 9, 2)])
    assert (sample.output, sample.finish_reason) == (" four \n", "length")
    assert (sample.prompt_tokens, sample.output_tokens, sample.truncated_tokens) == (30, 9, 2)
    assert sample.loglikelihoods == ()


THREE_OUTPUTS = {"generation": {"temperature": 1.0, "outputs": 3}}
THREE = [
    GenerationResult(" four", "stop", 30, 2, 1),
    GenerationResult("", "eos", 30, 1, 1),
    GenerationResult(" five six", "length", 30, 16, 1),
]


def test_a_sample_keeps_all_outputs_in_the_order_of_their_draws() -> None:
    sample = sampled(spec("generation", **THREE_OUTPUTS), THREE)
    assert sample.outputs == (
        Output(" four", "stop", 2),
        Output("", "eos", 1),
        Output(" five six", "length", 16),
    )
    assert (sample.output, sample.finish_reason) == (" four", "stop")
    assert (sample.prompt_tokens, sample.output_tokens, sample.truncated_tokens) == (30, 19, 1)


def test_one_output_that_is_not_a_number_makes_the_sample_an_error() -> None:
    """A mean over the outputs that happened to work is a number that nobody can compare."""
    results = [THREE[0], GenerationResult("", "nan", 30, 0, 1), THREE[2]]
    assert "NaN" in (sampled(spec("generation", **THREE_OUTPUTS), results).error or "")


def test_a_sample_with_several_outputs_survives_the_way_through_parquet() -> None:
    sample = sampled(spec("generation", **THREE_OUTPUTS), THREE)
    for number, output in enumerate(sample.outputs):
        output.scores = {"exact_match": float(number == 0), "pass@1": 1 / 3}
    table = pa.Table.from_pylist([sample.as_row()], schema=SAMPLE_SCHEMA)
    back = Sample.from_row(table.to_pylist()[0])
    assert back.outputs == sample.outputs
    assert back.as_row() == sample.as_row()


def test_a_row_from_before_there_were_several_outputs_is_still_read() -> None:
    """A team's evaluations of last month must open after an upgrade."""
    row = sampled(spec("generation"), [GenerationResult("x", "stop", 1, 1, 0)]).as_row()
    del row["outputs"]
    assert Sample.from_row(row).outputs == ()


def test_a_perplexity_sample_has_one_value_and_no_prompt_or_the_prompt_that_was_shown() -> None:
    rolling = sampled(spec("perplexity"), [RollingResult(-123.5, 40)])
    assert (rolling.loglikelihoods, rolling.choice_tokens, rolling.prompt) == ([-123.5], [40], "")
    after = sampled(spec("perplexity", prompt="p"), [LoglikelihoodResult(-3.0, True, 12, 2, 1)])
    assert (after.loglikelihoods, after.choice_tokens, after.is_greedy) == ([-3.0], [2], [True])
    assert (after.prompt_tokens, after.truncated_tokens) == (12, 1)
    assert after.prompt.endswith("Q: 2+2?\nA:")


def test_what_is_not_a_number_is_kept_for_the_metrics_to_judge() -> None:
    results = [LoglikelihoodResult(math.nan, False, 1, 1, 0), LoglikelihoodResult(-math.inf, False, 1, 1, 0)]
    sample = sampled(spec("multiple_choice"), results)
    assert math.isnan(sample.loglikelihoods[0])
    assert sample.loglikelihoods[1] == -math.inf


def test_results_that_do_not_belong_to_the_requests_are_a_bug_and_raise() -> None:
    with pytest.raises(ValueError, match="1 results where 2"):
        sampled(spec("multiple_choice"), [LoglikelihoodResult(-1.0, True, 1, 1, 0)])
    with pytest.raises(TypeError, match="expected GenerationResult"):
        sampled(spec("generation"), [RollingResult(-1.0, 1)])


def test_a_sample_survives_its_row() -> None:
    sample = sampled(spec("generation"), [GenerationResult("x", "stop", 1, 1, 0)])
    back = Sample.from_row(sample.as_row())
    assert back.as_row() == sample.as_row()
