"""The transformers engine against brute force, on tiny random models and on a real one."""

import gc
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from scipy import stats

from resources.engines import (
    Engine,
    Failure,
    GenerationRequest,
    GenerationResult,
    LoglikelihoodRequest,
    LoglikelihoodResult,
    RollingRequest,
    Sampling,
    Step,
)
from resources.engines.choosing import draw
from resources.engines.memory import in_use
from resources.engines.settings import EngineSettings
from resources.engines.transformers_engine import TransformersEngine
from resources.errors import UserError
from tests.resources.engines.conftest import CONTEXT, FAMILIES, TinyModel
from tests.resources.engines.reference import Reference

PER_TOKEN = 1e-4  # nats; the tolerance that the whole project promises

CONTEXTS = (
    "The quick brown fox",
    "Question: what is the capital of France?\nAnswer:",
    "ends with a space ",
    "",
    " \n",
    "ünïcödé 🦊 and a much longer context that has a good many tokens",
)
CONTINUATIONS = (" jumps over the lazy dog.", " Paris", "x", "🦊")
PAIRS = [LoglikelihoodRequest(context, end) for context in CONTEXTS for end in CONTINUATIONS]
TOO_LONG = LoglikelihoodRequest("The quick brown fox jumps over the lazy dog. " * 20, " The answer is Paris.")
PROMPTS = ("The quick", "Question: what is the capital of France?\nAnswer:", "a", "One, two,")


def load(path: Path, **settings: Any) -> TransformersEngine:
    return TransformersEngine.load(path, EngineSettings(**{"device": "cpu", **settings}))


def in_order(results: Any) -> list[Any]:
    """Results in the order of their requests, checked to be complete."""
    pairs = list(results)
    assert sorted(index for index, _ in pairs) == list(range(len(pairs)))
    return [result for _, result in sorted(pairs, key=lambda pair: pair[0])]


def count_forwards(
    monkeypatch: pytest.MonkeyPatch, then: Callable[[int], None] = lambda _: None
) -> list[int]:
    """Record how many tokens go through the layers in each pass; `then` is called with the passes so far.

    For a loaded engine on a Llama: loading makes passes of its own.
    """
    passes: list[int] = []
    forward = transformers.LlamaModel.forward

    @wraps(forward)
    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(kwargs["input_ids"].numel())
        then(len(passes))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(transformers.LlamaModel, "forward", recording)
    return passes


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestLoglikelihoods:
    def test_they_are_those_of_brute_force_on_every_architecture(
        self, tiny_model: TinyModel, family: str
    ) -> None:
        requests = [*PAIRS, TOO_LONG]
        results = in_order(load(tiny_model(family)).loglikelihoods(requests))
        reference = Reference(tiny_model(family), CONTEXT)
        for request, result in zip(requests, results, strict=True):
            loglikelihood, is_greedy = reference.loglikelihood(request.context, request.continuation)
            assert result.loglikelihood == pytest.approx(
                loglikelihood, abs=PER_TOKEN * result.continuation_tokens
            )
            assert result.is_greedy == is_greedy

    @pytest.mark.parametrize("batch_tokens", [1, 60, 100_000])
    def test_no_score_depends_on_what_else_is_in_its_batch(
        self, tiny_model: TinyModel, family: str, batch_tokens: int
    ) -> None:
        engine = load(tiny_model(family))
        alone = [in_order(engine.loglikelihoods([request]))[0] for request in PAIRS]
        together = in_order(load(tiny_model(family), batch_tokens=batch_tokens).loglikelihoods(PAIRS))
        for one, other in zip(alone, together, strict=True):
            assert one.loglikelihood == pytest.approx(
                other.loglikelihood, abs=PER_TOKEN * one.continuation_tokens
            )
            assert one.is_greedy == other.is_greedy

    def test_the_models_own_choice_is_greedy(self, tiny_model: TinyModel) -> None:
        """With random models hardly any continuation is greedy by chance: here one is made."""
        engine, reference = load(tiny_model("llama")), Reference(tiny_model("llama"), CONTEXT)
        prompt = "The quick brown fox"
        greedy = reference.tokenizer.decode(reference.greedy_tokens(prompt, 1))
        assert reference.tokenizer.encode(prompt + greedy)[:-1] == reference.tokenizer.encode(prompt)
        first, second = in_order(
            engine.loglikelihoods([LoglikelihoodRequest(prompt, greedy), LoglikelihoodRequest(prompt, " x")])
        )
        assert (first.is_greedy, second.is_greedy) == (True, False)

    def test_an_over_long_context_loses_its_first_tokens_and_the_loss_is_counted(
        self, tiny_model: TinyModel
    ) -> None:
        (result,) = in_order(load(tiny_model("llama")).loglikelihoods([TOO_LONG]))
        encode = Reference(tiny_model("llama"), CONTEXT).tokenizer.encode
        whole = len(encode(TOO_LONG.context.rstrip() + " " + TOO_LONG.continuation))
        assert result.truncated_tokens == whole - (CONTEXT + 1) > 0
        assert result.prompt_tokens + result.continuation_tokens == CONTEXT + 1

    def test_what_fits_exactly_is_not_cut(self, tiny_model: TinyModel) -> None:
        fits, too_long = LoglikelihoodRequest("x" * CONTEXT, "y"), LoglikelihoodRequest("x" * CONTEXT, "yz")
        results = in_order(load(tiny_model("llama")).loglikelihoods([fits, too_long]))
        assert [result.truncated_tokens for result in results] == [0, 1]
        assert [result.prompt_tokens for result in results] == [CONTEXT, CONTEXT - 1]

    def test_a_continuation_longer_than_the_context_is_not_scored_at_all(self, tiny_model: TinyModel) -> None:
        """Scoring a part of it would compare choices of different lengths and look right."""
        requests = [LoglikelihoodRequest("a", "x" * (CONTEXT + 1)), LoglikelihoodRequest("a", "x" * CONTEXT)]
        too_long, fits = in_order(load(tiny_model("llama")).loglikelihoods(requests))
        assert math.isnan(too_long.loglikelihood)
        assert math.isfinite(fits.loglikelihood)
        assert fits.continuation_tokens == CONTEXT

    def test_a_continuation_without_a_token_is_not_a_certain_one(self, tiny_model: TinyModel) -> None:
        """The sum over no tokens is 0, a log-likelihood that beats every real choice."""
        (result,) = in_order(load(tiny_model("llama")).loglikelihoods([LoglikelihoodRequest("a", "")]))
        assert math.isnan(result.loglikelihood)
        assert not result.is_greedy
        assert result.continuation_tokens == 0

    def test_results_come_as_soon_as_their_batch_is_done(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever keeps finished samples loses at most the batch in flight."""
        engine = load(tiny_model("llama"), batch_tokens=CONTEXT)
        passes = count_forwards(monkeypatch)
        results = engine.loglikelihoods(PAIRS)
        assert passes == []
        next(results)
        assert len(passes) == 1

    def test_what_reads_the_same_tokens_is_read_once(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Multiple choice by letters costs a quarter that way."""
        engine = load(tiny_model("llama"))
        passes = count_forwards(monkeypatch)
        requests = [LoglikelihoodRequest("The answer is", f" {letter}") for letter in "TOSTO"]
        results = in_order(engine.loglikelihoods(requests))
        assert len(passes) == 1
        assert passes[0] < 2 * results[0].prompt_tokens
        assert results[0] == results[3] != results[1]

    @pytest.mark.parametrize("batch_tokens", [16, 100_000])
    def test_a_prompt_that_items_share_is_read_once(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, batch_tokens: int
    ) -> None:
        """Few-shot benchmarks are nearly all shared prompt: this is where the speed comes from."""
        engine = load(tiny_model("llama"), batch_tokens=batch_tokens)
        encode = Reference(tiny_model("llama"), CONTEXT).tokenizer.encode
        texts = [
            (f"The quick brown fox: {question}?", f" {answer}") for question in "abcde" for answer in "xyz"
        ]
        passes = count_forwards(monkeypatch)
        list(engine.loglikelihoods([LoglikelihoodRequest(*pair) for pair in texts]))
        read = [encode(context + end)[:-1] for context, end in texts]
        prefixes = {tuple(ids[:length]) for ids in read for length in range(1, len(ids) + 1)}
        assert sum(passes) == len(prefixes) < sum(map(len, read)) / 2
        assert max(passes) <= batch_tokens

    def test_one_text_split_at_different_places_is_read_once_and_scored_apart(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reference = Reference(tiny_model("llama"), CONTEXT)
        greedy = reference.tokenizer.decode(reference.greedy_tokens("The quick brown fox", 1))
        requests = [
            LoglikelihoodRequest("The quick brown fox", greedy),
            LoglikelihoodRequest("The quick", " brown fox" + greedy),
        ]
        expected = [reference.loglikelihood(request.context, request.continuation) for request in requests]
        engine = load(tiny_model("llama"))
        passes = count_forwards(monkeypatch)
        results = in_order(engine.loglikelihoods(requests))
        assert len(passes) == 1
        assert (
            [result.is_greedy for result in results]
            == [is_greedy for _, is_greedy in expected]
            == [True, False]
        )
        for result, (loglikelihood, _) in zip(results, expected, strict=True):
            assert result.loglikelihood == pytest.approx(loglikelihood, abs=PER_TOKEN)

    def test_answered_requests_change_no_bit_of_the_others_and_are_skipped(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An evaluation that was killed and goes on must come out as one that was not."""
        engine = load(tiny_model("llama"), batch_tokens=60)
        passes = count_forwards(monkeypatch)
        whole = dict(engine.loglikelihoods(PAIRS))
        of_whole = len(passes)
        for answered in ({0}, set(range(len(PAIRS) // 2)), set(range(len(PAIRS)))):
            passes.clear()
            rest = dict(engine.loglikelihoods(PAIRS, answered=answered))
            assert rest == {index: whole[index] for index in whole if index not in answered}
            assert len(passes) <= of_whole
        assert passes == []

    def test_nothing_asked_is_nothing_answered(self, tiny_model: TinyModel) -> None:
        engine = load(tiny_model("llama"))
        assert list(engine.loglikelihoods([])) == []
        assert list(engine.generations([])) == []
        assert list(engine.rolling_loglikelihoods([])) == []


class TestRolling:
    TEXTS = ("The quick brown fox jumps over the lazy dog. " * 12, "short", "", "🦊" * 40, "One, two,")

    def test_long_texts_are_scored_in_windows_as_by_brute_force(
        self, tiny_model: TinyModel, family: str
    ) -> None:
        engine = load(tiny_model(family), batch_tokens=2 * CONTEXT)
        results = in_order(engine.rolling_loglikelihoods([RollingRequest(text) for text in self.TEXTS]))
        reference = Reference(tiny_model(family), CONTEXT)
        for text, result in zip(self.TEXTS, results, strict=True):
            assert result.tokens == len(reference.tokenizer.encode(text))
            assert result.loglikelihood == pytest.approx(
                reference.rolling(text), abs=PER_TOKEN * max(result.tokens, 1)
            )
        assert results[0].tokens > 2 * CONTEXT

    def test_more_positions_than_one_softmax_takes_are_all_scored(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = RollingRequest(self.TEXTS[0])
        (expected,) = in_order(load(tiny_model("llama")).rolling_loglikelihoods([request]))
        monkeypatch.setattr("resources.engines.tree._POSITIONS_AT_ONCE", 7)
        (result,) = in_order(load(tiny_model("llama")).rolling_loglikelihoods([request]))
        assert result.loglikelihood == pytest.approx(expected.loglikelihood, abs=PER_TOKEN)


class TestGenerations:
    def test_they_are_those_of_brute_force_on_every_architecture(
        self, tiny_model: TinyModel, family: str
    ) -> None:
        """Left padding, positions and the cache must leave no trace in any output."""
        prompts = [*PROMPTS, "The quick brown fox jumps over the lazy dog. " * 20]
        requests = [GenerationRequest(prompt, (), 12) for prompt in prompts]
        results = in_order(load(tiny_model(family)).generations(requests))
        reference = Reference(tiny_model(family), CONTEXT)
        for prompt, result in zip(prompts, results, strict=True):
            expected = reference.greedy_tokens(prompt, 12)
            if 0 in expected:
                expected = expected[: expected.index(0)]
            text = reference.tokenizer.decode(expected, skip_special_tokens=True)
            assert result.text == (text.rstrip("\ufffd") if result.finish_reason == "length" else text)
            assert result.prompt_tokens + result.truncated_tokens == len(reference.tokenizer.encode(prompt))
        assert [result.prompt_tokens for result in results][-1] == CONTEXT - 12

    @pytest.mark.parametrize("batch_tokens", [1, 60, 100_000])
    def test_no_output_depends_on_what_else_is_in_its_batch(
        self, tiny_model: TinyModel, family: str, batch_tokens: int
    ) -> None:
        requests = [GenerationRequest(prompt, ("\n",), 5 + i) for i, prompt in enumerate(PROMPTS)]
        engine = load(tiny_model(family), batch_tokens=batch_tokens)
        alone = [in_order(engine.generations([request]))[0] for request in requests]
        assert in_order(engine.generations(requests)) == alone

    def test_it_stops_at_a_string_that_lies_across_tokens(self, tiny_model: TinyModel) -> None:
        reference = Reference(tiny_model("qwen"), CONTEXT)
        tokens = reference.greedy_tokens(PROMPTS[1], 30)
        decode = reference.tokenizer.decode
        text = decode(tokens)
        # A string made of the last character of one token and the first of the next one.
        stop, needed = next(
            (stop, length)
            for length in range(3, 30)
            if len(decode(tokens[length - 2])) and len(decode(tokens[length - 1]))
            if "\ufffd" not in (stop := decode(tokens[length - 2])[-1] + decode(tokens[length - 1])[0])
            if stop in decode(tokens[:length]) and stop not in decode(tokens[: length - 1])
        )
        (result,) = in_order(
            load(tiny_model("qwen")).generations([GenerationRequest(PROMPTS[1], ("never", stop), 30)])
        )
        assert (result.text, result.finish_reason) == (text[: text.index(stop)], "stop")
        assert result.output_tokens == needed

    def test_every_end_of_text_token_of_the_model_ends_the_text(
        self, tiny_model: TinyModel, tmp_path: Path
    ) -> None:
        """An instruct model ends its turn with another token than its base model ended a text with."""
        tokens = Reference(tiny_model("gpt2"), CONTEXT).greedy_tokens("The quick", 10)
        end = next(token for token in tokens[2:] if token not in tokens[:2])
        folder = shutil.copytree(tiny_model("gpt2"), tmp_path / "model")
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [399, end]}))
        engine = load(folder)
        (result,) = in_order(engine.generations([GenerationRequest("The quick", (), 10)]))
        assert result.finish_reason == "eos"
        assert result.output_tokens == tokens.index(end) + 1
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert result.text == tokenizer.decode(tokens[: tokens.index(end)])

    def test_a_repetition_penalty_of_the_model_itself_holds_and_its_sampling_does_not(
        self, tiny_model: TinyModel, tmp_path: Path
    ) -> None:
        """What the model's generation settings say about greedy decoding, the harness applies too."""
        folder = shutil.copytree(tiny_model("qwen"), tmp_path / "model")
        (folder / "generation_config.json").write_text(
            json.dumps(
                {
                    "eos_token_id": 0,
                    "repetition_penalty": 0.2,
                    "do_sample": True,
                    "temperature": 3.0,
                    "top_p": 0.5,
                    "num_beams": 3,
                    "max_length": 3,
                }
            )
        )
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        prompt = tokenizer(PROMPTS[1], return_tensors="pt")["input_ids"]
        expected = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            max_new_tokens=15,
            pad_token_id=1,
        )
        text = tokenizer.decode(expected[0, prompt.shape[1] :], skip_special_tokens=True)
        request = GenerationRequest(PROMPTS[1], (), 15)
        (result,) = in_order(load(folder).generations([request]))
        assert result.text == text.rstrip("\ufffd")
        assert result != in_order(load(tiny_model("qwen")).generations([request]))[0]

    def test_identical_prompts_are_generated_once(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = load(tiny_model("llama"))
        passes = count_forwards(monkeypatch)
        requests = [GenerationRequest("One, two,", (), 4), GenerationRequest("The quick", (), 4)] * 3
        results = in_order(engine.generations(requests))
        assert passes[1:] == [2, 2, 2]
        assert results[:2] == results[2:4] == results[4:]

    def test_results_come_as_soon_as_they_are_finished(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = load(tiny_model("llama"))
        passes = count_forwards(monkeypatch)
        results = engine.generations([GenerationRequest(p, (), 2 + 4 * i) for i, p in enumerate(PROMPTS)])
        index, _ = next(results)
        assert index == 0
        assert len(passes) == 2

    def test_a_finished_text_leaves_and_a_waiting_one_takes_its_place(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise every batch would run as long as its longest answer, on less and less."""
        engine = load(tiny_model("llama"), batch_tokens=16)
        monkeypatch.setattr(engine._memory, "_sequences", 2)
        requests = [
            GenerationRequest(f"{prompt} {i}", (), 3 if i % 2 else 15)
            for i in range(4)
            for prompt in ("The quick", "One, two")
        ]
        alone = [in_order(engine.generations([request]))[0] for request in requests]
        steps: list[Step] = []
        engine.on_step = steps.append
        assert in_order(engine.generations(requests)) == alone
        written = [step for step in steps if step.phase == "decode"]
        assert max(step.sequences for step in written) == 2
        needed = sum(result.output_tokens - 1 for result in alone)
        assert sum(step.output_tokens for step in written) == needed
        assert len(written) < 0.75 * needed

    def test_texts_that_share_a_long_prompt_come_out_as_alone(
        self, tiny_model: TinyModel, family: str
    ) -> None:
        """Their keys and values are held once and read by all of them in each step."""
        shared = "The quick brown fox jumps over"
        requests = [GenerationRequest(f"{shared} {end}", (), 9) for end in "abcdefghij"]
        requests += [GenerationRequest(shared, (), 9), GenerationRequest("One", (), 9)]
        engine = load(tiny_model(family), batch_tokens=20)
        alone = [in_order(engine.generations([request]))[0] for request in requests]
        assert in_order(engine.generations(requests)) == alone

    def test_answered_requests_are_neither_computed_nor_yielded(self, tiny_model: TinyModel) -> None:
        engine = load(tiny_model("llama"), batch_tokens=16)
        requests = [GenerationRequest(prompt, (), 6) for prompt in (*PROMPTS, PROMPTS[0])]
        whole = dict(engine.generations(requests))
        steps: list[Step] = []
        engine.on_step = steps.append
        assert dict(engine.generations(requests, answered={0, 2})) == {i: whole[i] for i in (1, 3, 4)}
        assert max(step.sequences for step in steps) <= 3
        assert list(engine.generations(requests, answered=range(5))) == []

    def test_a_limit_that_leaves_no_room_for_a_prompt_is_refused(self, tiny_model: TinyModel) -> None:
        with pytest.raises(UserError) as raised:
            list(load(tiny_model("llama")).generations([GenerationRequest("x", (), CONTEXT)]))
        assert str(raised.value) == (
            f"max_new_tokens {CONTEXT} leaves no room for a prompt in the {CONTEXT} tokens of model "
            f"{tiny_model('llama')}; lower max_new_tokens"
        )


class TestSampling:
    PROMPT = "The quick brown fox"

    def draws(self, engine: TransformersEngine, sampling: Sampling, count: int, tokens: int = 6) -> list[str]:
        requests = [GenerationRequest(self.PROMPT, (), tokens, sampling, draw) for draw in range(count)]
        return [result.text for result in in_order(engine.generations(requests))]

    def test_outputs_differ_and_come_again_whatever_is_asked_beside_them(self, tiny_model: TinyModel) -> None:
        """A sampled score that depends on the batch could never be computed again."""
        engine = load(tiny_model("llama"))
        drawn = self.draws(engine, Sampling(1.0), 12)
        assert len(set(drawn)) > 6
        assert self.draws(load(tiny_model("llama"), batch_tokens=16), Sampling(1.0), 12) == drawn
        request = GenerationRequest(self.PROMPT, (), 6, Sampling(1.0), 7)
        others = [GenerationRequest("One", (), 9, Sampling(1.0)), request, GenerationRequest("a", (), 3)]
        assert in_order(engine.generations(others))[1].text == drawn[7]
        assert self.draws(engine, Sampling(1.0, seed=5), 12) != drawn

    def test_the_first_token_is_drawn_from_the_models_own_distribution(self, tiny_model: TinyModel) -> None:
        engine, reference = load(tiny_model("llama")), Reference(tiny_model("llama"), CONTEXT)
        logits = reference.logits(reference.tokenizer.encode(self.PROMPT))[-1].double()
        for sampling in (Sampling(1.0), Sampling(0.5), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.6)):
            warped = transformers.LogitsProcessorList(
                [transformers.TemperatureLogitsWarper(sampling.temperature)]
            )
            if sampling.top_k:
                warped.append(transformers.TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                warped.append(transformers.TopPLogitsWarper(sampling.top_p))
            written: Any = torch.zeros((1, 0), dtype=torch.long)
            expected = torch.softmax(warped(written, logits[None])[0], -1).numpy()
            generator = np.random.default_rng(1)
            counts = np.bincount(
                [draw(logits.float(), sampling, generator.random()) for _ in range(4000)], minlength=400
            )
            assert not counts[expected == 0].any()
            likely = expected * 4000 >= 5
            rest = 4000 - counts[likely].sum(), 4000 * (1 - expected[likely].sum())
            observed = [*counts[likely], *([rest[0]] if rest[1] > 1 else [])]
            wanted = np.array([*(4000 * expected[likely]), *([rest[1]] if rest[1] > 1 else [])])
            assert stats.chisquare(observed, wanted * sum(observed) / wanted.sum()).pvalue > 1e-3
        assert engine.description["seed"] == 1234

    def test_one_token_of_the_likeliest_is_the_greedy_text(self, tiny_model: TinyModel) -> None:
        engine = load(tiny_model("llama"))
        greedy = in_order(engine.generations([GenerationRequest(self.PROMPT, (), 6)]))[0].text
        assert self.draws(engine, Sampling(1.0, top_k=1), 2) == [greedy] * 2
        assert self.draws(engine, Sampling(1.0, top_p=1e-9), 2) == [greedy] * 2
        assert self.draws(engine, Sampling(1e-4), 2) == [greedy] * 2

    def test_outputs_of_one_prompt_read_it_once(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = load(tiny_model("llama"))
        passes = count_forwards(monkeypatch)
        self.draws(engine, Sampling(1.0), 20)
        assert passes[0] == len(Reference(tiny_model("llama"), CONTEXT).tokenizer.encode(self.PROMPT))
        assert max(passes[1:]) <= 20


class TestMemory:
    """Out of memory halves the batch; what doesn't fit alone fails alone."""

    @pytest.fixture
    def limited(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
        """Make every pass of more than so many tokens fail as torch's allocator does."""

        def limit(most: int) -> list[int]:
            def allocate(_: int) -> None:
                if passes[-1] > most:
                    raise RuntimeError(
                        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
                    )

            passes = count_forwards(monkeypatch, allocate)
            return passes

        return limit

    def test_smaller_batches_give_the_same_scores(
        self, tiny_model: TinyModel, limited: Callable[[int], list[int]]
    ) -> None:
        expected = in_order(load(tiny_model("llama")).loglikelihoods(PAIRS))
        engine = load(tiny_model("llama"), batch_tokens=200)
        limited(60)
        for result, other in zip(in_order(engine.loglikelihoods(PAIRS)), expected, strict=True):
            assert result.loglikelihood == pytest.approx(other.loglikelihood, abs=1e-3)

    def test_fewer_texts_at_a_time_give_the_same_texts(
        self, tiny_model: TinyModel, limited: Callable[[int], list[int]]
    ) -> None:
        requests = [GenerationRequest(f"{i}", (), 6) for i in range(40)]
        engine = load(tiny_model("llama"))
        expected = in_order(engine.generations(requests))
        passes = limited(16)
        assert in_order(engine.generations(requests)) == expected
        assert max(passes) > passes[-1]

    def test_what_does_not_fit_alone_fails_alone(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One long document must not take a cell of ten thousand items with it."""
        long = LoglikelihoodRequest("x" * 40, " y")
        engine = load(tiny_model("llama"))
        expected: dict[int, Any] = dict(engine.loglikelihoods(PAIRS))
        forward = transformers.LlamaModel.forward

        @wraps(forward)
        def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
            if int(kwargs["position_ids"].max()) >= 38:
                raise RuntimeError(
                    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
                )
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(transformers.LlamaModel, "forward", failing)
        results: dict[int, Any] = dict(engine.loglikelihoods([*PAIRS, long]))
        failed = {index for index, result in results.items() if isinstance(result, Failure)}
        assert len(PAIRS) in failed
        assert len(failed) < len(PAIRS)
        reason = results[len(PAIRS)].reason
        assert reason.startswith("out of memory on cpu with this sample alone (DefaultCPUAllocator")
        for index in set(results) - failed:
            assert results[index].loglikelihood == pytest.approx(expected[index].loglikelihood, abs=1e-3)

    def test_another_error_is_not_taken_for_a_lack_of_memory(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = load(tiny_model("llama"))

        def broken(_: int) -> None:
            raise RuntimeError("the device fell off the bus")

        count_forwards(monkeypatch, broken)
        with pytest.raises(RuntimeError, match="fell off the bus"):
            list(engine.loglikelihoods(PAIRS))

    def test_a_budget_below_the_weights_is_one_clear_line(self, tiny_model: TinyModel) -> None:
        with pytest.raises(UserError) as raised:
            load(tiny_model("llama"), memory_bytes=1 << 20)
        assert str(raised.value).startswith(
            "EVAL_MEMORY_GB=0.000976562 is all taken: the process with the model"
        )

    def test_a_smaller_budget_makes_smaller_batches(self, tiny_model: TinyModel) -> None:
        used = in_use(torch.device("cpu"))
        small = load(tiny_model("llama"), memory_bytes=used + (40 << 20)).description
        assert small["batch_tokens"] <= load(tiny_model("llama")).description["batch_tokens"]
        assert 0 < small["memory_budget_bytes"] < 40 << 20

    def test_a_real_limit_of_memory_ends_in_smaller_batches(self, smollm: Path) -> None:
        """A process that may use little more than the weights answers all the same."""
        script = Path(__file__).parent / "within_a_limit.py"
        finished = subprocess.run(
            [sys.executable, str(script), str(smollm)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert finished.returncode == 0, finished.stderr[-2000:]
        answer = json.loads(finished.stdout.splitlines()[-1])
        assert answer["halved"] > 0
        assert answer["failures"] == 0
        assert answer["largest_difference"] < PER_TOKEN


class TestSteps:
    def test_each_pass_is_told_with_what_it_did(self, tiny_model: TinyModel) -> None:
        """Progress, phase timings and the peak of memory are made of this."""
        engine = load(tiny_model("llama"), batch_tokens=60)
        steps: list[Step] = []
        engine.on_step = steps.append
        list(engine.loglikelihoods(PAIRS))
        assert {step.phase for step in steps} == {"prefill"}
        assert all(0 < step.prompt_tokens <= 60 and step.output_tokens == 0 for step in steps)
        assert all(step.seconds > 0 and step.memory_bytes > 1 << 20 for step in steps)
        steps.clear()
        results = in_order(engine.generations([GenerationRequest(p, (), 5) for p in PROMPTS]))
        assert [step.phase for step in steps] == ["prefill", *["decode"] * 4]
        assert sum(step.output_tokens for step in steps[1:]) == sum(r.output_tokens - 1 for r in results)


class TestNotANumber:
    @pytest.fixture
    def broken(self, tiny_model: TinyModel, tmp_path: Path) -> Path:
        """A model with one NaN in its last layer norm."""
        folder = shutil.copytree(tiny_model("llama"), tmp_path / "broken")
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"][3] = math.nan
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def test_a_log_likelihood_stays_nan(self, broken: Path) -> None:
        """Judging it is the caller's work; a number in its place would be scored."""
        results = in_order(load(broken).loglikelihoods(PAIRS))
        assert all(math.isnan(result.loglikelihood) for result in results)
        (rolling,) = in_order(load(broken).rolling_loglikelihoods([RollingRequest("The quick")]))
        assert math.isnan(rolling.loglikelihood)

    def test_a_generation_says_so_instead_of_ending_with_some_text(self, broken: Path) -> None:
        results = in_order(load(broken).generations([GenerationRequest(p, (), 5) for p in PROMPTS]))
        assert results == [GenerationResult("", "nan", result.prompt_tokens, 0, 0) for result in results]


class TestRepeatability:
    def test_the_same_requests_give_the_same_bits_twice(self, tiny_model: TinyModel, family: str) -> None:
        def everything() -> list[Any]:
            engine = load(tiny_model(family))
            return [
                in_order(engine.loglikelihoods(PAIRS)),
                in_order(engine.rolling_loglikelihoods([RollingRequest(TestRolling.TEXTS[0])])),
                in_order(engine.generations([GenerationRequest(p, (), 9) for p in PROMPTS])),
            ]

        assert everything() == everything()

    def test_loading_seeds_torch_and_turns_determinism_on(self, tiny_model: TinyModel) -> None:
        torch.use_deterministic_algorithms(False)
        load(tiny_model("llama"), seed=3)
        drawn = torch.rand(1)
        torch.manual_seed(3)
        assert drawn == torch.rand(1)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32

    def test_threads_are_pinned(self, tiny_model: TinyModel) -> None:
        before = torch.get_num_threads()
        try:
            engine = load(tiny_model("llama"), threads=3)
            assert torch.get_num_threads() == 3
            assert engine.description["threads"] == 3
        finally:
            torch.set_num_threads(before)

    def test_the_description_is_json_and_says_what_the_numbers_depend_on(self, tiny_model: TinyModel) -> None:
        engine: Engine = load(tiny_model("gemma-sliding-window"), batch_tokens=99, seed=5)
        described = json.loads(json.dumps(engine.description))
        assert (
            described.items()
            >= {
                "engine": "transformers",
                "device": "cpu",
                "dtype": "float32",
                "seed": 5,
                "batch_tokens": 99,
                "context_length": CONTEXT,
                "attention": "prefix_tree",
                "passes": "prefix tree",
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }.items()
        )
        assert {"threads", "device_name", "tokenizers", "python"} <= described.keys()
        assert engine.fingerprint_fields == {"engine": "transformers", "dtype": "float32"}


class TestInterruption:
    @pytest.mark.parametrize("operation", ["loglikelihoods", "generations"])
    def test_a_real_interrupt_ends_the_work_and_leaves_the_engine_usable(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, operation: str
    ) -> None:
        """Dagster cancels a run by interrupting the main thread."""

        def interrupt(calls: int) -> None:
            if calls == 3:
                signal.raise_signal(signal.SIGINT)

        engine = load(tiny_model("llama"), batch_tokens=40)
        passes = count_forwards(monkeypatch, interrupt)
        requests: Sequence[Any] = (
            PAIRS if operation == "loglikelihoods" else [GenerationRequest(p, (), 6) for p in PROMPTS]
        )
        with pytest.raises(KeyboardInterrupt):
            list(getattr(engine, operation)(requests))
        assert len(passes) == 3
        again = in_order(getattr(engine, operation)(requests))
        assert again == in_order(getattr(load(tiny_model("llama"), batch_tokens=40), operation)(requests))


class TestClosing:
    def test_close_frees_the_weights(self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without it a run over two models needs the memory of both."""
        alive: list[weakref.ref[Any]] = []
        load_one: Any = transformers.AutoModelForCausalLM.from_pretrained

        def remembering(*args: Any, **kwargs: Any) -> Any:
            loaded = load_one(*args, **kwargs)
            alive.append(weakref.ref(loaded[0]))
            return loaded

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", remembering)
        engine = load(tiny_model("llama"))
        list(engine.loglikelihoods(PAIRS[:2]))
        list(engine.generations([GenerationRequest("a", (), 2)]))
        assert alive[0]() is not None
        engine.close()
        gc.collect()
        assert alive[0]() is None
        engine.close()


class TestChatTemplates:
    MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 🦊"})

    def test_a_conversation_ends_where_the_answer_begins(self, tiny_model: TinyModel) -> None:
        prompt = load(tiny_model("llama")).apply_chat_template(self.MESSAGES)
        assert prompt == "<|system|>Be brief.\n<|user|>Hi 🦊\n<|assistant|>"

    def test_an_answer_that_is_begun_goes_on_where_it_ends(self, tiny_model: TinyModel) -> None:
        begun = [*self.MESSAGES, {"role": "assistant", "content": "The answer is"}]
        prompt = load(tiny_model("llama")).apply_chat_template(begun)
        assert prompt == "<|system|>Be brief.\n<|user|>Hi 🦊\n<|assistant|>The answer is"

    def test_a_template_that_refuses_a_system_turn_is_one_clear_line(
        self, tiny_model: TinyModel, tmp_path: Path
    ) -> None:
        folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
        (folder / "chat_template.jinja").write_text(
            "{% for m in messages %}\n{% if m.role == 'system' %}"
            "{{ raise_exception('System role not supported') }}{% endif %}{% endfor %}"
        )
        with pytest.raises(UserError, match=r"model .* failed in line 2: System role not supported; change"):
            load(folder).apply_chat_template(self.MESSAGES)

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("", "has no chat template"),
            ("line 1\n{{ raise_exception('no system\nturns') }}", "failed in line 2: no system turns"),
            ("a\nb\n{% for m in %}", "failed in line 3"),
            ("a\n\n\n{{ messages[0].content.nothing.there }}", "failed in line 4"),
            ("{{ 1 / 0 }}", "failed in line 1: division by zero"),
        ],
    )
    def test_a_template_that_is_missing_or_fails_is_one_clear_line(
        self, tiny_model: TinyModel, tmp_path: Path, template: str, message: str
    ) -> None:
        folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
        (folder / "chat_template.jinja").unlink()
        if template:
            (folder / "chat_template.jinja").write_text(template)
        with pytest.raises(UserError) as raised:
            load(folder).apply_chat_template(self.MESSAGES)
        assert message in str(raised.value)
        assert str(folder) in str(raised.value)
        assert "\n" not in str(raised.value)


class TestRealModel:
    def test_it_scores_as_brute_force_does(self, smollm_engine: TransformersEngine, smollm: Path) -> None:
        requests = [
            LoglikelihoodRequest(context, end)
            for context in ("The capital of France is", "")
            for end in (" Paris", " London, a city in the north")
        ]
        results = in_order(smollm_engine.loglikelihoods(requests))
        reference = Reference(smollm, 8192)
        for request, result in zip(requests, results, strict=True):
            loglikelihood, is_greedy = reference.loglikelihood(request.context, request.continuation)
            assert result.loglikelihood == pytest.approx(
                loglikelihood, abs=PER_TOKEN * result.continuation_tokens
            )
            assert result.is_greedy == is_greedy
        assert isinstance(results[0], LoglikelihoodResult)
        assert results[0].loglikelihood > results[1].loglikelihood

    def test_it_answers_in_its_chat_format_and_never_with_half_a_character(
        self, smollm_engine: TransformersEngine
    ) -> None:
        turn = {"role": "user", "content": "What is 2+2? Answer with an emoji too."}
        prompt = smollm_engine.apply_chat_template([turn])
        assert prompt.endswith("<|im_start|>assistant\n")
        requests = [GenerationRequest(prompt, (), limit) for limit in (4, 5, 6)]
        requests.append(GenerationRequest("1, 2, 3,", (" 7,",), 15))
        *emoji, numbers = in_order(smollm_engine.generations(requests))
        assert all("\ufffd" not in result.text for result in emoji)
        assert emoji[2].text.startswith(emoji[0].text)
        assert any(ord(character) > 0xFFFF for character in emoji[2].text)
        assert (numbers.text, numbers.finish_reason) == (" 4, 5, 6,", "stop")
