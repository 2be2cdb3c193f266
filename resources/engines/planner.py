"""In what order a model reads many token sequences, so that it reads every shared prefix once.

Pure functions on token ids; nothing here knows of torch. `plan` folds the sequences into a prefix tree and
cuts it into batches under a budget of tokens. `layout` says what each token of a batch attends to, as few
dense pieces as possible: the form in which an attention kernel can compute it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from resources.engines.tokens import Tokens


class Node(NamedTuple):
    """Tokens ``sequences[sequence][start:end]``, read after those of `parent` (-1: at the start of a text).

    `start` and `end` are positions in the text. `last` is the last node below it, itself if there is none.
    """

    parent: int
    sequence: int
    start: int
    end: int
    last: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A prefix tree in the order in which it is read: a node comes after its parent, subtrees are contiguous.

    `ends` holds for each sequence the node with whose last token it ends. A batch is a range of nodes.
    """

    sequences: Sequence[Tokens]
    nodes: Sequence[Node]
    ends: Sequence[int]
    batches: Sequence[range]

    def tokens_of(self, batch: range) -> int:
        """How many tokens a batch reads."""
        return sum(self.nodes[i].end - self.nodes[i].start for i in batch)

    def token_ids(self, batch: range) -> Tokens:
        """The token ids of a batch, node after node."""
        nodes = [self.nodes[i] for i in batch]
        return np.concatenate([self.sequences[n.sequence][n.start : n.end] for n in nodes])

    def positions(self, batch: range) -> NDArray[np.int64]:
        """The position in its text of each token of a batch."""
        return np.concatenate([np.arange(self.nodes[i].start, self.nodes[i].end) for i in batch])

    def offsets(self, batch: range) -> dict[int, int]:
        """Where in the batch each node's tokens begin."""
        offsets, offset = {}, 0
        for i in batch:
            offsets[i] = offset
            offset += self.nodes[i].end - self.nodes[i].start
        return offsets

    def path(self, node: int) -> Iterator[int]:
        """The node and its ancestors, upwards."""
        while node >= 0:
            yield node
            node = self.nodes[node].parent

    def needed(self, sequences: Collection[int]) -> list[range]:
        """The batches that must be read for some of the sequences, in order.

        A batch is read as a whole, so with it those in which any of its nodes' ancestors are.
        """
        wanted = bytearray(len(self.nodes))
        for sequence in sequences:
            wanted[self.ends[sequence]] = 1
        batches = []
        for batch in reversed(self.batches):
            if any(wanted[batch.start : batch.stop]):
                batches.append(batch)
                for node in batch:
                    if self.nodes[node].parent >= 0:
                        wanted[self.nodes[node].parent] = 1
        return batches[::-1]

    def sharers(self) -> list[int]:
        """How many sequences go through each node."""
        counts = [0] * len(self.nodes)
        for node in self.ends:
            counts[node] += 1
        for node in range(len(counts) - 1, 0, -1):
            if self.nodes[node].parent >= 0:
                counts[self.nodes[node].parent] += counts[node]
        return counts


def plan(sequences: Sequence[Tokens], budget: int) -> Plan:
    """The prefix tree of non-empty `sequences` in batches of at most `budget` tokens.

    Each distinct prefix is one path, so every shared token is in exactly one node and one batch; nodes longer
    than the budget are cut. Among siblings the one that leads to the longest text comes first: what does not
    fit into memory fails at once, and an estimate of the time left errs on the safe side. Sorting dominates:
    O(n log n) in the number of sequences.
    """
    order, lengths_shared = _sorted(sequences)
    tree = _Tree(sequences, order, lengths_shared)
    return tree.numbered(budget)


def _sorted(sequences: Sequence[Tokens]) -> tuple[list[int], list[int]]:
    """Indices in lexicographic order, and how many tokens each has in common with the one before."""
    keys = [tokens.astype(">u4").tobytes() for tokens in sequences]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    shared = [0] * len(order)
    for i in range(1, len(order)):
        first, second = keys[order[i - 1]], keys[order[i]]
        shared[i] = len(second) // 4 if first == second else _common(first, second) // 4
    return order, shared


def _common(first: bytes, second: bytes) -> int:
    """Length in bytes of the common prefix of two texts that are not equal."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    a = np.frombuffer(first, np.uint8, shorter)
    return int((a != np.frombuffer(second, np.uint8, shorter)).argmax())


class _Tree:
    """The compressed tree of sorted sequences, built by keeping the path to the latest one on a stack."""

    def __init__(self, sequences: Sequence[Tokens], order: Sequence[int], shared: Sequence[int]) -> None:
        self._sequences = sequences
        self._parent: list[int] = []
        self._sequence: list[int] = []
        self._start: list[int] = []
        self._end: list[int] = []
        self._ends = [-1] * len(sequences)
        stack: list[int] = []
        for index, common in zip(order, shared, strict=True):
            length = len(sequences[index])
            while stack and self._start[stack[-1]] >= common:
                stack.pop()
            if stack and self._end[stack[-1]] > common:
                stack[-1] = self._split(stack[-1], common)
            if length > common:
                stack.append(self._add(stack[-1] if stack else -1, index, common, length))
            self._ends[index] = stack[-1]

    def _add(self, parent: int, sequence: int, start: int, end: int) -> int:
        self._parent.append(parent)
        self._sequence.append(sequence)
        self._start.append(start)
        self._end.append(end)
        return len(self._parent) - 1

    def _split(self, node: int, at: int) -> int:
        """Put the tokens of a node before `at` into a new node above it."""
        above = self._add(self._parent[node], self._sequence[node], self._start[node], at)
        self._parent[node], self._start[node] = above, at
        return above

    def _children(self) -> tuple[list[int], list[int]]:
        """Children, longest reach first: those of node p are ``order[first[p + 1]:first[p + 2]]``."""
        parents = np.array(self._parent, np.int64)
        reach = np.array(self._end, np.int64)
        for node in np.argsort(-np.array(self._start, np.int64), kind="stable").tolist():
            parent = self._parent[node]
            if parent >= 0 and reach[node] > reach[parent]:
                reach[parent] = reach[node]
        order = np.lexsort((np.array(self._sequence), -reach, parents))
        first = np.searchsorted(parents[order], np.arange(-1, len(parents) + 1))
        return order.tolist(), first.tolist()

    def numbered(self, budget: int) -> Plan:
        """The plan: nodes in the order of reading, cut into batches."""
        order, first = self._children()
        parents: list[int] = []
        spans: list[tuple[int, int, int]] = []
        number = [-1] * len(self._parent)  # of the last piece of each node
        batches: list[range] = []
        begun = used = 0
        waiting = order[first[0] : first[1]][::-1]
        while waiting:
            node = waiting.pop()
            parent = self._parent[node]
            above = number[parent] if parent >= 0 else -1
            sequence, end = self._sequence[node], self._end[node]
            for start in range(self._start[node], end, budget):
                stop = min(start + budget, end)
                if used + stop - start > budget:
                    batches.append(range(begun, len(spans)))
                    begun, used = len(spans), 0
                used += stop - start
                parents.append(above)
                spans.append((sequence, start, stop))
                above = len(spans) - 1
            number[node] = above
            waiting += order[first[node + 1] : first[node + 2]][::-1]
        if spans:
            batches.append(range(begun, len(spans)))
        last = list(range(len(spans)))
        for i in range(len(spans) - 1, -1, -1):
            if parents[i] >= 0 and last[i] > last[parents[i]]:
                last[parents[i]] = last[i]
        nodes = [Node(parents[i], *spans[i], last[i]) for i in range(len(spans))]
        return Plan(self._sequences, nodes, [number[node] for node in self._ends], batches)


class Block(NamedTuple):
    """Tokens ``start:stop`` of a batch attend to each other: where `visible` [row, column], or causally."""

    start: int
    stop: int
    visible: NDArray[np.bool_] | None


class Link(NamedTuple):
    """Tokens ``start:stop`` of a batch attend to all tokens ``first:end`` of the same batch."""

    start: int
    stop: int
    first: int
    end: int


class Stored(NamedTuple):
    """Tokens ``start:stop`` of a batch attend to the whole path to `node`, read in earlier batches."""

    start: int
    stop: int
    node: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What the tokens of a batch attend to; together every token's ancestors and itself, each once."""

    blocks: Sequence[Block]
    links: Sequence[Link]
    stored: Sequence[Stored]


def layout(plan: Plan, batch: range, dense: int) -> Layout:
    """Cut a batch's attention into pieces: subtrees of at most `dense` tokens as one masked block each.

    What is below a larger node is linked to it as a whole. Siblings share a block while they fit.
    """
    nodes, offsets = plan.nodes, plan.offsets(batch)
    total = plan.tokens_of(batch)
    blocks: list[Block] = []
    links: list[Link] = []
    stored: list[Stored] = []

    def stop_of(node: int) -> int:
        """Where the tokens of the subtree end, as far as it is in this batch."""
        return offsets.get(nodes[node].last + 1, total)

    def siblings(first: int, end: int) -> Iterator[int]:
        node = first
        while node < end:
            yield node
            node = nodes[node].last + 1

    waiting: list[tuple[int, int]] = [(batch.start, batch.stop)]
    while waiting:
        first, end = waiting.pop()
        group: list[int] = []
        for node in siblings(first, end):
            size = stop_of(node) - offsets[node]
            if size > dense:
                below = offsets[node] + nodes[node].end - nodes[node].start
                blocks.append(Block(offsets[node], below, None))
                if below < stop_of(node):
                    links.append(Link(below, stop_of(node), offsets[node], below))
                    waiting.append((node + 1, min(nodes[node].last + 1, batch.stop)))
                continue
            if group and stop_of(node) - offsets[group[0]] > dense:
                blocks.append(_dense(plan, offsets, group, stop_of))
                group = []
            if group and offsets[node] != stop_of(group[-1]):  # a large sibling came between
                blocks.append(_dense(plan, offsets, group, stop_of))
                group = []
            group.append(node)
        if group:
            blocks.append(_dense(plan, offsets, group, stop_of))
    for node in siblings(batch.start, batch.stop):
        parent = nodes[node].parent
        if parent < 0:
            continue
        if stored and stored[-1].node == parent and stored[-1].stop == offsets[node]:
            stored[-1] = Stored(stored[-1].start, stop_of(node), parent)
        else:
            stored.append(Stored(offsets[node], stop_of(node), parent))
    return Layout(blocks, links, stored)


def _dense(plan: Plan, offsets: dict[int, int], group: list[int], stop_of: Callable[[int], int]) -> Block:
    """Subtrees side by side as one block; causal without a mask where it is a single chain."""
    start, stop = offsets[group[0]], stop_of(group[-1])
    end = next((i for i, offset in offsets.items() if offset >= stop), max(offsets) + 1)
    members = range(group[0], end)
    if len(members) == 1:
        return Block(start, stop, None)
    visible = np.zeros((stop - start, stop - start), np.bool_)
    for i in members:
        node = plan.nodes[i]
        first = offsets[i] - start
        size = node.end - node.start
        if node.parent in offsets and node.parent >= group[0]:
            above = plan.nodes[node.parent]
            visible[first : first + size] = visible[
                offsets[node.parent] - start + above.end - above.start - 1
            ]
        visible[first : first + size, first : first + size] |= np.tri(size, dtype=np.bool_)
    return Block(start, stop, visible)
