"""The engine that runs a local Hugging Face folder with torch and transformers, on CPU, CUDA or MPS."""

import copy
import gc
import inspect
import logging
import math
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from resources.engines import (
    ChatMessage,
    GenerationRequest,
    GenerationResult,
    LoglikelihoodRequest,
    LoglikelihoodResult,
    RollingRequest,
    RollingResult,
)
from resources.engines.checkpoint import context_length, one_line
from resources.engines.settings import EngineSettings, fingerprint_fields
from resources.engines.tokens import (
    Completion,
    Scoring,
    ScoringRow,
    TextEncoder,
    Tokens,
    batches,
    group_by_inputs,
    rolling_windows,
    scoring,
)
from resources.engines.transformers_loading import device_name, end_tokens, greedy_config, load_model
from resources.errors import UserError

_POSITIONS_AT_ONCE = 512  # of one log_softmax, which holds a second copy of their logits
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
        self._pad_token = next(
            token
            for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id, 0)
            if token is not None
        )
        self._generation_config = greedy_config(model.generation_config, self._end_tokens, self._pad_token)
        self._heads_last_positions = "logits_to_keep" in inspect.signature(model.forward).parameters

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
            "batch_tokens": self._settings.batch_tokens,
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
        """Raises UserError where the model has no chat template, or its template fails."""
        if not self._tokenizer.chat_template:
            raise UserError(
                f"model {self._path} has no chat template; evaluate it without 'chat' "
                "or add its chat_template.jinja"
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # a template is a program of the model's author: it may raise anything
            line = _template_line(error)
            raise UserError(
                f"the chat template of model {self._path} failed{f' in line {line}' if line else ''}: "
                f"{one_line(error)}; change the conversation or mend the template"
            ) from error

    def loglikelihoods(
        self, requests: Sequence[LoglikelihoodRequest]
    ) -> Iterator[tuple[int, LoglikelihoodResult]]:
        """As the protocol says. A continuation without a token, or longer than the context, gets NaN."""
        pairs = self._encoder.pairs([(request.context, request.continuation) for request in requests])
        sequences = [scoring(*pair, self._context_length) for pair in pairs]
        for index, loglikelihood, is_greedy in self._score(sequences):
            sequence = sequences[index]
            yield (
                index,
                LoglikelihoodResult(
                    loglikelihood=loglikelihood,
                    is_greedy=is_greedy,
                    prompt_tokens=sequence.context_length,
                    continuation_tokens=len(sequence.targets),
                    truncated_tokens=sequence.truncated,
                ),
            )

    def rolling_loglikelihoods(
        self, requests: Sequence[RollingRequest]
    ) -> Iterator[tuple[int, RollingResult]]:
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
            if not len(tokens):
                yield index, RollingResult(0.0, 0)
        parts: list[list[float]] = [[] for _ in requests]
        for window, loglikelihood, _ in self._score(windows):
            index = owners[window]
            parts[index].append(loglikelihood)
            if len(parts[index]) == missing[index]:
                yield index, RollingResult(sum(parts[index]), len(encoded[requests[index].text]))

    def generations(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, GenerationResult]]:
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
        lengths = [
            len(prompt) + request.max_new_tokens for prompt, request in zip(prompts, distinct, strict=True)
        ]
        for batch in batches(lengths, self._settings.batch_tokens):
            completions = self._complete([prompts[i] for i in batch], [distinct[i] for i in batch])
            for i, completion in zip(batch, completions, strict=True):
                text, finish_reason = completion.result()
                result = GenerationResult(
                    text=text,
                    finish_reason=finish_reason,
                    prompt_tokens=len(prompts[i]),
                    output_tokens=len(completion.tokens),
                    truncated_tokens=len(encoded[distinct[i].prompt]) - len(prompts[i]),
                )
                yield from ((index, result) for index in askers[distinct[i]])

    def close(self) -> None:
        """Free the weights; the engine can't be used any more."""
        on_cuda = self._model is not None and self._model.device.type == "cuda"
        self._model = None
        gc.collect()
        if on_cuda:
            torch.cuda.empty_cache()

    def _score(self, sequences: Sequence[Scoring]) -> Iterator[tuple[int, float, bool]]:
        """Yield ``(index, log-likelihood of the targets, whether all are greedy)`` of each sequence."""
        unscorable = [index for index, sequence in enumerate(sequences) if not len(sequence.targets)]
        if unscorable:
            _logger.warning("%d continuations are empty or longer than the model's context", len(unscorable))
        yield from ((index, math.nan, False) for index in unscorable)
        rows = group_by_inputs(sequences)
        for batch in batches([len(row.inputs) for row in rows], self._settings.batch_tokens):
            yield from self._score_batch([rows[i] for i in batch])

    @torch.inference_mode()
    def _score_batch(self, rows: Sequence[ScoringRow]) -> list[tuple[int, float, bool]]:
        # Padded on the right, where a causal model's earlier positions can't see it: no mask is needed.
        inputs = np.zeros((len(rows), max(len(row.inputs) for row in rows)), np.int64)
        for number, row in enumerate(rows):
            inputs[number, : len(row.inputs)] = row.inputs
        first = min(len(row.inputs) - row.scored for row in rows)
        logits = self._logits(inputs, first)
        scores: list[tuple[int, float, bool]] = []
        for row, row_logits in zip(rows, logits, strict=True):
            end = len(row.inputs) - first
            scores.extend(_score_row(row, row_logits[end - row.scored : end]))
        return scores

    def _logits(self, inputs: NDArray[np.int64], first: int) -> torch.Tensor:
        """Logits [rows, positions - first, vocabulary] of token ids [rows, positions], from `first` on."""
        tokens = torch.from_numpy(inputs).to(self._model.device)
        if self._heads_last_positions:
            # A number: a tensor of positions would be on the wrong device of a model spread over several.
            wanted = inputs.shape[1] - first
            logits = self._model(input_ids=tokens, use_cache=False, logits_to_keep=wanted).logits
        else:
            logits = self._model(input_ids=tokens, use_cache=False).logits[:, first:]
        return logits  # type: ignore[no-any-return]  # the model is Any

    @torch.inference_mode()
    def _complete(self, prompts: Sequence[Tokens], requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Continue the prompts greedily, all in one batch."""
        longest = max(len(prompt) for prompt in prompts)
        tokens = np.full((len(prompts), longest), self._pad_token, np.int64)
        mask = np.zeros((len(prompts), longest), np.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        completions = [
            Completion(
                self._tokenizer, request.stop, request.max_new_tokens, self._end_tokens, self._end_text
            )
            for request in requests
        ]
        config = copy.deepcopy(self._generation_config)
        config.max_new_tokens = max(request.max_new_tokens for request in requests)
        self._model.generate(
            input_ids=torch.from_numpy(tokens).to(self._model.device),
            attention_mask=torch.from_numpy(mask).to(self._model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([_MarkNotNumbers(completions)]),
            stopping_criteria=StoppingCriteriaList([_Collect(completions)]),
        )
        return completions


class _Collect(StoppingCriteria):
    """Hands each step's tokens to the completions and ends those that have enough."""

    def __init__(self, completions: Sequence[Completion]) -> None:
        self._completions = completions

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002
        for completion, token in zip(self._completions, input_ids[:, -1].tolist(), strict=True):
            completion.add(token)
        done = [completion.finish_reason is not None for completion in self._completions]
        return torch.tensor(done, device=input_ids.device)


class _MarkNotNumbers(LogitsProcessor):
    """Ends the completions whose logits are not numbers: an argmax over NaN is a token that looks real."""

    def __init__(self, completions: Sequence[Completion]) -> None:
        self._completions = completions

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        for completion, fine in zip(self._completions, scores.amax(-1).isfinite().tolist(), strict=True):
            if not fine and completion.finish_reason is None:
                completion.finish_reason = "nan"
        return scores


def _score_row(row: ScoringRow, logits: torch.Tensor) -> Iterable[tuple[int, float, bool]]:
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


def _template_line(error: BaseException) -> int | None:
    """The line of a Jinja template in which an exception arose, where Jinja knows it."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line
