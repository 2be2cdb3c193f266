"""From texts to the token sequences that a model scores or continues, and back; knows nothing of torch.

The rules are those of lm-evaluation-harness 0.4.13 (``HFLM``, ``TemplateLM._encode_pair`` and
``utils.get_rolling_token_windows``), because a score is comparable only where every token is the same.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resources.errors import UserError

Tokens: TypeAlias = NDArray[np.int32]
"""Token ids, one-dimensional. Arrays, because a benchmark's prompts are tens of millions of them."""

_ENCODE_AT_ONCE = 512  # texts a call of the tokenizer, which can't be interrupted


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    bos_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: list[str], *, add_special_tokens: bool, verbose: bool) -> Any: ...

    def decode(self, token_ids: Sequence[int] | int, *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """A sequence to score: the model reads `inputs`; its last `len(targets)` outputs should be `targets`.

    `targets` is empty where the request can't be scored: its continuation has no token of its own, or more
    tokens than the model's context.
    """

    inputs: Tokens
    targets: Tokens
    truncated: int
    """Tokens cut from the left."""

    @property
    def context_length(self) -> int:
        """Tokens that the model reads before the first target."""
        return len(self.inputs) - max(len(self.targets) - 1, 0)


class TextEncoder:
    """Encodes as the harness does, each distinct text once.

    Special tokens are added as the tokenizer has it, but not to a text that starts with the BOS token
    already (a chat template writes it), and not to a continuation after an empty context.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._prefix = (
            tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        )
        self._prefix_text = (
            "" if self._prefix is None else tokenizer.decode(self._prefix, skip_special_tokens=False)
        )

    @property
    def prefix_token(self) -> int:
        """The token before a text without context: BOS, or EOS where the tokenizer has no BOS."""
        if self._prefix is None:
            raise UserError(
                "the tokenizer has neither a BOS nor an EOS token to stand for an empty context; "
                "name one in tokenizer_config.json"
            )
        return self._prefix

    def texts(self, texts: Iterable[str]) -> dict[str, Tokens]:
        """Each text's tokens."""
        return self._encode(texts, already_begun=self._prefix_text)

    def prompts(self, prompts: Iterable[str]) -> dict[str, Tokens]:
        """Each prompt's tokens, at least one."""
        encoded = self._encode(prompts, already_begun=self._tokenizer.bos_token or "")
        return {
            text: tokens if len(tokens) else np.array([self.prefix_token], np.int32)
            for text, tokens in encoded.items()
        }

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[Tokens, Tokens]]:
        """The context's and the continuation's tokens of each ``(context, continuation)``.

        Trailing whitespace of a context belongs to the continuation, where tokenizers expect it. The
        continuation's tokens are those of the whole text from the context's length on.
        """
        moved = [_move_trailing_whitespace(*pair) for pair in pairs]
        contexts = self.texts(context for context, _ in moved if context)
        wholes = self.texts(context + continuation for context, continuation in moved if context)
        unprefixed = self._encode(
            (continuation for context, continuation in moved if not context), special_tokens=False
        )
        for context, continuation in moved:
            if context:
                before = contexts[context]
                yield before, wholes[context + continuation][len(before) :]
                continue
            tokens = unprefixed[continuation]
            if len(tokens) and tokens[0] == self.prefix_token:
                yield tokens[:1], tokens[1:]
            else:
                yield np.array([self.prefix_token], np.int32), tokens

    def _encode(
        self, texts: Iterable[str], *, special_tokens: bool = True, already_begun: str = ""
    ) -> dict[str, Tokens]:
        distinct = list(dict.fromkeys(texts))
        encoded: dict[str, Tokens] = {}
        for add in (True, False):
            chosen = [
                text
                for text in distinct
                if add is (special_tokens and not (already_begun and text.startswith(already_begun)))
            ]
            for start in range(0, len(chosen), _ENCODE_AT_ONCE):
                part = chosen[start : start + _ENCODE_AT_ONCE]
                lists = self._tokenizer(part, add_special_tokens=add, verbose=False)["input_ids"]
                encoded.update((text, np.array(ids, np.int32)) for text, ids in zip(part, lists, strict=True))
        return encoded


def _move_trailing_whitespace(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def scoring(context: Tokens, continuation: Tokens, max_length: int) -> Scoring:
    """What the model reads and what is scored, cut from the left to the model's context.

    The last target is never read, so `max_length` + 1 tokens fit.
    """
    whole = np.concatenate([context, continuation])
    excess = max(len(whole) - (max_length + 1), 0)
    targets = continuation if len(continuation) <= max_length else continuation[:0]
    return Scoring(whole[excess:-1], targets, excess)


def rolling_windows(tokens: Tokens, prefix_token: int, max_length: int) -> Iterator[tuple[Tokens, Tokens]]:
    """A text as ``(context, continuation)`` windows: every token is scored once, after one token of context.

    A continuation has at most `max_length` tokens; the first window follows `prefix_token`. A last window
    that isn't full is filled up with the tokens before it as context.
    """
    for start in range(0, len(tokens), max_length):
        end = min(start + max_length, len(tokens))
        before = tokens[end - max_length - 1 : start] if start else np.array([prefix_token], np.int32)
        yield before, tokens[start:end]


def cut_at(text: str, stops: Iterable[str]) -> str:
    """`text` up to the first of each stop string, one after the other, as the harness cuts it."""
    for stop in stops:
        if stop:
            text = text.split(stop, 1)[0]
    return text


class Completion:
    """The tokens generated for one prompt: says when they are enough, and what text they are."""

    _MARGIN = 8  # tokens before a stop string, where a partial character or a lost space may be

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        max_new_tokens: int,
        end_tokens: Collection[int],
        end_text: str = "",
    ) -> None:
        """`end_tokens` end the text; so does `end_text`, the EOS token written out, as in the harness."""
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self.max_new_tokens = max_new_tokens
        self._end_tokens = end_tokens
        self._end_text = end_text
        # A token holds at least one byte, so a stop string never spans more tokens than it has bytes.
        self._window = self._MARGIN + max((len(text.encode()) for text in (*stop, end_text)), default=0)
        self.tokens: list[int] = []
        self.finish_reason: Literal["stop", "eos", "length", "nan"] | None = None

    def add(self, token: int) -> None:
        """Take the next token; `finish_reason` then says whether it was the last. Later ones are ignored."""
        if self.finish_reason is not None:
            return
        self.tokens.append(token)
        if token in self._end_tokens:
            self.finish_reason = "eos"
        elif self._stops():
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_new_tokens:
            self.finish_reason = "length"

    def result(self) -> tuple[str, Literal["stop", "eos", "length", "nan"]]:
        """The text without special tokens, stop string and half a character at its end; why it ended."""
        reason = self.finish_reason or "length"
        tokens = self.tokens[:-1] if reason == "eos" else self.tokens
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        uncut = cut_at(text, self._stop)
        kept = cut_at(uncut, [self._end_text])
        if reason == "nan":
            return kept, reason
        if len(kept) < len(uncut):
            reason = "eos"
        elif len(uncut) < len(text):
            reason = "stop"
        # A character's first bytes decode to U+FFFD when the limit came before its last ones.
        return kept.rstrip("\ufffd") if reason == "length" else kept, reason

    def _stops(self) -> bool:
        if not self._stop and not self._end_text:
            return False
        tail = self._tokenizer.decode(self.tokens[-self._window :], skip_special_tokens=False)
        return any(text in tail for text in (*self._stop, self._end_text) if text)
