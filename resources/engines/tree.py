"""A causal language model that reads prefix trees: every shared token goes through its layers once.

The model is taken in two halves, its layers and its head, so that logits are made only where they are
looked at, a bounded number of positions at a time.
"""

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.modeling_outputs import MoeModelOutputWithPast

from resources.engines.attention import NAME, KeyValue, Path, Reading, Writing, attending
from resources.engines.checkpoint import one_line
from resources.engines.planner import Plan, layout, plan
from resources.engines.tokens import Tokens

_POSITIONS_AT_ONCE = 256  # whose logits, and the log-softmax of them, are in memory together
_FEW_ROWS = 8
_DENSE_ON_CPU = 128
_DENSE_ON_ACCELERATOR = (
    16384  # one masked block a batch: there, launching kernels costs more than masked work
)
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_LOW_PRECISION_TOLERANCE = 0.1
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


class NoTreeError(Exception):
    """Why this model can't read prefix trees."""


class TreeModel:
    """A model whose attention is done by `resources.engines.attention`; made by `of`."""

    def __init__(self, model: Any) -> None:
        self._body = getattr(model, model.base_model_prefix)
        self._head = _with_body(model, _HandingOn())
        self._device = model.device
        self._dense = _DENSE_ON_CPU if model.device.type == "cpu" else _DENSE_ON_ACCELERATOR
        self.key_value_bytes = 0
        """Bytes of keys and values a token, over all layers."""

    @classmethod
    def of(cls, model: Any) -> "TreeModel":
        """Switch the model to tree attention. Raises NoTreeError, and leaves it as it was, where that fails.

        Whether it works is tried: a small tree and two steps of decoding must give the logits of the model's
        own attention. So no list of architectures is kept.
        """
        if not getattr(model, "_supports_attention_backend", False):
            raise NoTreeError("its attention can't be replaced")
        config = model.config.get_text_config()
        if unknown := set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES:
            raise NoTreeError(f"it has layers of the type {min(unknown)}")
        if getattr(config, "is_encoder_decoder", False):
            raise NoTreeError("it is an encoder-decoder model")
        before = model.config._attn_implementation
        sequences = _probe(config.vocab_size)
        expected = [_own_logits(model, tokens) for tokens in sequences]
        try:
            model.set_attn_implementation(NAME)
            tree = cls(model)
            tree._check(sequences, expected)
        except Exception as error:  # whatever a model's code does with what it doesn't expect
            model.set_attn_implementation(before)
            if isinstance(error, NoTreeError):
                raise
            raise NoTreeError(f"tree attention failed: {one_line(error)}") from error
        return tree

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """``(first, logits)`` of hidden states [n, width]: float32 [at most 256, vocabulary] at a time."""
        for first in range(0, len(hidden), _POSITIONS_AT_ONCE):
            part = hidden[first : first + _POSITIONS_AT_ONCE]
            yield first, self._head(inputs_embeds=part[None], use_cache=False).logits[0].float()

    @torch.inference_mode()
    def write(self, tokens: NDArray[np.int64], positions: NDArray[np.int64], writing: Writing) -> Tensor:
        """Hidden states [rows, width] of one token of each running sequence."""
        with attending(writing):
            return self._forward(tokens, positions)

    @torch.inference_mode()
    def read(self, tokens: Tokens, positions: NDArray[np.int64], reading: Reading) -> Tensor:
        """Hidden states [tokens, width] of a batch of a tree."""
        with attending(reading):
            return self._forward(tokens.astype(np.int64), positions)

    @property
    def dense(self) -> int:
        """How many tokens of a tree are attended to as one masked block."""
        return self._dense

    def _forward(self, tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> Tensor:
        output = self._body(
            input_ids=torch.from_numpy(tokens)[None].to(self._device),
            position_ids=torch.from_numpy(positions)[None].to(self._device),
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _check(self, sequences: list[Tokens], expected: list[Tensor]) -> None:
        """Raise NoTreeError unless reading and writing give the logits of the model's own attention."""
        for budget in (64, 5):
            reader = Reader(self, plan(sequences, budget), holds=True)
            for batch in reader.plan.batches:
                hidden = reader.read(batch, keep=reader.plan.ends)
                offsets = reader.plan.offsets(batch)
                for i in batch:
                    node = reader.plan.nodes[i]
                    self._compare(
                        hidden[offsets[i] : offsets[i] + node.end - node.start],
                        expected[node.sequence][node.start : node.end],
                    )
        self._check_writing(sequences, expected)
        self.key_value_bytes = sum(
            sum(t.element_size() * t.shape[0] * t.shape[2] for t in pair) for pair in reader.kept.values()
        )

    def _check_writing(self, sequences: list[Tokens], expected: list[Tensor]) -> None:
        """The last token of each sequence again, as a step of decoding after the others."""
        shared = int((sequences[0][:3] == sequences[1][:3]).all()) * 3
        reader = Reader(self, plan([tokens[:-1] for tokens in sequences], 64), holds=True)
        reader.read(reader.plan.batches[0], keep=range(len(reader.plan.nodes)))
        tails = [reader.tail(end, shared) for end in reader.plan.ends]
        lengths = np.array([len(tokens) - shared for tokens in sequences])
        buffers: dict[int, KeyValue] = {}
        for layer, (key, value) in tails[0].items():
            made = []
            for kind, example in enumerate((key, value)):
                buffer = example.new_zeros(len(tails), example.shape[0], int(lengths.max()), example.shape[2])
                for row, tail in enumerate(tails):
                    buffer[row, :, : tail[layer][kind].shape[1]] = tail[layer][kind]
                made.append(buffer)
            buffers[layer] = made[0], made[1]
        path = reader.paths[next(i for i, n in enumerate(reader.plan.nodes) if n.end == shared)]
        writing = Writing(buffers, lengths, np.full(len(tails), shared), [(None, path)])
        hidden = self.write(
            np.array([tokens[-1] for tokens in sequences], np.int64),
            np.array([len(tokens) - 1 for tokens in sequences]),
            writing,
        )
        self._compare(hidden, torch.stack([logits[-1] for logits in expected]))

    def _compare(self, hidden: Tensor, expected: Tensor) -> None:
        found = torch.cat([logits for _, logits in self.logits(hidden)])
        scale = float(expected.nan_to_num().abs().max()) or 1.0
        tolerance = _TOLERANCE.get(hidden.dtype, _LOW_PRECISION_TOLERANCE)
        if not torch.allclose(
            found, expected.to(found.device), rtol=0, atol=tolerance * scale, equal_nan=True
        ):
            raise NoTreeError("tree attention gives other logits than the model's own")


class Reader:
    """Reads a plan's batches in order, and holds what later ones build on."""

    def __init__(self, model: TreeModel, plan: Plan, *, holds: bool = False) -> None:
        """`holds`: keep every batch's keys and values until the next one, for `tail`."""
        self._model = model
        self._holds = holds
        self.plan = plan
        self.paths: dict[int, Path] = {}
        self.kept: Mapping[int, KeyValue] = {}
        self._batch = range(0)

    def read(self, batch: range, keep: Collection[int] = ()) -> Tensor:
        """Hidden states [tokens, width] of a batch whose ancestors were read.

        The paths to nodes that later batches follow, and to those of the batch that `keep` names, are then
        in `paths`.
        """
        nodes = self.plan.nodes
        self.paths = {node: path for node, path in self.paths.items() if nodes[node].last >= batch.start}
        wanted = [i for i in batch if nodes[i].last >= batch.stop or i in keep]
        reading = Reading(
            layout(self.plan, batch, self._model.dense),
            self.paths,
            self.plan.positions(batch),
            keep=self._holds or bool(wanted),
        )
        hidden = self._model.read(self.plan.token_ids(batch), self.plan.positions(batch), reading)
        self._batch, self.kept = batch, reading.kept
        for i in wanted:
            self.paths[i] = Path(self.tail(i, 0), nodes[i].end)
        return hidden

    def tail(self, node: int, start: int) -> dict[int, KeyValue]:
        """Keys and values of the tokens from position `start` to the end of a node of the latest batch."""
        offsets = self.plan.offsets(self._batch)
        pieces: list[tuple[Path | None, int, int]] = []
        for i in self.plan.path(node):
            if i not in offsets:
                path = self.paths[i]
                if start < path.length:
                    pieces.append((path, start, path.length))
                break
            first, end = self.plan.nodes[i].start, self.plan.nodes[i].end
            if end <= start:
                break
            skipped = max(start - first, 0)
            pieces.append((None, offsets[i] + skipped, offsets[i] + end - first))
        tail: dict[int, KeyValue] = {}
        for layer, kept in self.kept.items():
            sources = [
                (kept if path is None else path.layers[layer], first, end)
                for path, first, end in pieces[::-1]
            ]
            keys = [pair[0][:, first:end] for pair, first, end in sources]
            values = [pair[1][:, first:end] for pair, first, end in sources]
            if not sources:  # nothing of its own: all is shared
                keys, values = [kept[0][:, :0]], [kept[1][:, :0]]
            tail[layer] = torch.cat(keys, 1), torch.cat(values, 1)
        return tail


@dataclass
class _HandedOn(MoeModelOutputWithPast):
    """The layers' output with every field that some architecture's head asks for."""

    cross_attentions: tuple[Tensor, ...] | None = None


class _HandingOn(torch.nn.Module):
    """Stands in for a model's layers: its hidden states are the embeddings that it is given."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _HandedOn:
        return _HandedOn(last_hidden_state=inputs_embeds)

    @property
    def decoder(self) -> "_HandingOn":
        """Where some architectures (OPT) keep the layers."""
        return self


class _FewRows(torch.nn.Module):
    """A linear layer that multiplies the other way round where there are 8 rows or fewer.

    On a CPU, ``x W^T`` of a large W goes through a copy of W, which takes longer than the product itself;
    ``W x^T`` of 2 to 8 columns does not. For a vocabulary's weights that is several times as fast.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self._linear = linear

    def forward(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        if len(flat) > _FEW_ROWS:
            made: Tensor = self._linear(rows)
            return made
        several = flat if len(flat) > 1 else flat.repeat(2, 1)  # one column would be a slower routine again
        product = torch.mm(self._linear.weight, several.t()).t()[: len(flat)]
        if self._linear.bias is not None:
            product = product + self._linear.bias
        return product.reshape(*rows.shape[:-1], -1)


def _with_body(model: Any, body: torch.nn.Module) -> Any:
    """The same model, weights shared, with other layers: what its own forward does after them, alone."""
    head = copy.copy(model)
    output = model.get_output_embeddings() if model.device.type == "cpu" else None
    modules = {
        name: _FewRows(module) if module is output and type(module) is torch.nn.Linear else module
        for name, module in model._modules.items()
    }
    head._modules = {**modules, model.base_model_prefix: body}
    head.__dict__.pop("forward", None)  # accelerate's, which is bound to the whole model
    return head


def _probe(vocabulary: int) -> list[Tokens]:
    """Three short sequences with a common beginning; token ids as they are spread over any vocabulary."""
    ids = [(7 + 31 * i) % vocabulary for i in range(12)]
    return [
        np.array(ids[:3] + branch, np.int32) for branch in (ids[3:6], [*ids[3:5], ids[7], ids[8]], ids[9:12])
    ]


@torch.inference_mode()
def _own_logits(model: Any, tokens: Tokens) -> Tensor:
    ids = torch.from_numpy(tokens.astype(np.int64))[None].to(model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0].float()
    return logits
