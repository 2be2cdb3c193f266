"""What a model's folder must be before its weights are read: refused here, in one line, without torch."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from resources.errors import UserError

DEFAULT_CONTEXT_LENGTH = 2048  # the harness's, for a model that names no limit (a recurrent one, say)
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


def check_checkpoint(path: Path) -> None:
    """Raise UserError unless `path` is a Hugging Face folder whose safetensors files are complete."""
    if not path.is_dir():
        raise UserError(f"model folder {path} does not exist")
    _read_json(path, "config.json")
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError(f"model folder {path} has no tokenizer; put the model's tokenizer.json there")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        pickled = sorted(file.name for pattern in _PICKLED for file in path.glob(pattern))
        if pickled:
            raise UserError(
                f"model folder {path} has pickled weights only ({pickled[0]}), which can run code when "
                "they are read; save the model with save_pretrained(..., safe_serialization=True)"
            )
        raise UserError(f"model folder {path} has no *.safetensors weights; put them there")
    for file in weights:
        try:
            with safe_open(file, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file} is damaged or incomplete ({one_line(error)}); copy the file again"
            ) from error
    if (path / "model.safetensors.index.json").is_file():
        shards = _read_json(path, "model.safetensors.index.json").get("weight_map", {}).values()
        missing = sorted(set(shards) - {file.name for file in weights})
        if missing:
            raise UserError(f"model folder {path} lacks the weights {', '.join(missing)}; copy them there")


def context_length(config: Any, tokenizer: Any) -> int:
    """The model's context in tokens: from the text model's config, else the tokenizer, else 2,048.

    The order is the harness's. A tokenizer without a limit says so with a huge number.
    """
    text_config = getattr(config, "text_config", None) or config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(text_config, name, None)
        if value is not None:
            return int(value)
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < 1e9 else DEFAULT_CONTEXT_LENGTH


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's message on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((path / name).read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"model folder {path} has no {name}; put the model's own there") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path / name} can't be read ({one_line(error)}); copy the file again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path / name} is not a JSON object; copy the file again")
    return content
