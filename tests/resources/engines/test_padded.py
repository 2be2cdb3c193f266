"""Padded batches, the way of models whose state can't be shared: equal in every score to the tree's."""

import inspect
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from resources.engines import GenerationRequest, LoglikelihoodRequest, RollingRequest, Sampling
from resources.engines.padded import batches, group_by_inputs
from resources.engines.settings import EngineSettings
from resources.engines.tokens import Tokens, scoring
from resources.engines.transformers_engine import TransformersEngine
from resources.engines.tree import NoTreeError, TreeModel
from tests.resources.engines.conftest import TREE_FAMILIES, TinyModel

SCORED = [
    LoglikelihoodRequest(context, end)
    for context in ("The quick brown fox", "The quick", "", "One, two,")
    for end in (" jumps over the lazy dog.", " x", " jumps")
]
WRITTEN = [
    GenerationRequest(prompt, ("\n",), 5 + i, sampling, draw)
    for i, prompt in enumerate(("The quick", "The quick brown fox", "a"))
    for sampling, draw in ((None, 0), (Sampling(0.8), 0), (Sampling(0.8), 1))
]


def tokens(*ids: int) -> Tokens:
    return np.array(ids, np.int32)


def padded(path: Any, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> TransformersEngine:
    def refuse(_: Any) -> None:
        raise NoTreeError("its attention can't be replaced")

    with monkeypatch.context() as patch:
        patch.setattr(TreeModel, "of", refuse)
        return TransformersEngine.load(path, EngineSettings(device="cpu", **settings))


def answers(engine: TransformersEngine) -> list[Any]:
    rolling = [RollingRequest("The quick brown fox jumps over the lazy dog. " * 9), RollingRequest("short")]
    return [
        *(result for _, result in sorted(engine.loglikelihoods(SCORED), key=lambda pair: pair[0])),
        *(result for _, result in sorted(engine.rolling_loglikelihoods(rolling), key=lambda pair: pair[0])),
        *(result for _, result in sorted(engine.generations(WRITTEN), key=lambda pair: pair[0])),
    ]


@pytest.mark.parametrize("family", TREE_FAMILIES)
def test_both_ways_give_the_same_answers(
    tiny_model: TinyModel, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that changes its way with a new version of transformers must not change its scores."""
    tree = TransformersEngine.load(tiny_model(family), EngineSettings(device="cpu"))
    plain = padded(tiny_model(family), monkeypatch, batch_tokens=150)
    assert tree.description["passes"] == "prefix tree"
    assert plain.description["passes"] == "padded batches (its attention can't be replaced)"
    for one, other in zip(answers(tree), answers(plain), strict=True):
        if hasattr(one, "loglikelihood"):
            assert one.loglikelihood == pytest.approx(other.loglikelihood, abs=1e-4)
        else:
            assert one == other


def test_a_model_that_computes_all_logits_scores_the_same(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(padded(tiny_model("llama"), monkeypatch))[: len(SCORED)]
    forward = transformers.LlamaForCausalLM.forward

    def without_choice(self: Any, input_ids: Any, use_cache: bool) -> Any:
        return forward(self, input_ids=input_ids, use_cache=use_cache)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", without_choice)
    assert "logits_to_keep" not in inspect.signature(without_choice).parameters
    engine = padded(tiny_model("llama"), monkeypatch, batch_tokens=60)
    for index, result in engine.loglikelihoods(SCORED):
        assert isinstance(result, type(expected[index]))
        assert result.loglikelihood == pytest.approx(expected[index].loglikelihood, abs=1e-4)


def test_answered_requests_are_neither_computed_nor_yielded(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = padded(tiny_model("llama"), monkeypatch, batch_tokens=40)
    whole = dict(engine.loglikelihoods(SCORED))
    rest = dict(engine.loglikelihoods(SCORED, answered={0, 3, 4, 5}))
    assert rest == {index: whole[index] for index in whole if index not in {0, 3, 4, 5}}
    written = dict(engine.generations(WRITTEN))
    assert dict(engine.generations(WRITTEN, answered={1, 2})) == {
        index: written[index] for index in written if index not in {1, 2}
    }


class TestBatches:
    @given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200), st.integers(1, 9))
    def test_every_request_is_in_one_batch_and_no_batch_is_over_budget(
        self, lengths: list[int], budget: int, most: int
    ) -> None:
        planned = list(batches(lengths, budget, most))
        assert sorted(i for batch in planned for i in batch) == list(range(len(lengths)))
        for batch in planned:
            assert len(batch) <= most
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        in_order = [lengths[i] for batch in planned for i in batch]
        assert in_order == sorted(lengths, reverse=True)

    def test_a_batch_is_as_full_as_the_budget_allows(self) -> None:
        assert list(batches([5, 5, 5, 5, 5], 10, 99)) == [[0, 1], [2, 3], [4]]


class TestGrouping:
    @given(
        st.lists(
            st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(1, 4)), max_size=40
        )
    )
    def test_every_sequence_is_asked_once_and_equal_inputs_are_read_once(
        self, drawn: list[tuple[list[int], int]]
    ) -> None:
        sequences = [
            scoring(tokens(9, *ids[: len(ids) - n]), tokens(*ids[-n:]), 10)
            for ids, n in drawn
            if n <= len(ids)
        ]
        rows = group_by_inputs(sequences)
        assert len(rows) == len({s.inputs.tobytes() for s in sequences})
        asked = [
            (index, row.inputs.tolist(), targets.tolist())
            for row in rows
            for targets, indices in row.targets
            for index in indices
        ]
        assert sorted(asked) == [(i, s.inputs.tolist(), s.targets.tolist()) for i, s in enumerate(sequences)]
        assert all(row.scored == max(len(t) for t, _ in row.targets) for row in rows)
        assert all(len({t.tobytes() for t, _ in row.targets}) == len(row.targets) for row in rows)

    def test_choices_of_one_token_are_read_together(self) -> None:
        choices = [scoring(tokens(1, 2, 3), tokens(letter), 10) for letter in (65, 66, 67, 68)]
        (row,) = group_by_inputs(choices)
        assert row.inputs.tolist() == [1, 2, 3]
