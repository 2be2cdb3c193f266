"""The prefix tree: every sequence is read, every shared token once, and each token sees its ancestors."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from resources.engines.planner import Layout, Plan, layout, plan
from resources.engines.tokens import Tokens

# Few different tokens and short texts, so that prefixes are shared, nested and repeated all the time.
SEQUENCES = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=12).map(lambda ids: np.array(ids, np.int32)),
    min_size=1,
    max_size=25,
)
BUDGETS = st.integers(1, 40)


def tokens_on_the_way_to(tree: Plan, node: int) -> list[int]:
    pieces = [tree.sequences[n.sequence][n.start : n.end] for n in (tree.nodes[i] for i in tree.path(node))]
    return [int(token) for piece in reversed(pieces) for token in piece]


@given(SEQUENCES, BUDGETS)
def test_every_sequence_is_the_path_to_its_node(sequences: list[Tokens], budget: int) -> None:
    tree = plan(sequences, budget)
    for sequence, node in zip(sequences, tree.ends, strict=True):
        assert tokens_on_the_way_to(tree, node) == sequence.tolist()


@given(SEQUENCES, BUDGETS)
def test_every_distinct_prefix_is_read_once_and_no_batch_is_over_budget(
    sequences: list[Tokens], budget: int
) -> None:
    tree = plan(sequences, budget)
    prefixes = {tuple(s[:length].tolist()) for s in sequences for length in range(1, len(s) + 1)}
    assert sum(tree.tokens_of(batch) for batch in tree.batches) == len(prefixes)
    assert [node for batch in tree.batches for node in batch] == list(range(len(tree.nodes)))
    assert all(1 <= tree.tokens_of(batch) <= budget for batch in tree.batches)


@given(SEQUENCES, BUDGETS)
def test_parents_come_first_and_subtrees_are_contiguous(sequences: list[Tokens], budget: int) -> None:
    tree = plan(sequences, budget)
    for i, node in enumerate(tree.nodes):
        assert node.parent < i <= node.last
        below = [j for j in range(len(tree.nodes)) if i in list(tree.path(j))]
        assert below == list(range(i, node.last + 1))


@given(SEQUENCES, BUDGETS)
def test_the_longest_text_comes_first(sequences: list[Tokens], budget: int) -> None:
    """What does not fit into memory fails in the first minute, not in the last."""
    tree = plan(sequences, budget)
    first = next(i for i, node in enumerate(tree.nodes) if node.last == i)
    assert tree.nodes[first].end == max(len(sequence) for sequence in sequences)


@given(SEQUENCES, BUDGETS)
def test_sharers_are_the_sequences_through_a_node(sequences: list[Tokens], budget: int) -> None:
    tree = plan(sequences, budget)
    for i, count in enumerate(tree.sharers()):
        assert count == sum(i in list(tree.path(end)) for end in tree.ends)


@given(SEQUENCES, BUDGETS, st.data())
def test_what_is_needed_for_some_sequences_has_all_that_it_builds_on(
    sequences: list[Tokens], budget: int, data: st.DataObject
) -> None:
    """A resumed run skips the batches of answered requests, and no batch's ancestors may be among them."""
    tree = plan(sequences, budget)
    wanted = data.draw(st.sets(st.integers(0, len(sequences) - 1)))
    needed = tree.needed(wanted)
    read = {node for batch in needed for node in batch}
    assert [batch for batch in tree.batches if batch in needed] == needed
    assert all(tree.nodes[node].parent in {-1, *read} for node in read)
    assert all(tree.ends[sequence] in read for sequence in wanted)
    assert wanted or not needed
    assert tree.needed(range(len(sequences))) == list(tree.batches)


def seen_in(found: Layout, size: int) -> tuple[NDArray[np.int64], list[int]]:
    """How often each token of a batch attends to each other one, and the stored node that it attends to."""
    seen = np.zeros((size, size), np.int64)
    for block in found.blocks:
        length = block.stop - block.start
        visible = np.tri(length, dtype=np.bool_) if block.visible is None else block.visible
        seen[block.start : block.stop, block.start : block.stop] += visible
    for link in found.links:
        seen[link.start : link.stop, link.first : link.end] += 1
    stored = [-1] * size
    for piece in found.stored:
        for token in range(piece.start, piece.stop):
            assert stored[token] == -1
            stored[token] = piece.node
    return seen, stored


@given(SEQUENCES, BUDGETS, st.integers(1, 20))
def test_each_token_attends_to_its_ancestors_and_itself_once(
    sequences: list[Tokens], budget: int, dense: int
) -> None:
    """One token too many or too few here is a wrong log-likelihood that looks right."""
    tree = plan(sequences, budget)
    for batch in tree.batches:
        offsets, size = tree.offsets(batch), tree.tokens_of(batch)
        seen, stored = seen_in(layout(tree, batch, dense), size)
        for i in batch:
            expected, outside = np.zeros(size, np.int64), -1
            for ancestor in list(tree.path(i))[1:]:
                if ancestor not in offsets:
                    outside = ancestor
                    break
                node = tree.nodes[ancestor]
                expected[offsets[ancestor] : offsets[ancestor] + node.end - node.start] = 1
            for token in range(tree.nodes[i].end - tree.nodes[i].start):
                expected[offsets[i] + token] = 1
                assert (seen[offsets[i] + token] == expected).all()
                assert stored[offsets[i] + token] == outside


@given(SEQUENCES, st.integers(5, 40), st.integers(2, 20))
def test_masked_blocks_stay_small(sequences: list[Tokens], budget: int, dense: int) -> None:
    """A mask over a whole batch would cost the square of its tokens."""
    tree = plan(sequences, budget)
    for batch in tree.batches:
        blocks = layout(tree, batch, dense).blocks
        assert all(block.visible is None or block.stop - block.start <= dense for block in blocks)


@settings(max_examples=20)
@given(st.integers(2, 40), st.integers(1, 6))
def test_the_work_grows_with_the_distinct_tokens_only(items: int, choices: int) -> None:
    """Six solved examples before each of 40 questions with 6 choices: read once, not 240 times."""
    prompt = np.arange(600, dtype=np.int32)
    sequences = [
        np.concatenate([prompt, np.full(10, 1000 + item, np.int32), np.full(5, 2000 + choice, np.int32)])
        for item in range(items)
        for choice in range(choices)
    ]
    tree = plan(sequences, 256)
    assert sum(map(tree.tokens_of, tree.batches)) == 600 + items * (10 + choices * 5)


def test_equal_sequences_end_at_one_node() -> None:
    tree = plan([np.array([1, 2], np.int32)] * 3, 10)
    assert len(tree.nodes) == 1
    assert tree.ends == [0, 0, 0]


def test_a_text_longer_than_the_budget_is_cut_into_a_chain() -> None:
    tree = plan([np.arange(10, dtype=np.int32)], 4)
    assert [(n.parent, n.start, n.end) for n in tree.nodes] == [(-1, 0, 4), (0, 4, 8), (1, 8, 10)]


def test_nothing_to_read_is_no_batch() -> None:
    assert list(plan([], 4).batches) == []
