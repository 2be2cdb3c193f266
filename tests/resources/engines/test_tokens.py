"""The torch-free half of scoring: what is encoded, cut, split into windows, and read back."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.engines.tokens import (
    Completion,
    TextEncoder,
    Tokens,
    cut_at,
    rolling_windows,
    scoring,
)
from resources.errors import UserError

BOS, EOS, MERGED = 256, 257, 300


class ByteTokenizer:
    """A token a byte, but "ab" is one token; BOS before every text where it has one."""

    def __init__(self, bos: bool = False, eos: bool = True) -> None:
        self.bos_token = "<bos>" if bos else None
        self.bos_token_id = BOS if bos else None
        self.eos_token_id = EOS if eos else None
        self.encoded: list[str] = []

    def __call__(self, text: list[str], *, add_special_tokens: bool, verbose: bool) -> Any:
        self.encoded += text
        begin = [BOS] if add_special_tokens and self.bos_token else []
        return {"input_ids": [begin + self.ids(one) for one in text]}

    def ids(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in text.replace("<bos>", "\x00").encode():
            if ids and ids[-1] == ord("a") and part == ord("b"):
                ids[-1] = MERGED
            else:
                ids.append(BOS if part == 0 else part)
        return ids

    def decode(self, token_ids: Sequence[int] | int, *, skip_special_tokens: bool) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        special = {BOS: b"<bos>", EOS: b"<eos>"}
        text = b"".join(
            (b"" if skip_special_tokens else special[i])
            if i in special
            else b"ab"
            if i == MERGED
            else bytes([i])
            for i in ids
        )
        return text.decode(errors="replace")


def pair(context: str, continuation: str, *, bos: bool = False) -> tuple[list[int], list[int]]:
    (before, after) = next(TextEncoder(ByteTokenizer(bos)).pairs([(context, continuation)]))
    return before.tolist(), after.tolist()


def tokens(*ids: int) -> Tokens:
    return np.array(ids, np.int32)


class TestEncodingPairs:
    def test_trailing_whitespace_of_the_context_is_scored_with_the_continuation(self) -> None:
        assert pair("x \n", "y") == ([ord("x")], [*b" \ny"])

    def test_a_token_across_the_boundary_belongs_to_neither_context_nor_continuation(self) -> None:
        """The harness reads the context's own tokens, then the whole text's from that many on."""
        assert pair("xa", "bc") == ([*b"xa"], [ord("c")])

    def test_a_continuation_swallowed_by_the_context_has_no_tokens(self) -> None:
        assert pair("xa", "b") == ([*b"xa"], [])

    @pytest.mark.parametrize("context", ["", "  "])
    def test_an_empty_context_is_the_bos_token(self, context: str) -> None:
        assert pair(context, "y", bos=True) == ([BOS], [*context.encode(), ord("y")])

    def test_an_empty_context_is_the_eos_token_where_there_is_no_bos(self) -> None:
        assert pair("", "y") == ([EOS], [ord("y")])

    def test_a_continuation_that_starts_with_bos_is_its_own_context(self) -> None:
        assert pair("", "<bos>y", bos=True) == ([BOS], [ord("y")])

    def test_a_bos_that_the_prompt_writes_itself_is_not_doubled(self) -> None:
        """A chat template writes BOS; a second one moves every score of a Gemma model."""
        assert pair("<bos>x", "y", bos=True) == ([BOS, ord("x")], [ord("y")])
        assert pair("x", "y", bos=True) == ([BOS, ord("x")], [ord("y")])
        prompts = TextEncoder(ByteTokenizer(bos=True)).prompts(["<bos>x", "x", ""])
        assert [prompts[text].tolist() for text in ("<bos>x", "x", "")] == [
            [BOS, ord("x")],
            [BOS, ord("x")],
            [BOS],
        ]

    def test_an_empty_prompt_is_never_no_token_at_all(self) -> None:
        assert TextEncoder(ByteTokenizer()).prompts([""])[""].tolist() == [EOS]

    def test_a_text_is_encoded_once_however_many_requests_share_it(self) -> None:
        tokenizer = ByteTokenizer()
        list(TextEncoder(tokenizer).pairs([("context", " one"), ("context", " two"), ("context", " one")]))
        assert sorted(tokenizer.encoded) == ["context", "context one", "context two"]

    def test_many_texts_come_back_each_with_its_own_tokens(self) -> None:
        texts = [f"text {i}" for i in range(1200)]
        encoded = TextEncoder(ByteTokenizer()).texts(texts)
        assert all(encoded[text].tolist() == [*text.encode()] for text in texts)

    def test_a_tokenizer_without_bos_and_eos_is_told_so_when_it_needs_one(self) -> None:
        encoder = TextEncoder(ByteTokenizer(eos=False))
        assert [part.tolist() for part in next(encoder.pairs([("x", "y")]))] == [[*b"x"], [*b"y"]]
        with pytest.raises(UserError, match="neither a BOS nor an EOS"):
            next(encoder.pairs([("", "y")]))


class TestTruncation:
    @given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 20))
    def test_the_last_max_length_plus_one_tokens_are_kept(
        self, context: int, continuation: int, max_length: int
    ) -> None:
        whole = list(range(context + continuation))
        sequence = scoring(tokens(*whole[:context]), tokens(*whole[context:]), max_length)
        assert sequence.inputs.tolist() == whole[-(max_length + 1) :][:-1]
        assert sequence.truncated == max(len(whole) - max_length - 1, 0)
        if continuation <= max_length:
            assert sequence.targets.tolist() == whole[context:]
            assert sequence.context_length == context - sequence.truncated
        else:
            assert len(sequence.targets) == 0


class TestRollingWindows:
    @given(st.lists(st.integers(0, 99), max_size=60), st.integers(1, 17))
    def test_every_token_is_scored_once_after_the_tokens_before_it(
        self, text: list[int], max_length: int
    ) -> None:
        """A gap or an overlap makes every perplexity wrong; so does a last window with less context."""
        windows = [(a.tolist(), b.tolist()) for a, b in rolling_windows(tokens(*text), -1, max_length)]
        assert [token for _, targets in windows for token in targets] == text
        position = 0
        for context, targets in windows:
            position += len(targets)
            read = max_length if position > max_length else len(targets)
            assert context + targets == [-1, *text][position - read : position + 1]
            assert 1 <= len(targets) <= max_length
        assert len(windows) == math.ceil(len(text) / max_length)


def complete(text: bytes | str, *stop: str, limit: int = 1000, ends: bool = False) -> Completion:
    completion = Completion(ByteTokenizer(), stop, limit, {EOS}, "<eos>")
    for token in text.encode() if isinstance(text, str) else text:
        completion.add(token)
    if ends:
        completion.add(EOS)
    return completion


class TestCompletion:
    @given(
        st.text(st.sampled_from("xy \n🦊é"), max_size=30),
        st.lists(st.text(st.sampled_from("xy \n🦊é"), min_size=1, max_size=3), max_size=3),
    )
    def test_the_text_ends_before_the_first_stop_string_however_it_is_split_into_tokens(
        self, text: str, stop: list[str]
    ) -> None:
        completion = complete(text, *stop, ends=True)
        until = min((text.find(s) + len(s) for s in stop if s in text), default=None)
        if until is None:
            assert completion.result() == (text, "eos")
            assert len(completion.tokens) == len(text.encode()) + 1
        else:
            assert completion.result() == (cut_at(text[:until], stop), "stop")
            assert len(completion.tokens) == len(text[:until].encode()), "it went on after the stop string"

    @given(st.text(st.sampled_from("a🦊é\n"), min_size=1, max_size=12), st.integers(1, 40))
    def test_a_limit_inside_a_character_leaves_no_broken_character(self, text: str, limit: int) -> None:
        output, reason = complete(text, limit=limit).result()
        assert output == text.encode()[:limit].decode(errors="ignore")
        assert reason == "length"

    def test_broken_bytes_of_the_model_itself_are_kept(self) -> None:
        assert complete(b"x\xff", ends=True).result() == ("x\ufffd", "eos")

    def test_the_limit_counts_tokens(self) -> None:
        completion = complete("abcdef", limit=4)
        assert (completion.result(), len(completion.tokens)) == (("abcd", "length"), 4)

    def test_a_stop_string_in_the_last_token_is_a_stop(self) -> None:
        assert complete("x\n", "\n", limit=2).result() == ("x", "stop")

    def test_the_eos_token_written_as_text_ends_the_text(self) -> None:
        assert complete("x<eos>y").result() == ("x", "eos")

    def test_a_special_token_can_be_a_stop_string(self) -> None:
        completion = complete("x", "<bos>")
        completion.add(BOS)
        assert completion.result() == ("x", "stop")

    def test_an_empty_stop_string_stops_nothing(self) -> None:
        assert complete("xy", "", ends=True).result() == ("xy", "eos")
