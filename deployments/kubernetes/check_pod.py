"""What the pod of `check.py` runs, as ``python -c``: a random model, evaluated on a few questions.

It takes what the image contains and a folder that can be written to, and nothing from a network.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

BENCHMARK = "cluster_check"
MODEL = "check@1"
BENCHMARK_YAML = """\
version: 1
title: Additions, two choices each
source: {path: additions.jsonl}
task: multiple_choice
prompt: "Question: What is {{a}} + {{b}}?\\nAnswer:"
choices: "[right, wrong]"
target: "0"
metrics: [acc]
primary_metric: acc
"""
ROWS = [{"a": a, "b": 3, "right": str(a + 3), "wrong": str(a + 4)} for a in range(8)]


def make_model(folder: Path) -> None:
    """Write a Llama with random weights, whose tokens are bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")  # type: ignore[no-untyped-call]  # transformers has no types here
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            eos_token_id=0, bos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def main() -> None:
    """Make model and benchmark in a folder of their own, then become `eval_assets evaluate`."""
    # Nothing removes it: in a pod it is on a volume that goes with the pod.
    folder = Path(tempfile.mkdtemp(prefix="cluster-check-"))
    name, _, version = MODEL.partition("@")
    (folder / "home").mkdir()
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / f"{BENCHMARK}.yaml").write_text(BENCHMARK_YAML)
    (folder / "benchmarks" / "additions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    make_model(folder / "models" / name / version)
    settings = {
        "DAGSTER_HOME": "home", "HOME": "home", "EVAL_STORE": "store", "EVAL_REGISTRY": "models",
        "EVAL_BENCHMARKS": "benchmarks", "EVAL_DATA_MIRROR": "data", "EVAL_CACHE": "cache",
    }  # fmt: skip
    os.environ.update({variable: str(folder / path) for variable, path in settings.items()})
    os.environ.update(HF_HUB_OFFLINE="1", DAGSTER_DISABLE_TELEMETRY="yes")
    os.environ.setdefault("USER", "evaluation")  # a user without a name in the image has none else
    sys.stdout.flush()
    command = ["-m", "eval_assets", "evaluate", "--models", MODEL, "--benchmarks", BENCHMARK]
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
