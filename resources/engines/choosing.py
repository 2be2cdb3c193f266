"""Which token comes next: the likeliest, or one that is drawn; the same whatever is computed beside it."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resources.engines import GenerationRequest, Sampling
from resources.engines.tokens import Completion, Tokens


class Running:
    """A text being written: its prompt, its completion so far, and the random numbers that are its own."""

    def __init__(
        self, prompt: Tokens, request: GenerationRequest, completion: Completion, processors: Any = None
    ) -> None:
        """`processors`: transformers' logits processors that the model's own configuration asks for."""
        self.prompt = prompt
        self.completion = completion
        self._sampling = request.sampling
        self._processors = processors or None
        self._draws = None if request.sampling is None else _generator(request.sampling, prompt, request.draw)

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is taken, as the model gives it."""
        return self._draws is None and self._processors is None

    def choose(self, logits: Tensor) -> int:
        """The next token, from float32 logits [vocabulary]."""
        if self._processors is not None:
            written = torch.tensor([[*self.prompt.tolist(), *self.completion.tokens]], device=logits.device)
            logits = self._processors(written, logits[None])[0]
        if self._draws is None or self._sampling is None:
            return int(logits.argmax())
        return draw(logits, self._sampling, float(self._draws.random()))


def advance(running: Sequence[Running], logits: Tensor) -> None:
    """Give each text its next token, from float32 logits [texts, vocabulary].

    A text whose logits are not numbers ends with the reason "nan": an argmax over NaN looks like a token.
    """
    numbers = logits.amax(-1).isfinite().tolist()
    likeliest = logits.argmax(-1).tolist()
    for i, text in enumerate(running):
        if text.completion.finish_reason is not None:
            continue
        if not numbers[i]:
            text.completion.finish_reason = "nan"
        else:
            text.completion.add(likeliest[i] if text.is_plain else text.choose(logits[i]))


def draw(logits: Tensor, sampling: Sampling, at: float) -> int:
    """The token at the quantile `at` (0 to 1) of the distribution that temperature, top_k and top_p leave.

    The order is transformers': temperature, the `top_k` likeliest, then the fewest of the likeliest that
    together have the probability `top_p` (Holtzman et al., arXiv 1904.09751).
    """
    scores, tokens = torch.sort(logits.double() / sampling.temperature, descending=True, stable=True)
    if sampling.top_k:
        scores = scores[: sampling.top_k]
    cumulative = torch.cumsum(torch.softmax(scores, -1), -1).cpu().numpy()
    kept = min(int(np.searchsorted(cumulative, sampling.top_p)) + 1, len(cumulative))
    chosen = int(np.searchsorted(cumulative[:kept], at * cumulative[kept - 1], side="right"))
    return int(tokens[min(chosen, kept - 1)])


def _generator(sampling: Sampling, prompt: Tokens, number: int) -> np.random.Generator:
    key = hashlib.sha256(f"{sampling.seed}:{number}:".encode() + prompt.astype("<u4").tobytes()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
