"""Verifying and measuring a model version, without loading it: its weights are never read but to hash them.

Neither torch nor transformers is imported here. Where a version can't be understood without transformers (a
config that leaves its model's defaults out, a tokenizer without tokenizer.json) a process of its own asks it.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import FileFacts, ModelVersion
from resources.registries.files import digest_of, model_files, read_facts
from resources.registries.safetensors_header import Tensor, read_tensors

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FLOAT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

# The names under which model families keep the same number; the first that is there counts.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
_CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
)
_VOCABULARY = ("vocab_size", "padded_vocab_size")

# Any one of these is a tokenizer.
_SLOW_TOKENIZERS = (
    ("tokenizer.model",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("tekken.json",),
)

# Non-parameters that old checkpoints carry.
_BUFFERS = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attention.masked_bias")

_PROBE_SECONDS = 120
_PROBE = """
import json, sys
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging
logging.set_verbosity_error()
kind, folder = sys.argv[1:]
options = dict(local_files_only=True, trust_remote_code=False)
try:
    if kind == "config":
        config = AutoConfig.from_pretrained(folder, **options).get_text_config()
        answer = {k: v for k, v in config.to_dict().items() if isinstance(v, (int, float, str, bool))}
        standard = {k: getattr(config, k, None) for k in config.attribute_map}
        answer |= {k: v for k, v in standard.items() if isinstance(v, int)}
    else:
        answer = {"tokens": len(AutoTokenizer.from_pretrained(folder, **options))}
except Exception as error:
    answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
print("\\n" + json.dumps(answer))
"""


def measure(key: ModelKey, folder: Path, known: Mapping[str, FileFacts] | None = None) -> ModelVersion:
    """Verify a version's folder and say what is in it.

    `known` is the `files` of an earlier measurement: a file whose size and time are the same isn't hashed
    again. `parameters` counts tied weights once. `kv_bytes_per_token` is that of full attention in every
    layer, an upper bound for models with sliding windows, and 0 for models without attention heads.

    Raises UserError, one line, for a folder that can't be loaded by the rules: no or broken config, a config
    or tokenizer with code of its own, no tokenizer, no safetensors, damaged or missing shards, a link out of
    the folder.
    """
    what = f"model {key} ({folder})"
    try:
        files = model_files(folder, what)
        config = _config(folder, what)
        tensors = _tensors(folder, files, what)
        architecture = _architecture(config, what)
        numbers = _numbers(folder, config, what)
        chat_template = _tokenizer(folder, files, what)
        facts = read_facts(files, known, what)
    except OSError as error:
        name = error.filename or folder
        raise UserError(f"{what}: {name} can't be read: {error.strerror or error}") from None

    tied = bool(numbers.get("tie_word_embeddings", False))
    by_dtype: Counter[str] = Counter()
    for tensor in tensors:
        by_dtype[_DTYPES.get(tensor.dtype, tensor.dtype.lower())] += tensor.size
    return ModelVersion(
        key=str(key),
        digest=digest_of(facts),
        path=str(folder),
        architecture=architecture,
        parameters=_count_parameters(tensors, tied),
        weight_bytes=sum(by_dtype.values()),
        bytes_by_dtype=dict(sorted(by_dtype.items())),
        context_length=_first(numbers, _CONTEXT) or 0,
        vocabulary=_first(numbers, _VOCABULARY) or 0,
        layers=_first(numbers, _LAYERS) or 0,
        kv_bytes_per_token=_kv_bytes(numbers, by_dtype),
        chat_template=chat_template,
        tied_embeddings=tied,
        files=facts,
    )


def _config(folder: Path, what: str) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise UserError(f"{what}: no config.json; expected a folder in the Hugging Face layout")
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{what}: it is an adapter (adapter_config.json); merge it into its base model first")
    for name in ("config.json", "tokenizer_config.json"):
        content = _read_json(folder / name, what) if (folder / name).is_file() else {}
        if "auto_map" in content:
            raise UserError(
                f"{what}: {name} has an auto_map, it needs code from its own repository "
                "(trust_remote_code), which is never run here; use a version that transformers supports"
            )
    return _read_json(folder / "config.json", what)


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what}: {path.name} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{what}: {path.name} is not a JSON object")
    return content


def _architecture(config: Mapping[str, Any], what: str) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise UserError(f"{what}: config.json has no model_type")
    classes = [str(name) for name in config.get("architectures") or []]
    generative = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    if config.get("is_encoder_decoder") or (classes and not any(c.endswith(generative) for c in classes)):
        raise UserError(f"{what}: {classes[0] if classes else model_type} is no causal language model")
    return model_type


def _numbers(folder: Path, config: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """The config of the language model, with its family's defaults where the file leaves out what is "
    "needed."""
    text = config.get("text_config")
    numbers = {**config, **(text if isinstance(text, dict) else {})}
    needed = (_LAYERS, _HEADS, _WIDTH, _CONTEXT, _VOCABULARY, ("tie_word_embeddings",))
    if all(_first(numbers, names) is not None for names in needed):
        return numbers
    answer = _probe("config", folder)
    if "error" in answer:
        raise UserError(f"{what}: transformers can't read config.json: {answer['error']}")
    return {**answer, **{name: value for name, value in numbers.items() if value is not None}}


def _first(numbers: Mapping[str, Any], names: Sequence[str]) -> int | None:
    values = (numbers.get(name) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def _kv_bytes(numbers: Mapping[str, Any], by_dtype: Mapping[str, int]) -> int:
    heads, width, layers = (_first(numbers, names) for names in (_HEADS, _WIDTH, _LAYERS))
    if not heads or not width or not layers:
        return 0
    if numbers.get("multi_query") is True:
        heads_kept = 1
    else:
        heads_kept = _first(numbers, ("num_key_value_heads", "num_kv_heads")) or heads
    head_dim = _first(numbers, ("head_dim",)) or width // heads
    floats = {dtype: size for dtype, size in by_dtype.items() if dtype in _FLOAT_BYTES}
    # Quantized weights say nothing of what they are computed in; the config does.
    quantized = sum(floats.values()) * 2 < sum(by_dtype.values())
    declared = str(numbers.get("dtype") or numbers.get("torch_dtype") or "")
    dtype = declared if quantized or not floats else max(floats, key=lambda name: floats[name])
    return 2 * layers * heads_kept * head_dim * _FLOAT_BYTES.get(dtype, 2)


def _tensors(folder: Path, files: Mapping[str, Path], what: str) -> list[Tensor]:
    if "model.safetensors" in files:
        return read_tensors(files["model.safetensors"], what)
    if "model.safetensors.index.json" in files:
        return _shards(files, what)
    if any(name.endswith(".safetensors") for name in files):
        raise UserError(f"{what}: neither model.safetensors nor model.safetensors.index.json")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise UserError(
            f"{what}: only pickle weights ({pickles[0]}), which can run code when they are read; convert "
            "them where you trust them, with model.save_pretrained(folder) of transformers"
        )
    raise UserError(f"{what}: no weights; expected model.safetensors")


def _shards(files: Mapping[str, Path], what: str) -> list[Tensor]:
    index = _read_json(files["model.safetensors.index.json"], what).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(shard, str) for shard in index.values()):
        raise UserError(f"{what}: model.safetensors.index.json has no weight_map of names to files")
    shards = sorted(set(index.values()))
    found: list[Tensor] = []
    for shard in shards:
        if PurePosixPath(shard).name != shard or "\\" in shard or shard in ("", ".", ".."):
            raise UserError(
                f"{what}: model.safetensors.index.json names {shard!r}, which is outside the folder"
            )
        if shard not in files:
            missing = sum(name not in files for name in shards)
            raise UserError(f"{what}: {missing} of {len(shards)} shards missing, the first is {shard}")
        found += read_tensors(files[shard], what)
    absent = sorted(set(index) - {tensor.name for tensor in found})
    if absent:
        raise UserError(f"{what}: no shard has the tensor {absent[0]!r} of model.safetensors.index.json")
    return [tensor for tensor in found if tensor.name in index]


def _count_parameters(tensors: Sequence[Tensor], tied: bool) -> int:
    return sum(tensor.elements for tensor in tensors if not _is_no_parameter(tensor, tied))


def _is_no_parameter(tensor: Tensor, tied: bool) -> bool:
    # GPT-2's causal mask is stored as `attn.bias` with four dimensions; a bias that is learned has one.
    mask = tensor.name.endswith(".attn.bias") and len(tensor.shape) == 4
    copy = tied and tensor.name in ("lm_head.weight", "language_model.lm_head.weight")
    return mask or copy or tensor.name.endswith(_BUFFERS)


def _tokenizer(folder: Path, files: Mapping[str, Path], what: str) -> bool:
    """Check that the tokenizer loads; returns whether it has a chat template."""
    if "tokenizer.json" in files:
        from tokenizers import Tokenizer

        try:
            Tokenizer.from_file(str(files["tokenizer.json"]))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{what}: tokenizer.json can't be read: {error}") from None
    elif any(all(name in files for name in names) for names in _SLOW_TOKENIZERS):
        answer = _probe("tokenizer", folder)
        if "error" in answer:
            raise UserError(f"{what}: transformers can't read its tokenizer: {answer['error']}")
    else:
        raise UserError(
            f"{what}: no tokenizer; expected tokenizer.json, or tokenizer.model, beside config.json"
        )
    if any(name in files for name in ("chat_template.jinja", "chat_template.json")):
        return True
    if "tokenizer_config.json" not in files:
        return False
    return bool(_read_json(files["tokenizer_config.json"], what).get("chat_template"))


def _probe(kind: str, folder: Path) -> dict[str, Any]:
    # -P: the working directory must not lend the process its modules.
    command = [sys.executable, "-P", "-c", _PROBE, kind, str(folder.resolve())]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {_PROBE_SECONDS} s"}
    if result.returncode != 0:
        return {"error": (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]}
    answer: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return answer
