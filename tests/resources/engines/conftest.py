"""Tiny random models of several architectures, with a real tokenizer, made once a test run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CONTEXT = 48
TREE_FAMILIES = (
    "llama",
    "llama-with-bos",
    "gpt2",
    "gemma-sliding-window",
    "gemma-softcap",
    "gpt-oss",
    "mixtral",
    "qwen",
)
FAMILIES = (*TREE_FAMILIES, "bloom", "mamba")
CORPUS = (
    "The quick brown fox jumps over the lazy dog.",
    "Question: what is the capital of France?\nAnswer: Paris is the capital.",
    "One, two, three and four. The answer is that there is no answer.\n\nStop here.",
)
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

TinyModel: TypeAlias = Callable[[str], Path]


def make_tokenizer(*, bos: bool) -> Any:
    """A byte-level BPE of 400 tokens. With `bos` it has a BOS token and starts every text with it."""
    special = ["<eos>", "<pad>", "<bos>"] if bos else ["<eos>", "<pad>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
        )
    make: Any = transformers.PreTrainedTokenizerFast
    return make(
        tokenizer_object=bpe, eos_token="<eos>", pad_token="<pad>", **({"bos_token": "<bos>"} if bos else {})
    )


def make_config(family: str) -> Any:
    """A configuration of hidden size 32 and two layers; weights large enough for varied outputs."""
    common: dict[str, Any] = {
        "vocab_size": 400,
        "initializer_range": 0.4,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    match family:
        case "llama" | "llama-with-bos":
            return transformers.LlamaConfig(**common, **sizes)
        case "gpt2":
            return transformers.GPT2Config(
                **common, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, bos_token_id=0
            )
        case "gemma-sliding-window":
            return transformers.Gemma3TextConfig(
                **common,
                **sizes,
                head_dim=8,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
            )
        case "qwen":
            return transformers.Qwen2Config(**common, **sizes)
        case "gemma-softcap":
            return transformers.Gemma2Config(**common, **sizes, head_dim=8, sliding_window=8)
        case "gpt-oss":
            return transformers.GptOssConfig(
                **common, **sizes, head_dim=8, sliding_window=8, num_local_experts=4, num_experts_per_tok=2
            )
        case "mixtral":
            return transformers.MixtralConfig(**common, **sizes, num_local_experts=4)
        case "bloom":
            return transformers.BloomConfig(**common, hidden_size=32, n_layer=2, n_head=4)
        case "mamba":
            return transformers.MambaConfig(**common, hidden_size=32, num_hidden_layers=2, state_size=4)
    raise ValueError(family)


def save_tiny_model(folder: Path, family: str) -> Path:
    """Write a tiny random model into `folder`."""
    torch.manual_seed(7)
    auto_model: Any = transformers.AutoModelForCausalLM
    model = auto_model.from_config(make_config(family))
    model.save_pretrained(folder)
    tokenizer = make_tokenizer(bos=family in ("llama-with-bos", "gemma-sliding-window"))
    tokenizer.chat_template = TEMPLATE
    tokenizer.model_max_length = CONTEXT  # the only limit of a model without positions
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """The folder of a tiny random model of a family; not to be written to."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_model(tmp_path_factory.mktemp(family), family)
        return made[family]

    return folder
