"""How the demo's model versions are made: de-quantized, re-saved, pruned.

Every function writes one complete version folder in the Hugging Face layout (safetensors, fast tokenizer,
model card) into a folder that exists and is empty. torch and transformers are imported when a model is
really made, so that a run with nothing to do stays fast.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"

# `tokenizer.ggml.pre` names the regular expressions that split a text before byte-pair merging. The
# GGUF reader of transformers always writes GPT-2's; SmolLM splits every digit off first, which shows
# wherever a digit follows two blanks or two line ends ("\n\n1.").
_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "smollm": [{"type": "Digits", "individual_digits": True}],
}


def from_gguf(gguf: Path, folder: Path, card: str) -> None:
    """Write the model of a GGUF file, de-quantized to float32, as a version folder.

    Its numbers are those of the quantized file: nothing is rounded again.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    messages: Any = logging
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    with redirect_stderr(StringIO()):  # one progress bar can't be turned off
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )
    # save_pretrained refuses a model that remembers its GGUF origin ("not serializable").
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # A GGUF names no maximum; 1e30, what stands there instead, overflows when a tokenizer truncates.
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _edit_json(folder / "config.json", lambda config: config.pop("_model_name_or_path", None))
    _edit_json(folder / "tokenizer_config.json", _portable_tokenizer_config)
    _restore_pre_tokenizer(folder / "tokenizer.json", gguf)
    (folder / "README.md").write_text(card, encoding="utf-8")
    _readable(folder)


def resave_as_bfloat16(source: Path, folder: Path, card: str) -> None:
    """Write a copy of the version in `source` with its weights rounded to bfloat16."""
    import torch

    _derive(source, folder, card, lambda _name, weight: weight.to(torch.bfloat16))
    _edit_json(folder / "config.json", lambda config: config.update(dtype="bfloat16"))


def prune(source: Path, folder: Path, card: str, sparsity: float) -> None:
    """Write a copy of the version in `source` whose smallest weights are zero.

    In each linear layer (not in embeddings and norms) the `sparsity` share of the weights with the smallest
    magnitude is set to zero: magnitude pruning, Han et al., arXiv 1506.02626, without their retraining.
    """
    import torch

    def smaller(name: str, weight: "torch.Tensor") -> "torch.Tensor":
        if weight.dim() != 2 or not name.endswith("_proj.weight"):
            return weight
        magnitude = weight.abs().flatten()
        threshold = magnitude.kthvalue(max(1, int(sparsity * magnitude.numel()))).values
        return torch.where(weight.abs() <= threshold, torch.zeros_like(weight), weight)

    _derive(source, folder, card, smaller)


def _derive(source: Path, folder: Path, card: str, change: Callable[[str, Any], Any]) -> None:
    from safetensors.torch import load_file, save_file

    for file in source.iterdir():
        if file.is_file() and not file.name.startswith(".") and file.name not in (WEIGHTS, "README.md"):
            shutil.copyfile(file, folder / file.name)
    weights = load_file(source / WEIGHTS)
    for name in list(weights):
        weights[name] = change(name, weights[name])
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "README.md").write_text(card, encoding="utf-8")
    _readable(folder)


def _readable(folder: Path) -> None:
    # safetensors writes its files with mode 0600: another user, a pod say, couldn't read them.
    for file in folder.iterdir():
        file.chmod(0o644)


def _edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _portable_tokenizer_config(config: dict[str, Any]) -> None:
    # The class name that transformers 4, 5 and the inference servers all know, and no local settings.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)


def _restore_pre_tokenizer(tokenizer_json: Path, gguf: Path) -> None:
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    before = _PRE_TOKENIZERS.get(str(field.contents()) if field is not None else "")
    if before is None:
        return

    def prepend(tokenizer: dict[str, Any]) -> None:
        tokenizer["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [*before, tokenizer["pre_tokenizer"]],
        }

    _edit_json(tokenizer_json, prepend)
