"""What a folder must be to be loaded, and the one line that says why another isn't."""

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from resources.engines import LoglikelihoodRequest
from resources.engines.checkpoint import context_length
from resources.engines.settings import EngineSettings
from resources.engines.transformers_engine import TransformersEngine
from resources.errors import UserError
from tests.resources.engines.conftest import CONTEXT, TinyModel

CPU = EngineSettings(device="cpu")


def edit(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def halve(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def truncated_weights(folder: Path) -> None:
    halve(folder / "model.safetensors")


def pickled_weights_only(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def missing_shard(folder: Path) -> None:
    shards = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))


def missing_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def weights_of_another_size(folder: Path) -> None:
    edit(folder / "config.json", hidden_size=64)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def truncated_config(folder: Path) -> None:
    halve(folder / "config.json")


def config_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def remote_code(folder: Path) -> None:
    """A model whose own code would write a file if it ever ran."""
    edit(
        folder / "config.json",
        model_type="homemade",
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    )
    (folder / "code.py").write_text(
        f"open({str(folder / 'it_ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n"
    )


def remote_tokenizer(folder: Path) -> None:
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="HomemadeTokenizer",
        auto_map={"AutoTokenizer": ["code.Tokenizer", None]},
    )
    (folder / "code.py").write_text(f"open({str(folder / 'it_ran')!r}, 'w')\nclass Tokenizer: pass\n")


def unknown_architecture(folder: Path) -> None:
    edit(folder / "config.json", model_type="homemade")


def encoder(folder: Path) -> None:
    transformers.DistilBertConfig(dim=32, hidden_dim=64, n_layers=1, n_heads=2).save_pretrained(folder)


def damaged_tokenizer(folder: Path) -> None:
    halve(folder / "tokenizer.json")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_tokenizer, "has no tokenizer; put the model's tokenizer.json there"),
        (damaged_tokenizer, "the tokenizer can't be loaded"),
        (truncated_weights, "model.safetensors is damaged or incomplete"),
        (pickled_weights_only, "has pickled weights only (pytorch_model.bin)"),
        (no_weights, "has no *.safetensors weights"),
        (missing_shard, "lacks the weights model-2.safetensors"),
        (missing_tensor, "the weights lack 1 tensors that config.json asks for"),
        (weights_of_another_size, "the model can't be loaded"),
        (no_config, "has no config.json"),
        (truncated_config, "config.json can't be read"),
        (config_is_a_list, "config.json is not a JSON object"),
        (remote_code, "needs Python code of its own (config.json names it), which is never run"),
        (remote_tokenizer, "needs Python code of its own (the tokenizer names it), which is never run"),
        (unknown_architecture, "config.json can't be loaded"),
        (encoder, "is a distilbert model, which is no causal language model"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_a_folder_that_is_no_whole_and_safe_model_is_one_clear_line(
    tiny_model: TinyModel, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    spoil(folder)
    with pytest.raises(UserError) as raised:
        TransformersEngine.load(folder, CPU)
    assert message in str(raised.value)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (folder / "it_ran").exists(), "the model's own code was run"


def test_a_device_that_is_not_there_is_one_clear_line(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError) as raised:
        TransformersEngine.load(tiny_model("llama"), EngineSettings(device="cuda"))
    assert str(raised.value) == (
        f"device 'cuda' is not available to torch {torch.__version__} on this machine; "
        "use one of cpu, or auto"
    )
    assert TransformersEngine.load(tiny_model("llama"), EngineSettings()).description["device"] == "cpu"


def test_a_model_spread_over_devices_needs_accelerate_and_scores_the_same(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = EngineSettings(device="cpu", device_map=True)
    requests = [LoglikelihoodRequest("The quick brown", " fox")]
    expected = list(TransformersEngine.load(tiny_model("llama"), CPU).loglikelihoods(requests))
    assert list(TransformersEngine.load(tiny_model("llama"), spread).loglikelihoods(requests)) == expected
    monkeypatch.setattr("resources.engines.transformers_loading.find_spec", lambda _: None)
    with pytest.raises(UserError, match="device_map needs the package accelerate; pip install accelerate"):
        TransformersEngine.load(tiny_model("llama"), spread)


@pytest.mark.parametrize(
    ("asked", "loaded"), [("auto", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")]
)
def test_on_a_cpu_auto_is_float32_and_any_other_dtype_is_as_asked(
    tiny_model: TinyModel, tmp_path: Path, asked: str, loaded: str
) -> None:
    """bfloat16 on a CPU is many times slower, and nobody asked for it."""
    folder = tmp_path / "bfloat16"
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    model.to(torch.bfloat16).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_model("llama")).save_pretrained(folder)
    engine = TransformersEngine.load(folder, EngineSettings(device="cpu", dtype=asked))
    assert engine.description["dtype"] == loaded


def test_a_tokenizer_without_a_limit_gets_the_models(tiny_model: TinyModel, tmp_path: Path) -> None:
    """GGUF tokenizers say 1e30, which overflows wherever it is used."""
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    edit(folder / "tokenizer_config.json", model_max_length=10**30)
    assert TransformersEngine.load(folder, CPU).description["context_length"] == CONTEXT


@pytest.mark.parametrize(
    ("config", "limit", "expected"),
    [
        ({"max_position_embeddings": 8192}, 512, 8192),
        ({"n_positions": 1024, "n_ctx": 99}, 512, 1024),
        ({"n_ctx": 99}, 512, 99),
        (
            {"max_position_embeddings": 77, "text_config": SimpleNamespace(max_position_embeddings=4096)},
            512,
            4096,
        ),
        ({}, 512, 512),
        ({}, 10**30, 2048),
        ({}, None, 2048),
    ],
)
def test_the_context_length_is_the_text_models_then_the_tokenizers(
    config: dict[str, Any], limit: int | None, expected: int
) -> None:
    assert context_length(SimpleNamespace(**config), SimpleNamespace(model_max_length=limit)) == expected


def test_only_the_engine_itself_imports_torch() -> None:
    """Definitions load in seconds because nothing else of this package does."""
    for name in ("__init__", "settings", "checkpoint", "tokens"):
        module = importlib.import_module(f"resources.engines.{name}".removesuffix(".__init__"))
        assert not {"torch", "transformers"} & set(vars(module))
