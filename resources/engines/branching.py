"""Scoring and writing on prefix trees: the way of all models whose attention can be replaced."""

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resources.engines.attention import KeyValue, Path, Writing
from resources.engines.choosing import Running, advance
from resources.engines.memory import Limits
from resources.engines.meter import Meter
from resources.engines.planner import Plan, plan
from resources.engines.tokens import Scoring
from resources.engines.tree import Reader, TreeModel

_SHARED_BY = 6
"""So many texts read a path's keys and values in place; for fewer, a copy for each costs less."""
_ROUND = 64  # room for own tokens grows by so much at a time


class Branching:
    """Reads every shared prefix once, and writes many texts at a time in preallocated memory."""

    def __init__(self, model: TreeModel) -> None:
        self._model = model

    def score(
        self, sequences: Sequence[Scoring], todo: Collection[int], limits: Limits, meter: Meter
    ) -> Iterator[tuple[int, float, bool]]:
        """``(index, log-likelihood of the targets, whether all are greedy)`` of each sequence of `todo`."""
        tree = plan([sequence.inputs for sequence in sequences], limits.tokens)
        asking = _Asking(tree, sequences)
        reader = Reader(self._model, tree)
        for batch in tree.needed(todo):
            tokens = tree.tokens_of(batch)
            with meter.step("prefill", prompt_tokens=tokens, sequences=len(asking.ending(batch))):
                hidden = reader.read(batch)
                asking.take(batch, self._model, hidden)
                del hidden
            for index in asking.ending(batch):
                if index in todo:
                    yield index, float(asking.sums[index]), bool(asking.greedy[index])

    def write(
        self,
        count: int,
        running: Callable[[int], Running],
        todo: Collection[int],
        limits: Limits,
        meter: Meter,
    ) -> Iterator[tuple[int, Running]]:
        """``(index, finished text)`` of each of `todo`; `running` begins the text of an index."""
        texts = [running(index) for index in range(count)]
        prompts = _Prompts(self._model, texts, todo, limits)
        slots = _Slots(limits)
        while True:
            while prompts.waiting and slots.has_room(prompts.waiting[0]):
                slots.add(prompts.waiting.popleft())
            if not prompts.waiting and prompts.batches and len(slots.rows) < limits.sequences:
                yield from prompts.read(meter)
                continue
            if not slots.rows:
                if not prompts.batches and not prompts.waiting:
                    return
                continue
            with meter.step("decode", output_tokens=len(slots.rows), sequences=len(slots.rows)):
                hidden = self._model.write(slots.latest(), slots.positions(), slots.writing())
                for first, logits in self._model.logits(hidden):
                    advance([row.text for row in slots.rows[first : first + len(logits)]], logits)
                del hidden
            for row in slots.finished():
                yield row.index, row.text


class _Asking:
    """Which positions of a tree are asked for which tokens, and what was answered."""

    def __init__(self, tree: Plan, sequences: Sequence[Scoring]) -> None:
        self._tree = tree
        self._sequences = sequences
        self.sums = np.zeros(len(sequences))
        self.greedy = np.ones(len(sequences), np.bool_)
        self._asked: dict[int, list[int]] = defaultdict(list)
        self._ends: dict[int, list[int]] = defaultdict(list)
        for index, sequence in enumerate(sequences):
            self._ends[tree.ends[index]].append(index)
            for node in tree.path(tree.ends[index]):
                self._asked[node].append(index)
                if tree.nodes[node].start <= len(sequence.inputs) - len(sequence.targets):
                    break

    def ending(self, batch: range) -> list[int]:
        """The sequences whose last token is in a batch."""
        return [index for node in batch for index in self._ends.get(node, ())]

    def take(self, batch: range, model: TreeModel, hidden: Tensor) -> None:
        """Score what a batch's hidden states [tokens, width] are asked for.

        log_softmax in float32, as the harness: logsumexp is more exact but then differs from it.
        """
        offsets = self._tree.offsets(batch)
        rows, targets, owners = [], [], []
        for i in batch:
            node = self._tree.nodes[i]
            for index in self._asked.get(i, ()):
                sequence = self._sequences[index]
                begin = len(sequence.inputs) - len(sequence.targets)
                first, end = max(node.start, begin), min(node.end, len(sequence.inputs))
                rows.append(np.arange(first, end) - node.start + offsets[i])
                targets.append(sequence.targets[first - begin : end - begin])
                owners.append(np.full(end - first, index))
        if not rows:
            return
        where, place = np.unique(np.concatenate(rows), return_inverse=True)
        wanted, owner = np.concatenate(targets).astype(np.int64), np.concatenate(owners)
        for first, logits in model.logits(hidden[torch.from_numpy(where).to(hidden.device)]):
            chosen = (place >= first) & (place < first + len(logits))
            row = torch.from_numpy(place[chosen] - first).to(logits.device)
            target = torch.from_numpy(wanted[chosen]).to(logits.device)
            log_probabilities = torch.nn.functional.log_softmax(logits, dim=-1)
            found = log_probabilities[row, target].double().cpu().numpy()
            likeliest = (log_probabilities.argmax(-1)[row] == target).cpu().numpy()
            np.add.at(self.sums, owner[chosen], found)
            np.logical_and.at(self.greedy, owner[chosen], likeliest)


@dataclass(slots=True, eq=False)
class _Row:
    """A text being written, with the keys and values of its own tokens."""

    index: int
    text: Running
    shared: Path | None
    own: Mapping[int, KeyValue]
    own_tokens: int
    most_tokens: int
    """Own tokens when it is as long as it can become."""

    @property
    def base(self) -> int:
        """The position of the first own token."""
        return 0 if self.shared is None else self.shared.length


class _Prompts:
    """Reads the prompts batch by batch; those that are read wait for a place among the running texts."""

    def __init__(
        self, model: TreeModel, texts: Sequence[Running], todo: Collection[int], limits: Limits
    ) -> None:
        self._model = model
        self._texts = texts
        self._todo = todo
        self._tree = plan([text.prompt for text in texts], limits.tokens)
        self._reader = Reader(model, self._tree, holds=True)
        self._sharers = self._tree.sharers()
        self._ends: dict[int, list[int]] = defaultdict(list)
        for index, node in enumerate(self._tree.ends):
            self._ends[node].append(index)
        self.batches = deque(self._tree.needed(todo))
        self.waiting: deque[_Row] = deque()

    def read(self, meter: Meter) -> Iterator[tuple[int, Running]]:
        """Read the next batch; yields texts that are finished with their first token."""
        tree, batch = self._tree, self.batches.popleft()
        ending = [(i, index) for i in batch for index in self._ends.get(i, ()) if index in self._todo]
        shared = {i: self._shared(i) for i, _ in ending}
        with meter.step("prefill", prompt_tokens=tree.tokens_of(batch), sequences=len(ending)):
            hidden = self._reader.read(batch, keep={node for node in shared.values() if node is not None})
            offsets = tree.offsets(batch)
            last = [offsets[i] + tree.nodes[i].end - tree.nodes[i].start - 1 for i, _ in ending]
            for first, logits in self._model.logits(hidden[torch.tensor(last, dtype=torch.long)]):
                part = ending[first : first + len(logits)]
                advance([self._texts[index] for _, index in part], logits)
            for i, index in ending:
                if self._texts[index].completion.finish_reason is None:
                    self.waiting.append(self._row(i, index, shared[i]))
        for _, index in ending:
            if self._texts[index].completion.finish_reason is not None:
                yield index, self._texts[index]

    def _shared(self, end: int) -> int | None:
        """The deepest node on the way to a prompt's end that enough texts go through."""
        return next((i for i in self._tree.path(end) if self._sharers[i] >= _SHARED_BY), None)

    def _row(self, end: int, index: int, shared: int | None) -> _Row:
        path = None if shared is None else self._reader.paths[shared]
        base = 0 if path is None else path.length
        text = self._texts[index]
        own = len(text.prompt) - base
        return _Row(
            index, text, path, self._reader.tail(end, base), own, own + text.completion.max_new_tokens
        )


class _Slots:
    """The running texts: row i of every layer's buffer holds the own keys and values of text i."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.rows: list[_Row] = []
        self._buffers: dict[int, KeyValue] = {}
        self._room = (0, 0)  # rows and tokens of the buffers

    def has_room(self, row: _Row) -> bool:
        """Whether one more text fits; the first always does."""
        longest = max((other.most_tokens for other in (*self.rows, row)), default=0)
        fits = (len(self.rows) + 1) * longest <= self._limits.cached_tokens
        return not self.rows or (fits and len(self.rows) < self._limits.sequences)

    def add(self, row: _Row) -> None:
        """Give a text a place."""
        self.rows.append(row)
        self._grow(len(self.rows), max(other.most_tokens for other in self.rows), row.own)
        at = len(self.rows) - 1
        for layer, own in row.own.items():
            for buffer, values in zip(self._buffers[layer], own, strict=True):
                buffer[at, :, : row.own_tokens] = values
        row.own = {}

    def latest(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The last token of each text, which is read next."""
        return np.array([row.text.completion.tokens[-1] for row in self.rows], np.int64)

    def positions(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Its position."""
        return np.array([row.base + row.own_tokens for row in self.rows], np.int64)

    def writing(self) -> Writing:
        """One step of all texts."""
        for row in self.rows:
            row.own_tokens += 1
        groups: dict[int, tuple[list[int], Path]] = {}
        for at, row in enumerate(self.rows):
            if row.shared is not None:
                groups.setdefault(id(row.shared), ([], row.shared))[0].append(at)
        shared = [
            (None if len(members) == len(self.rows) else members, path) for members, path in groups.values()
        ]
        lengths = np.array([row.own_tokens for row in self.rows])
        return Writing(self._buffers, lengths, np.array([row.base for row in self.rows]), shared)

    def finished(self) -> list[_Row]:
        """Take out the texts that are done; the last ones take their places."""
        done = [row for row in self.rows if row.text.completion.finish_reason is not None]
        for row in done:
            at, end = self.rows.index(row), len(self.rows) - 1
            moved = self.rows.pop()
            if at != end:
                self.rows[at] = moved
                for pair in self._buffers.values():
                    for buffer in pair:
                        buffer[at, :, : moved.own_tokens] = buffer[end, :, : moved.own_tokens]
        return done

    def _grow(self, rows: int, tokens: int, example: Mapping[int, KeyValue]) -> None:
        had_rows, had_tokens = self._room
        if rows <= had_rows and tokens <= had_tokens:
            return
        tokens = max(had_tokens, -(-tokens // _ROUND) * _ROUND)
        if rows > had_rows:
            most = min(self._limits.sequences, self._limits.cached_tokens // tokens)
            rows = max(rows, min(max(2 * had_rows, 8), most))
        rows = max(rows, had_rows)
        for layer, pair in example.items():
            grown = []
            for kind, values in enumerate(pair):
                buffer = values.new_empty(rows, values.shape[0], tokens, values.shape[2])
                if layer in self._buffers:
                    buffer[:had_rows, :, :had_tokens] = self._buffers[layer][kind]
                # What is masked must be a number: NaN left over in memory would spread through 0 x NaN.
                buffer[had_rows:].zero_()
                buffer[:, :, had_tokens:].zero_()
                grown.append(buffer)
            self._buffers[layer] = grown[0], grown[1]
        self._room = rows, tokens
