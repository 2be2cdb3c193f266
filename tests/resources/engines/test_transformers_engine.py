"""The transformers engine against brute force, on tiny random models and on a real one."""

import gc
import json
import math
import os
import shutil
import signal
import weakref
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from resources.engines import (
    Engine,
    GenerationRequest,
    GenerationResult,
    LoglikelihoodRequest,
    LoglikelihoodResult,
    RollingRequest,
)
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
    monkeypatch: pytest.MonkeyPatch, model_class: Any, then: Callable[[int], None] = lambda _: None
) -> list[tuple[int, ...]]:
    """Record the shape of every input that reaches the model; `then` is called with their number."""
    shapes: list[tuple[int, ...]] = []
    forward = model_class.forward

    @wraps(forward)
    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        then(len(shapes))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(model_class, "forward", recording)
    return shapes


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
        shapes = count_forwards(monkeypatch, transformers.LlamaForCausalLM)
        results = load(tiny_model("llama"), batch_tokens=1).loglikelihoods(PAIRS)
        assert shapes == []
        next(results)
        assert len(shapes) == 1

    def test_what_reads_the_same_tokens_is_read_once(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Multiple choice by letters costs a quarter that way."""
        shapes = count_forwards(monkeypatch, transformers.LlamaForCausalLM)
        requests = [LoglikelihoodRequest("The answer is", f" {letter}") for letter in "TOSTO"]
        results = in_order(load(tiny_model("llama")).loglikelihoods(requests))
        assert [rows for rows, _ in shapes] == [1]
        assert results[0] == results[3] != results[1]

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
        shapes = count_forwards(monkeypatch, transformers.LlamaForCausalLM)
        results = in_order(load(tiny_model("llama")).loglikelihoods(requests))
        assert [rows for rows, _ in shapes] == [1]
        assert (
            [result.is_greedy for result in results]
            == [is_greedy for _, is_greedy in expected]
            == [True, False]
        )
        for result, (loglikelihood, _) in zip(results, expected, strict=True):
            assert result.loglikelihood == pytest.approx(loglikelihood, abs=PER_TOKEN)

    def test_longest_inputs_go_first_and_no_batch_is_over_its_budget(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shapes = count_forwards(monkeypatch, transformers.LlamaForCausalLM)
        list(load(tiny_model("llama"), batch_tokens=60).loglikelihoods(PAIRS))
        widths = [width for _, width in shapes]
        assert widths == sorted(widths, reverse=True)
        assert all(rows == 1 or rows * width <= 60 for rows, width in shapes)

    def test_a_model_that_computes_all_logits_scores_the_same(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = in_order(load(tiny_model("llama")).loglikelihoods(PAIRS))
        forward = transformers.LlamaForCausalLM.forward

        def without_choice(self: Any, input_ids: Any, use_cache: bool) -> Any:
            return forward(self, input_ids=input_ids, use_cache=use_cache)

        monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", without_choice)
        for result, other in zip(
            in_order(load(tiny_model("llama"), batch_tokens=60).loglikelihoods(PAIRS)), expected, strict=True
        ):
            assert result.loglikelihood == pytest.approx(
                other.loglikelihood, abs=PER_TOKEN * other.continuation_tokens
            )

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
        ((_, expected),) = load(tiny_model("llama")).rolling_loglikelihoods([request])
        monkeypatch.setattr("resources.engines.transformers_engine._POSITIONS_AT_ONCE", 7)
        ((_, result),) = load(tiny_model("llama")).rolling_loglikelihoods([request])
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
        shapes = count_forwards(monkeypatch, transformers.LlamaForCausalLM)
        requests = [GenerationRequest("One, two,", (), 4), GenerationRequest("The quick", (), 4)] * 3
        results = in_order(load(tiny_model("llama")).generations(requests))
        assert {rows for rows, _ in shapes} == {2}
        assert results[:2] == results[2:4] == results[4:]

    def test_results_come_as_soon_as_their_batch_is_done(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shapes = count_forwards(monkeypatch, transformers.LlamaForCausalLM)
        results = load(tiny_model("llama"), batch_tokens=1).generations(
            [GenerationRequest(prompt, (), 3) for prompt in PROMPTS]
        )
        next(results)
        assert len(shapes) <= 3

    def test_a_limit_that_leaves_no_room_for_a_prompt_is_refused(self, tiny_model: TinyModel) -> None:
        with pytest.raises(UserError) as raised:
            list(load(tiny_model("llama")).generations([GenerationRequest("x", (), CONTEXT)]))
        assert str(raised.value) == (
            f"max_new_tokens {CONTEXT} leaves no room for a prompt in the {CONTEXT} tokens of model "
            f"{tiny_model('llama')}; lower max_new_tokens"
        )

    def test_a_recurrent_model_generates_as_by_brute_force(self, tiny_model: TinyModel) -> None:
        results = in_order(
            load(tiny_model("mamba")).generations([GenerationRequest(prompt, (), 8) for prompt in PROMPTS])
        )
        reference = Reference(tiny_model("mamba"), 2048)
        for prompt, result in zip(PROMPTS, results, strict=True):
            expected = reference.greedy_tokens(prompt, 8)
            expected = expected[: expected.index(0)] if 0 in expected else expected
            text = reference.tokenizer.decode(expected, skip_special_tokens=True)
            assert result.text == (text.rstrip("\ufffd") if result.finish_reason == "length" else text)


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
        ((_, rolling),) = load(broken).rolling_loglikelihoods([RollingRequest("The quick")])
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
                "attention": "sdpa",
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

        shapes = count_forwards(monkeypatch, transformers.LlamaForCausalLM, interrupt)
        engine = load(tiny_model("llama"), batch_tokens=40)
        requests: Sequence[Any] = (
            PAIRS if operation == "loglikelihoods" else [GenerationRequest(p, (), 6) for p in PROMPTS]
        )
        with pytest.raises(KeyboardInterrupt):
            list(getattr(engine, operation)(requests))
        assert len(shapes) == 3
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
