"""The floor is counted right on cases that can be counted by hand."""

from pathlib import Path

import pytest

from tests.performance.flops import Count, ModelShape, Reading, least, readings_of, whole

SHAPE = ModelShape(layers=2, hidden=4, width=4, vocabulary=10, parameters=100)


def test_operations_are_those_of_layers_attention_and_head() -> None:
    assert Count(tokens=3, attended=6, headed=2).flops(SHAPE) == 2 * 100 * 3 + 4 * 4 * 2 * 6 + 2 * 4 * 10 * 2


def test_a_request_alone_costs_the_least_but_for_the_head() -> None:
    alone = [Reading.of_scoring([1, 2, 3], [4, 5])]  # reads 1 2 3 4; the outputs after 3 and 4 are scored
    assert whole(alone, all_headed=True) == Count(tokens=4, attended=1 + 2 + 3 + 4, headed=4)
    assert least(alone) == Count(tokens=4, attended=1 + 2 + 3 + 4, headed=2)


def test_choices_share_their_question_and_the_output_after_it() -> None:
    """Fails when the floor, and with it what is left to gain, is said to be another than it is."""
    choices = [Reading.of_scoring([1, 2], [3, 4, 5]), Reading.of_scoring([1, 2], [6, 7])]
    # Read whole: 1 2 3 4 and 1 2 6. Shared: 1 2, then 3 4 and 6. Scored: after 2 (once), 3, 4 and 6.
    assert whole(choices, all_headed=True) == Count(tokens=7, attended=10 + 6, headed=7)
    assert least(choices) == Count(tokens=5, attended=1 + 2 + 3 + 4 + 3, headed=4)


def test_choices_of_one_token_read_the_same_and_are_read_once_by_both() -> None:
    letters = [Reading.of_scoring([1, 2, 3], [letter]) for letter in (4, 5, 6, 7)]
    assert whole(letters, all_headed=True) == Count(tokens=3, attended=6, headed=3)
    assert least(letters) == Count(tokens=3, attended=6, headed=1)


def test_a_reading_that_begins_another_is_inside_it() -> None:
    nested = [Reading((1, 2), 1), Reading((1, 2, 3), 1), Reading((2,), 1)]
    assert least(nested) == Count(tokens=4, attended=1 + 2 + 3 + 1, headed=3)


def test_generation_reads_the_prompt_once_and_each_token_but_the_last() -> None:
    one = Reading.of_generation([1, 2, 3], generated=3)
    other = Reading.of_generation([1, 2, 4], generated=1)
    assert whole([one, other], all_headed=False) == Count(tokens=5 + 3, attended=15 + 6, headed=4)
    assert least([one, other]) == Count(tokens=5 + 1, attended=15 + 3, headed=4)


def test_rolling_windows_are_read_whole_with_their_context() -> None:
    record = {"type": "loglikelihood_rolling", "ids": [1, 2, 3, 4, 5], "windows": [[1, 3], [2, 2]]}
    first, second = readings_of(record)
    assert (len(first.tokens), first.tokens[1:], first.outputs) == (3, (1, 2), 3)
    assert second == Reading((2, 3, 4), 2)


def test_recorded_requests_are_read_as_they_were_asked() -> None:
    scored = {"type": "loglikelihood", "context_ids": [1, 2], "continuation_ids": [3, 4]}
    generated = {"type": "generate_until", "context_ids": [1, 2], "output_tokens": 2}
    assert readings_of(scored) == [Reading((1, 2, 3), 2)]
    assert readings_of(generated) == [Reading((1, 2, -1), 2)]


def test_the_model_s_shape_is_that_of_its_files(smollm: Path) -> None:
    shape = ModelShape.read(smollm)
    assert (shape.layers, shape.hidden, shape.width, shape.vocabulary) == (30, 576, 576, 49_152)
    assert shape.parameters == pytest.approx(106.2e6, rel=1e-3)  # SmolLM2-135M less 49,152 x 576
