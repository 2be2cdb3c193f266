"""Scoring and writing in padded batches: for models whose state can't be shared, recurrent ones say."""

import copy
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from resources.engines.choosing import Running, advance
from resources.engines.memory import Limits
from resources.engines.meter import Meter
from resources.engines.tokens import Scoring, Tokens

_POSITIONS_AT_ONCE = 512  # of one log_softmax, which holds a second copy of their logits


class Padded:
    """Sorts by length, pads to the longest of a batch, and lets transformers generate."""

    def __init__(self, model: Any, generation_config: Any, pad_token: int, *, takes_last: bool) -> None:
        """`takes_last`: the model's forward can make the logits of the last positions only."""
        self._model = model
        self._generation_config = generation_config
        self._pad_token = pad_token
        self._takes_last = takes_last

    def score(
        self, sequences: Sequence[Scoring], todo: Collection[int], limits: Limits, meter: Meter
    ) -> Iterator[tuple[int, float, bool]]:
        """``(index, log-likelihood of the targets, whether all are greedy)`` of each sequence of `todo`."""
        rows = group_by_inputs(sequences)
        for batch in batches([len(row.inputs) for row in rows], limits.tokens, limits.sequences):
            chosen = [rows[i] for i in batch]
            indices = {index for row in chosen for _, askers in row.targets for index in askers}
            if not indices.intersection(todo):
                continue
            tokens = sum(len(row.inputs) for row in chosen)
            with meter.step("prefill", prompt_tokens=tokens, sequences=len(chosen)):
                scores = self._score_batch(chosen)
            yield from (score for score in scores if score[0] in todo)

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
        lengths = [len(text.prompt) + text.completion.max_new_tokens for text in texts]
        for batch in batches(lengths, limits.tokens, limits.sequences):
            if not set(batch).intersection(todo):
                continue
            chosen = [texts[i] for i in batch]
            self._generate(chosen, meter)
            yield from ((i, texts[i]) for i in batch if i in todo)

    @torch.inference_mode()
    def _score_batch(self, rows: Sequence["ScoringRow"]) -> list[tuple[int, float, bool]]:
        # Padded on the right, where a causal model's earlier positions can't see it: no mask is needed.
        inputs = np.zeros((len(rows), max(len(row.inputs) for row in rows)), np.int64)
        for number, row in enumerate(rows):
            inputs[number, : len(row.inputs)] = row.inputs
        first = min(len(row.inputs) - row.scored for row in rows)
        tokens = torch.from_numpy(inputs).to(self._model.device)
        if self._takes_last:
            # A number: a tensor of positions would be on the wrong device of a model spread over several.
            wanted = inputs.shape[1] - first
            logits = self._model(input_ids=tokens, use_cache=False, logits_to_keep=wanted).logits
        else:
            logits = self._model(input_ids=tokens, use_cache=False).logits[:, first:]
        scores: list[tuple[int, float, bool]] = []
        for row, row_logits in zip(rows, logits, strict=True):
            end = len(row.inputs) - first
            scores.extend(_score_row(row, row_logits[end - row.scored : end]))
        return scores

    @torch.inference_mode()
    def _generate(self, texts: Sequence[Running], meter: Meter) -> None:
        longest = max(len(text.prompt) for text in texts)
        tokens = np.full((len(texts), longest), self._pad_token, np.int64)
        mask = np.zeros((len(texts), longest), np.int64)
        for row, text in enumerate(texts):
            tokens[row, longest - len(text.prompt) :] = text.prompt
            mask[row, longest - len(text.prompt) :] = 1
        config = copy.deepcopy(self._generation_config)
        config.max_new_tokens = max(text.completion.max_new_tokens for text in texts)
        self._model.generate(
            input_ids=torch.from_numpy(tokens).to(self._model.device),
            attention_mask=torch.from_numpy(mask).to(self._model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([_Choose(texts, meter)]),
            stopping_criteria=StoppingCriteriaList([_AllDone(texts)]),
        )


class _Choose(LogitsProcessor):
    """Lets the texts choose their next tokens and leaves generate() no other choice."""

    def __init__(self, texts: Sequence[Running], meter: Meter) -> None:
        self._texts = texts
        self._meter = meter
        self._since = time.perf_counter()
        self._read = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002  (transformers' signature)
        running = sum(text.completion.finish_reason is None for text in self._texts)
        advance(self._texts, scores.float())
        before, self._since = self._since, time.perf_counter()
        if self._read:
            self._meter.tell("decode", self._since - before, output_tokens=running, sequences=running)
        else:
            read = sum(len(text.prompt) for text in self._texts)
            self._meter.tell("prefill", self._since - before, prompt_tokens=read, sequences=running)
        self._read = True
        chosen = torch.full_like(scores, float("-inf"))
        for row, text in enumerate(self._texts):
            chosen[row, text.completion.tokens[-1] if text.completion.tokens else 0] = 0.0
        return chosen


class _AllDone(StoppingCriteria):
    """Ends those that have enough."""

    def __init__(self, texts: Sequence[Running]) -> None:
        self._texts = texts

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002
        done = [text.completion.finish_reason is not None for text in self._texts]
        return torch.tensor(done, device=input_ids.device)


def batches(lengths: Sequence[int], budget: int, most: int) -> Iterator[list[int]]:
    """Split indices into batches of at most `most`, longest first, of at most `budget` tokens when padded.

    A length over the budget is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and ((len(batch) + 1) * lengths[batch[0]] > budget or len(batch) == most):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@dataclass(slots=True, eq=False)
class ScoringRow:
    """One sequence for the model to read, and the targets of every request that reads just this.

    Choices of one token (A, B, C, D) read the same tokens; so do identical requests.
    """

    inputs: Tokens
    targets: list[tuple[Tokens, list[int]]] = field(default_factory=list)
    """Distinct targets, each with the positions of its sequences in what was grouped."""

    @property
    def scored(self) -> int:
        """Positions at the end of `inputs` whose outputs are looked at."""
        return max(len(targets) for targets, _ in self.targets)


def group_by_inputs(sequences: Sequence[Scoring]) -> list[ScoringRow]:
    """Bring together what reads the same tokens."""
    rows: dict[bytes, ScoringRow] = {}
    askers: dict[tuple[bytes, bytes], list[int]] = {}
    for index, sequence in enumerate(sequences):
        key, wanted = sequence.inputs.tobytes(), sequence.targets.tobytes()
        row = rows.setdefault(key, ScoringRow(sequence.inputs))
        if (key, wanted) not in askers:
            askers[key, wanted] = []
            row.targets.append((sequence.targets, askers[key, wanted]))
        askers[key, wanted].append(index)
    return list(rows.values())


def _score_row(row: ScoringRow, logits: Tensor) -> Iterable[tuple[int, float, bool]]:
    """Score all targets of a row; `logits` [row.scored, vocabulary] are those of its last positions.

    log_softmax in float32, as the harness: logsumexp is more exact but then differs from it.
    """
    wanted = np.full((row.scored, len(row.targets)), -1, np.int64)
    for column, (targets, _) in enumerate(row.targets):
        wanted[row.scored - len(targets) :, column] = targets
    expected = torch.from_numpy(wanted).to(logits.device)
    gathered, greedy = [], []
    for start in range(0, row.scored, _POSITIONS_AT_ONCE):
        part = expected[start : start + _POSITIONS_AT_ONCE]
        log_probabilities = torch.nn.functional.log_softmax(
            logits[start : start + _POSITIONS_AT_ONCE].float(), dim=-1
        )
        gathered.append(log_probabilities.gather(1, part.clamp(min=0)).masked_fill(part < 0, 0.0))
        greedy.append((log_probabilities.argmax(-1, keepdim=True) == part) | (part < 0))
    sums = torch.cat(gathered).cpu().double().sum(0).tolist()
    all_greedy = torch.cat(greedy).all(0).tolist()
    for (_, indices), loglikelihood, is_greedy in zip(row.targets, sums, all_greedy, strict=True):
        yield from ((index, loglikelihood, is_greedy) for index in indices)
