"""An independent reading of the rules: one request at a time, plain logits, Python loops, no cache."""

from pathlib import Path
from typing import Any

import torch
import transformers


class Reference:
    """A model's scores and texts, computed the slow and obvious way."""

    def __init__(self, path: Path, context_length: int) -> None:
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        self.context_length = context_length
        bos = self.tokenizer.bos_token_id
        self.prefix: int = self.tokenizer.eos_token_id if bos is None else bos

    def logits(self, tokens: list[int]) -> Any:
        with torch.no_grad():
            return self.model(torch.tensor([tokens])).logits[0]

    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        whole = (context + continuation)[-(self.context_length + 1) :]
        log_probabilities = torch.nn.functional.log_softmax(self.logits(whole[:-1]), dim=-1)
        total, greedy = 0.0, True
        for position, token in enumerate(whole[1:]):
            if position >= len(whole) - 1 - len(continuation):
                total += float(log_probabilities[position, token])
                greedy = greedy and int(log_probabilities[position].argmax()) == token
        return total, greedy

    def loglikelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        while context and context[-1].isspace():
            context, continuation = context[:-1], context[-1] + continuation
        if not context:
            ids = self.tokenizer.encode(continuation, add_special_tokens=False)
            return self.score([self.prefix], ids)
        before = self.tokenizer.encode(context)
        return self.score(before, self.tokenizer.encode(context + continuation)[len(before) :])

    def rolling(self, text: str) -> float:
        tokens = [self.prefix, *self.tokenizer.encode(text)]
        total, done = 0.0, 1
        while done < len(tokens):
            end = min(done + self.context_length, len(tokens))
            # A last window that is not full reads on from further back.
            first = max(end - self.context_length - 1, 0)
            total += self.score(tokens[first:done], tokens[done:end])[0]
            done = end
        return total

    def greedy_tokens(self, prompt: str, max_new_tokens: int) -> list[int]:
        tokens: list[int] = self.tokenizer.encode(prompt)[-(self.context_length - max_new_tokens) :]
        prompt_length = len(tokens)
        for _ in range(max_new_tokens):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[prompt_length:]
