"""From a folder of files to a model ready to run, placed and made deterministic.

Imported by the transformers engine only, because it imports torch.
"""

import os
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from resources.engines.checkpoint import check_checkpoint, one_line
from resources.engines.settings import EngineSettings
from resources.errors import UserError


def load_model(path: Path, settings: EngineSettings) -> tuple[Any, Any]:
    """The model in folder `path`, placed and in evaluation mode, and its tokenizer.

    Sets torch's threads, seed and determinism for the whole process. Raises UserError where the folder is no
    complete, safe and supported model, or the device isn't there.
    """
    check_checkpoint(path)
    device = _device(settings)
    _make_deterministic(settings)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return _load(path, settings, device)


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a text: the model's list (an instruct model has several) and the tokenizer's."""
    declared = model.generation_config.eos_token_id
    listed = declared if isinstance(declared, list) else [declared]
    return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)


def greedy_config(config: Any, ends: frozenset[int], pad_token: int) -> Any:
    """The model's generation settings without those of sampling, beams and length.

    What changes a greedy choice (a repetition penalty, suppressed tokens) stays, as in the harness.
    """
    config.do_sample = False
    config.num_beams = 1
    config.eos_token_id = sorted(ends) or None
    config.pad_token_id = pad_token
    for name in (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "max_length",
        "max_new_tokens",
        "max_time",
        "stop_strings",
    ):
        setattr(config, name, None)
    return config


def device_name(device: torch.device) -> str:
    """What a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _load(path: Path, settings: EngineSettings, device: str) -> tuple[Any, Any]:
    dtype = "float32" if settings.dtype == "auto" and device == "cpu" else settings.dtype
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    placed: dict[str, Any] = {}
    if settings.device_map:
        if find_spec("accelerate") is None:
            raise UserError("device_map needs the package accelerate; pip install accelerate")
        placed["device_map"] = "auto" if device == "cuda" else {"": device}
    auto_model: Any = transformers.AutoModelForCausalLM  # its declared return type is wrong
    part = "config.json"
    try:
        config = transformers.AutoConfig.from_pretrained(path, **local)
        if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UserError(f"model {path} is a {config.model_type} model, which is no causal language model")
        part = "the tokenizer"
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **local)
        part = "the model"
        model, info = auto_model.from_pretrained(
            path,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            **placed,
            **local,
        )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model {path} needs Python code of its own ({part} names it), which is never run; "
                "use a model that transformers supports itself"
            ) from error
        raise UserError(f"model {path}: {part} can't be loaded ({one_line(error)})") from error
    if missing := sorted(info["missing_keys"]):
        # transformers would fill them with random numbers.
        raise UserError(
            f"model {path}: the weights lack {len(missing)} tensors that config.json asks for, such as "
            f"{missing[0]}; copy the complete model"
        )
    if not settings.device_map:
        model.to(device)
    return model.eval(), tokenizer


def _device(settings: EngineSettings) -> str:
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if settings.device == "auto":
        return next(name for name, exists in available.items() if exists)
    if not available[settings.device]:
        raise UserError(
            f"device {settings.device!r} is not available to torch {torch.__version__} on this machine; "
            f"use one of {', '.join(name for name, exists in available.items() if exists)}, or auto"
        )
    return settings.device


def _make_deterministic(settings: EngineSettings) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid that writes every new tensor twice.
    deterministic: Any = torch.utils.deterministic  # a module with a property, which type checkers don't see
    deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
