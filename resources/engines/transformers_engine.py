"""The engine that runs a local Hugging Face folder with torch and transformers, on CPU, CUDA or MPS."""

import gc
import inspect
import logging
import math
import platform
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
import torch
import transformers

from resources.engines import (
    ChatMessage,
    Failure,
    GenerationRequest,
    GenerationResult,
    LoglikelihoodRequest,
    LoglikelihoodResult,
    RollingRequest,
    RollingResult,
    Step,
)
from resources.engines.branching import Branching
from resources.engines.chat import render_chat
from resources.engines.checkpoint import context_length
from resources.engines.choosing import Running
from resources.engines.memory import Limits, Memory, is_out_of_memory, out_of_memory_line, release
from resources.engines.meter import BatchTooLargeError, Meter
from resources.engines.padded import Padded
from resources.engines.settings import EngineSettings, fingerprint_fields
from resources.engines.tokens import Completion, Scoring, TextEncoder, Tokens, rolling_windows, scoring
from resources.engines.transformers_loading import device_name, end_tokens, greedy_config, load_model
from resources.engines.tree import NoTreeError, TreeModel
from resources.errors import UserError

T = TypeVar("T")
_logger = logging.getLogger(__name__)


class TransformersEngine:
    """A causal language model in this process; see `resources.engines.Engine`.

    The scores are those of lm-evaluation-harness 0.4.13 on the same folder. Make one with `load`.
    """

    def __init__(self, path: Path, model: Any, tokenizer: Any, settings: EngineSettings) -> None:
        self._path = path
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings
        self._encoder = TextEncoder(tokenizer)
        self._context_length = context_length(model.config, tokenizer)
        # transformers warns about, and truncation reads, a limit that many tokenizers don't have.
        tokenizer.model_max_length = self._context_length
        self._end_tokens = end_tokens(model, tokenizer)
        self._end_text = "" if tokenizer.eos_token_id is None else tokenizer.decode([tokenizer.eos_token_id])
        pad_token: int = next(
            token
            for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id, 0)
            if token is not None
        )
        self._generation_config = greedy_config(model.generation_config, self._end_tokens, pad_token)
        self._device: torch.device = model.device
        self.on_step: Callable[[Step], None] = lambda _: None
        self._passes: Any  # Branching or Padded, None once it is closed
        key_value_bytes = 0
        try:
            tree = TreeModel.of(model)
        except NoTreeError as error:
            self._branches, self._passes_description = False, f"padded batches ({error})"
            takes_last = "logits_to_keep" in inspect.signature(model.forward).parameters
            self._passes = Padded(model, self._generation_config, pad_token, takes_last=takes_last)
        else:
            self._branches, self._passes_description = True, "prefix tree"
            self._passes = Branching(tree)
            key_value_bytes = tree.key_value_bytes
        self._memory = Memory(
            model,
            key_value_bytes=key_value_bytes,
            budget_bytes=settings.memory_bytes,
            batch_tokens=settings.batch_tokens,
        )

    @classmethod
    def load(cls, path: Path, settings: EngineSettings) -> "TransformersEngine":
        """Load the model in folder `path`. Sets torch's threads, seed and determinism for the whole process.

        Raises UserError where the folder is no complete, safe and supported model, or the device isn't there.
        """
        model, tokenizer = load_model(path, settings)
        return cls(path, model, tokenizer, settings)

    @property
    def description(self) -> Mapping[str, Any]:
        model = self._model
        return {
            "engine": "transformers",
            "device": str(model.device),
            "device_name": device_name(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "seed": self._settings.seed,
            "deterministic": True,
            "passes": self._passes_description,
            **self._memory.description(),
            "device_map": self._settings.device_map,
            "context_length": self._context_length,
            "attention": getattr(model.config, "_attn_implementation", None),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        }

    @property
    def fingerprint_fields(self) -> Mapping[str, Any]:
        return fingerprint_fields(self._settings)

    def apply_chat_template(self, messages: Sequence[ChatMessage]) -> str:
        """As the protocol says. Raises UserError where the model has no template, or its template fails."""
        return render_chat(self._tokenizer, messages, self._path)

    def loglikelihoods(
        self, requests: Sequence[LoglikelihoodRequest], answered: Collection[int] = ()
    ) -> Iterator[tuple[int, LoglikelihoodResult | Failure]]:
        """As the protocol says. A continuation without a token, or longer than the context, gets NaN."""
        pairs = self._encoder.pairs([(request.context, request.continuation) for request in requests])
        sequences = [scoring(*pair, self._context_length) for pair in pairs]
        for index, score in self._score(sequences, set(range(len(requests))).difference(answered)):
            sequence = sequences[index]
            if isinstance(score, Failure):
                yield index, score
                continue
            yield (
                index,
                LoglikelihoodResult(
                    loglikelihood=score[0],
                    is_greedy=score[1],
                    prompt_tokens=sequence.context_length,
                    continuation_tokens=len(sequence.targets),
                    truncated_tokens=sequence.truncated,
                ),
            )

    def rolling_loglikelihoods(
        self, requests: Sequence[RollingRequest], answered: Collection[int] = ()
    ) -> Iterator[tuple[int, RollingResult | Failure]]:
        """As the protocol says. A BOS that the tokenizer adds is a token of the text, as in the harness."""
        encoded = self._encoder.texts(request.text for request in requests)
        windows: list[Scoring] = []
        owners: list[int] = []
        missing: list[int] = []
        for index, request in enumerate(requests):
            before = len(windows)
            tokens = encoded[request.text]
            if len(tokens):
                pairs = rolling_windows(tokens, self._encoder.prefix_token, self._context_length)
                windows.extend(scoring(*pair, self._context_length) for pair in pairs)
            owners.extend([index] * (len(windows) - before))
            missing.append(len(windows) - before)
            if not len(tokens) and index not in answered:
                yield index, RollingResult(0.0, 0)
        todo = {window for window, owner in enumerate(owners) if owner not in answered}
        parts: dict[int, list[float]] = defaultdict(list)
        failed: set[int] = set()
        for window, score in self._score(windows, todo):
            index = owners[window]
            if index in failed:
                continue
            if isinstance(score, Failure):
                failed.add(index)
                yield index, score
                continue
            parts[index].append(score[0])
            if len(parts[index]) == missing[index]:
                yield index, RollingResult(math.fsum(parts[index]), len(encoded[requests[index].text]))

    def generations(
        self, requests: Sequence[GenerationRequest], answered: Collection[int] = ()
    ) -> Iterator[tuple[int, GenerationResult | Failure]]:
        """As the protocol says. Raises UserError where `max_new_tokens` leaves no room for a prompt."""
        for request in requests:
            if request.max_new_tokens >= self._context_length:
                raise UserError(
                    f"max_new_tokens {request.max_new_tokens} leaves no room for a prompt in the "
                    f"{self._context_length} tokens of model {self._path}; lower max_new_tokens"
                )
        encoded = self._encoder.prompts(request.prompt for request in requests)
        askers: dict[GenerationRequest, list[int]] = {}
        for index, request in enumerate(requests):
            askers.setdefault(request, []).append(index)
        distinct = list(askers)
        prompts = [
            encoded[request.prompt][-(self._context_length - request.max_new_tokens) :]
            for request in distinct
        ]

        def running(index: int) -> Running:
            return self._running(prompts[index], distinct[index])

        def write(todo: set[int], limits: Limits, meter: Meter) -> Iterator[tuple[int, Running]]:
            written: Iterator[tuple[int, Running]] = self._passes.write(
                len(distinct), running, todo, limits, meter
            )
            return written

        todo = {i for i, request in enumerate(distinct) if set(askers[request]).difference(answered)}
        lengths = [len(prompt) for prompt in prompts]
        for i, text in self._within_memory(write, todo, lengths):
            result: GenerationResult | Failure
            if isinstance(text, Failure):
                result = text
            else:
                written, finish_reason = text.completion.result()
                result = GenerationResult(
                    text=written,
                    finish_reason=finish_reason,
                    prompt_tokens=len(prompts[i]),
                    output_tokens=len(text.completion.tokens),
                    truncated_tokens=len(encoded[distinct[i].prompt]) - len(prompts[i]),
                )
            yield from ((index, result) for index in askers[distinct[i]] if index not in answered)

    def close(self) -> None:
        """Free the weights; the engine can't be used any more."""
        device = self._device
        self._model = self._passes = None
        gc.collect()
        release(device)

    def _score(
        self, sequences: Sequence[Scoring], todo: set[int]
    ) -> Iterator[tuple[int, tuple[float, bool] | Failure]]:
        """Yield ``(index, (log-likelihood of the targets, whether all are greedy))`` of those in `todo`."""
        unscorable = [index for index in sorted(todo) if not len(sequences[index].targets)]
        if unscorable:
            _logger.warning("%d continuations are empty or longer than the model's context", len(unscorable))
        yield from ((index, (math.nan, False)) for index in unscorable)
        scorable = [index for index, sequence in enumerate(sequences) if len(sequence.targets)]
        chosen = [sequences[index] for index in scorable]

        def score(left: set[int], limits: Limits, meter: Meter) -> Iterator[tuple[int, tuple[float, bool]]]:
            for i, loglikelihood, is_greedy in self._passes.score(chosen, left, limits, meter):
                yield i, (loglikelihood, is_greedy)

        lengths = [len(sequence.inputs) for sequence in chosen]
        wanted = {i for i, index in enumerate(scorable) if index in todo}
        for i, result in self._within_memory(score, wanted, lengths):
            yield scorable[i], result

    def _within_memory(
        self,
        work: Callable[[set[int], Limits, Meter], Iterator[tuple[int, T]]],
        todo: set[int],
        lengths: Sequence[int],
    ) -> Iterator[tuple[int, T | Failure]]:
        """Do the work on `todo`; out of memory, do the rest again in batches of half the size.

        What doesn't fit with one sequence and a few tokens at a time fails alone, the longest first; the rest
        then starts anew.
        """
        left = set(todo)
        meter = Meter(self._device, self._memory, lambda step: self.on_step(step))
        limits = self._memory.limits
        while left:
            alone = limits.smallest
            batch = {max(left, key=lambda i: (lengths[i], -i))} if alone else left
            try:
                for index, result in work(set(batch), limits, meter):
                    left.discard(index)
                    yield index, result
                if alone:
                    limits = limits.doubled(self._memory.limits)
            except BatchTooLargeError:
                limits = self._memory.limits
                _logger.info("batches take more memory than planned: now %d tokens each", limits.tokens)
            except Exception as error:  # torch's CPU allocator raises a plain RuntimeError; others go on up
                if not is_out_of_memory(error):
                    raise
                reason = out_of_memory_line(error, self._device)
                if alone:
                    left.difference_update(batch)
                    yield from ((index, Failure(reason)) for index in batch)
                    limits = self._memory.limits
                else:
                    limits = limits.halved()
                    _logger.warning("out of memory: going on with batches of %d tokens", limits.tokens)
                # The failed pass is still referenced from the exception's frames until here.
                del error
                gc.collect()
                release(self._device)

    def _running(self, prompt: Tokens, request: GenerationRequest) -> Running:
        completion = Completion(
            self._tokenizer, request.stop, request.max_new_tokens, self._end_tokens, self._end_text
        )
        processors = None
        if self._branches:  # generate() applies them itself
            processors = self._model._get_logits_processor(
                generation_config=self._generation_config,
                input_ids_seq_length=len(prompt),
                device=self._device,
            )
        return Running(prompt, request, completion, processors)
