"""Attention over prefix trees and in decoding, for every architecture that lets its attention be replaced.

transformers' models call an attention function by name. The one registered here looks neither at a mask nor
at a cache: a `Reading` (a batch of the tree) or a `Writing` (one token of each running sequence) says what
each query attends to and keeps the keys and values. Partial results over disjoint sets of keys are merged by
their log-sum-exp, which is exact (Dao et al., arXiv 2205.14135, section 3.1; cascade attention).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
import transformers
from torch import Tensor

from resources.engines.planner import Layout

NAME = "prefix_tree"
_SCORES_AT_ONCE = 1 << 26  # attention scores held at a time where no fused kernel gives the log-sum-exp

KeyValue: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of one layer, [key heads, tokens, dimension] each."""


class UnsupportedAttentionError(Exception):
    """The model's attention does something that is not done here."""


class Path:
    """Keys and values, layer by layer, of all tokens from the start of a text on: positions 0, 1, ..."""

    def __init__(self, layers: Mapping[int, KeyValue], length: int) -> None:
        self.layers = layers
        self.length = length


class Attending(Protocol):
    """One pass through the model: what its queries attend to."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: "Rule") -> KeyValue:
        """Output [key heads, queries a key head, tokens, dimension] and its log-sum-exp [..., tokens]."""
        ...


class Rule:
    """How scores are made: `scale` q.k, capped softly at `softcap`, over the last `window` positions."""

    def __init__(self, scale: float, window: int | None, softcap: float | None) -> None:
        self.scale, self.window, self.softcap = scale, window, softcap


_current: list[Attending] = []


@contextmanager
def attending(what: Attending) -> Iterator[None]:
    """Every attention of the passes within does `what`."""
    _current.append(what)
    try:
        yield
    finally:
        _current.pop()


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  (the caller's signature)
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: query [1, heads, tokens, dimension], key and value [1, key heads, ...]."""
    if kwargs.get("position_bias") is not None or query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise UnsupportedAttentionError("a position bias, a batch or a cache of the model's own")
    heads, key_heads = query.shape[1], key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    grouped = query[0].view(key_heads, heads // key_heads, *query.shape[2:])
    rule = Rule(scale, sliding_window, softcap)
    layer: Any = module.layer_idx
    output, log_sum = _current[-1].attend(int(layer), grouped, key[0], value[0], rule)
    if s_aux is not None:  # a sink: a score without a value, one a head
        sink = s_aux.view(key_heads, -1, 1).to(log_sum.dtype)
        output = output * torch.sigmoid(log_sum - sink).unsqueeze(-1).to(output.dtype)
    return output.reshape(1, heads, *output.shape[2:]).transpose(1, 2), None


transformers.AttentionInterface.register(NAME, _attention)


class Reading:
    """A batch of a prefix tree. `paths` are those that the layout's stored pieces name.

    With `keep` it holds the keys and values of the whole batch afterwards (`kept`).
    """

    def __init__(
        self, layout: Layout, paths: Mapping[int, Path], positions: np.ndarray[Any, Any], *, keep: bool
    ) -> None:
        self._layout = layout
        self._paths = paths
        self._positions = positions
        self._keep = keep
        self._masks: dict[tuple[Any, ...], Tensor] = {}
        self.kept: dict[int, KeyValue] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> KeyValue:
        if self._keep:
            self.kept[layer] = key, value
        key_heads, group, tokens, _ = query.shape
        output = query.new_empty(key_heads, group, tokens, value.shape[-1])
        log_sum = query.new_empty(key_heads, group, tokens, dtype=torch.float32)
        for number, block in enumerate(self._layout.blocks):
            piece = slice(block.start, block.stop)
            own, sums = self._block(number, query[:, :, piece], key[:, piece], value[:, piece], rule)
            output[:, :, piece], log_sum[:, :, piece] = own, sums
        for link in self._layout.links:
            keys = slice(link.first, link.end)
            at = self._positions[keys]
            self._merge(
                output, log_sum, query, slice(link.start, link.stop), key[:, keys], value[:, keys], at, rule
            )
        for stored in self._layout.stored:
            path = self._paths[stored.node]
            keys_before, values_before = path.layers[layer]
            at = np.arange(path.length)
            piece = slice(stored.start, stored.stop)
            self._merge(output, log_sum, query, piece, keys_before, values_before, at, rule)
        return output, log_sum

    def _block(self, number: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> KeyValue:
        block = self._layout.blocks[number]
        at = self._positions[block.start : block.stop]
        narrow = rule.window is not None and int(at.max() - at.min()) >= rule.window
        if block.visible is None and not narrow:
            group = query.shape[1]
            if group == 1:
                return _unfold(_partial(query[:, 0], key, value, rule, causal=True), group)
            # Queries of several heads can't be stacked under one triangle, so keys are repeated instead.
            heads = query.flatten(0, 1)
            key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
            output, sums = _partial(heads, key, value, rule, causal=True)
            return output.view(*query.shape[:3], -1), sums.view(*query.shape[:3])

        def mask() -> np.ndarray[Any, Any]:
            visible = np.tri(len(at), dtype=np.bool_) if block.visible is None else block.visible
            return visible & _within(at, at, rule) if narrow else visible

        return _folded(query, key, value, rule, self._mask(("block", number, narrow), mask, query))

    def _merge(
        self,
        output: Tensor,
        log_sum: Tensor,
        query: Tensor,
        piece: slice,
        key: Tensor,
        value: Tensor,
        at: np.ndarray[Any, Any],
        rule: Rule,
    ) -> None:
        """Add what the queries of a piece get from further keys at positions `at`."""
        own = self._positions[piece]
        mask = None
        if rule.window is not None and int(own.max() - at.min()) >= rule.window:
            name = (piece.start, piece.stop, int(at[0]), len(at), rule.window)
            mask = self._mask(name, lambda: _within(own, at, rule), query)
        other, sums = _folded(query[:, :, piece], key, value, rule, mask)
        _merge(output[:, :, piece], log_sum[:, :, piece], other, sums)

    def _mask(self, name: tuple[Any, ...], make: Any, query: Tensor) -> Tensor:
        name = (*name, query.device)
        if name not in self._masks:
            visible = torch.from_numpy(np.tile(make(), (query.shape[1], 1))).to(query.device)
            self._masks[name] = torch.zeros_like(visible, dtype=query.dtype).masked_fill_(
                ~visible, float("-inf")
            )
        return self._masks[name]


def _within(queries: np.ndarray[Any, Any], keys: np.ndarray[Any, Any], rule: Rule) -> np.ndarray[Any, Any]:
    """Which keys lie in the sliding window of which queries, [queries, keys]."""
    assert rule.window is not None
    visible: np.ndarray[Any, Any] = queries[:, None] - keys[None, :] < rule.window
    return visible


class Writing:
    """One token of each running sequence: row i's own keys are ``keys[layer][i, :, :lengths[i]]``.

    `lengths` counts the new token, which `attend` writes in its place; `bases` are the positions at which
    rows' own keys begin. `shared` gives rows (all of them: None) a path that they read together, once.
    """

    def __init__(
        self,
        buffers: Mapping[int, KeyValue],
        lengths: np.ndarray[Any, Any],
        bases: np.ndarray[Any, Any],
        shared: Sequence[tuple[Sequence[int] | None, Path]],
    ) -> None:
        self._buffers = buffers
        self._lengths = torch.from_numpy(lengths)
        self._bases = bases
        self._longest = int(lengths.max())
        self._positions = bases + lengths - 1
        self._shared = [(None if rows is None else torch.tensor(rows), path) for rows, path in shared]
        self._masks: dict[tuple[Any, ...], Tensor | None] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> KeyValue:
        rows, device = query.shape[2], query.device
        keys, values = self._buffers[layer]
        at = (self._lengths - 1).to(device), torch.arange(rows, device=device)
        keys[at[1], :, at[0]] = key.transpose(0, 1)
        values[at[1], :, at[0]] = value.transpose(0, 1)
        # [rows, key heads, group, ...]: the queries of a key head read its keys together.
        output, log_sum = _scores(
            query.permute(2, 0, 1, 3),
            keys[:rows, :, : self._longest],
            values[:rows, :, : self._longest],
            rule,
            self._own_mask(query, rule),
        )
        output, log_sum = output.permute(1, 2, 0, 3), log_sum.permute(1, 2, 0)
        if self._shared:
            output, log_sum = output.contiguous(), log_sum.contiguous()
        for members, path in self._shared:
            keys_before, values_before = path.layers[layer]
            chosen = query if members is None else query[:, :, members.to(device)]
            mask = self._shared_mask(members, path, query, rule)
            other, sums = _folded(chosen, keys_before, values_before, rule, mask)
            if members is None:
                _merge(output, log_sum, other, sums)
            else:
                index = members.to(device)
                mine, my_sums = output[:, :, index], log_sum[:, :, index]
                _merge(mine, my_sums, other, sums)
                output[:, :, index], log_sum[:, :, index] = mine, my_sums
        return output, log_sum

    def _own_mask(self, query: Tensor, rule: Rule) -> Tensor | None:
        """[rows, 1, 1, longest], or None where every row sees all."""
        name = ("own", rule.window, query.device)
        if name not in self._masks:
            columns = torch.arange(self._longest)
            visible = columns < self._lengths[:, None]
            if rule.window is not None:
                visible &= columns >= self._lengths[:, None] - rule.window
            self._masks[name] = None if bool(visible.all()) else _additive(visible, query)[:, None, None]
        return self._masks[name]

    def _shared_mask(self, members: Tensor | None, path: Path, query: Tensor, rule: Rule) -> Tensor | None:
        """[group x rows, path], or None where the whole path is in every row's window."""
        name = (id(path), rule.window, query.device)
        if name not in self._masks:
            own = self._positions if members is None else self._positions[members.numpy()]
            self._masks[name] = None
            if rule.window is not None and int(own.max()) >= rule.window:
                visible = np.tile(_within(own, np.arange(path.length), rule), (query.shape[1], 1))
                self._masks[name] = _additive(torch.from_numpy(visible), query)
        return self._masks[name]


def _additive(visible: Tensor, query: Tensor) -> Tensor:
    mask = torch.zeros_like(visible, dtype=query.dtype).masked_fill_(~visible, float("-inf"))
    return mask.to(query.device)


def _merge(output: Tensor, log_sum: Tensor, other: Tensor, other_sum: Tensor) -> None:
    """Merge another partial attention into `output` and `log_sum`, in place."""
    weight = torch.sigmoid(other_sum - log_sum).unsqueeze(-1).to(output.dtype)
    output.lerp_(other, weight)
    torch.logaddexp(log_sum, other_sum, out=log_sum) if log_sum.is_contiguous() else log_sum.copy_(
        torch.logaddexp(log_sum, other_sum)
    )


def _folded(query: Tensor, key: Tensor, value: Tensor, rule: Rule, mask: Tensor | None) -> KeyValue:
    """All queries of a key head at once, so that its keys are read once and never repeated."""
    output, sums = _partial(query.flatten(1, 2), key, value, rule, mask=mask)
    return output.view(*query.shape[:3], -1), sums.view(*query.shape[:3])


def _unfold(partial: KeyValue, group: int) -> KeyValue:
    assert group == 1
    return partial[0].unsqueeze(1), partial[1].unsqueeze(1)


def _partial(
    query: Tensor, key: Tensor, value: Tensor, rule: Rule, *, mask: Tensor | None = None, causal: bool = False
) -> KeyValue:
    """Attention of [heads, queries, dimension] over some keys; log-sum-exp -inf where none is seen."""
    if query.device.type == "cpu" and rule.softcap is None and query.shape[-1] == value.shape[-1]:
        # The only fused kernel on a CPU that tells the log-sum-exp.
        output, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query[None], key[None], value[None], 0.0, causal, attn_mask=mask, scale=rule.scale
        )
        if mask is not None and rule.window is not None:  # otherwise a query sees itself, or all keys
            unseen = (mask == float("-inf")).all(-1)
            sums = sums.masked_fill(unseen, float("-inf"))
        return output[0], sums[0].float()
    if causal:
        mask = torch.full(query.shape[1:2] * 2, float("-inf"), device=query.device, dtype=query.dtype).triu(1)
    at_once = max(_SCORES_AT_ONCE // (query.shape[0] * key.shape[1]), 1)
    parts = [
        _scores(
            query[:, start : start + at_once],
            key,
            value,
            rule,
            None if mask is None else mask[start : start + at_once],
        )
        for start in range(0, query.shape[1], at_once)
    ]
    return torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)


def _scores(query: Tensor, key: Tensor, value: Tensor, rule: Rule, mask: Tensor | None) -> KeyValue:
    """The same in plain tensor operations."""
    scores = torch.matmul(query * rule.scale, key.transpose(-1, -2)).float()
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if mask is not None:
        scores += mask
    sums = scores.logsumexp(-1)
    # Where no key is seen every score is -inf: subtracting -inf would give NaN instead of 0.
    weights = torch.exp(scores - sums.clamp(min=torch.finfo(sums.dtype).min).unsqueeze(-1))
    return torch.matmul(weights.to(value.dtype), value), sums
