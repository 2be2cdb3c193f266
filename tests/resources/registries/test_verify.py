"""A model version's folder is verified and measured without loading it; each bad folder ends in one line."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import ModelVersion
from resources.registries.verify import measure

KEY = ModelKey("org/tiny", "1")
WEIGHTS = "model.safetensors"


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _drop(path: Path, *names: str) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name not in names}))


def _age(folder: Path, seconds: int = 60) -> None:
    """Give every file a time in the past, as if it had been copied a while ago."""
    then = time.time_ns() - seconds * 10**9
    for path in folder.iterdir():
        os.utime(path, ns=(then, then))


def _shards(folder: Path) -> None:
    """Cut the weights in two files with an index."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    index: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / shard)
        index |= dict.fromkeys(part, shard)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / WEIGHTS).unlink()


def _index(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    path = folder / f"{WEIGHTS}.index.json"
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


def test_the_measures_are_those_of_the_loaded_model(folder: Path) -> None:
    """A pod is sized by these numbers."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    version = measure(KEY, folder)
    assert version.parameters == model.num_parameters()
    assert version.weight_bytes == model.get_memory_footprint(return_buffers=False)
    assert version.bytes_by_dtype == {"float32": version.weight_bytes}
    assert version.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, dim, bytes
    assert (version.architecture, version.layers, version.context_length) == ("llama", 2, 256)
    assert version.vocabulary == model.config.vocab_size
    assert (version.chat_template, version.tied_embeddings) == (False, False)
    assert (version.key, version.name, version.version) == ("org/tiny@1", "org/tiny", "1")
    assert version.path == str(folder)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 320}),
        ("GPTBigCode", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 320}),
        ("Gemma3Text", {"hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 320}),
    ],
)
def test_other_families_are_measured_too_with_tied_weights_once_and_their_own_defaults(
    folder: Path, family: str, settings: dict[str, Any]
) -> None:
    """Each family names its numbers differently, and configs leave defaults out (here Gemma's)."""
    import torch
    import transformers

    config = getattr(transformers, f"{family}Config")(**settings, tie_word_embeddings=True)
    name = family.removesuffix("Text")
    model = getattr(transformers, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    if family == "Gemma3Text":
        _drop(folder / "config.json", "tie_word_embeddings", "num_key_value_heads", "max_position_embeddings")
    version = measure(KEY, folder)
    text = config.get_text_config()
    cache = model(torch.tensor([[1]]), use_cache=True).past_key_values
    stored = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    assert version.parameters == model.num_parameters()
    assert version.kv_bytes_per_token == stored
    assert version.layers == text.num_hidden_layers
    assert version.context_length == text.max_position_embeddings
    assert (version.vocabulary, version.tied_embeddings) == (320, True)
    assert list(version.bytes_by_dtype) == ["bfloat16"]


def test_a_tied_output_layer_that_is_stored_twice_counts_once(folder: Path) -> None:
    single = measure(KEY, folder)
    _edit(folder / "config.json", tie_word_embeddings=True)
    assert measure(KEY, folder).parameters == single.parameters - single.vocabulary * 32


def test_the_real_model_is_measured_in_three_seconds(smollm: Path) -> None:
    started = time.process_time()  # hashing is all in this process: the machine's other work doesn't count
    version = measure(ModelKey("smollm2-135m", "1"), smollm)
    assert time.process_time() - started < 3
    assert version.parameters == 134_515_008
    assert version.weight_bytes == 4 * 134_515_008
    assert version.kv_bytes_per_token == 2 * 30 * 3 * 64 * 4
    assert (version.context_length, version.vocabulary, version.layers) == (8192, 49152, 30)
    assert version.chat_template
    assert version.tied_embeddings


def test_measuring_imports_neither_torch_nor_transformers(folder: Path) -> None:
    """Two seconds and 300 MB for every version the daemon would look at."""
    code = (
        "import sys; from pathlib import Path; from resources.keys import ModelKey\n"
        "from resources.registries.folder import FolderRegistry; from resources.registries.verify import "
        "measure\n"
        "key = ModelKey('org/tiny', '1'); measure(key, FolderRegistry(sys.argv[1]).fetch(key))\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    root = str(folder.parents[2])
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_shards_measure_as_the_single_file_does(folder: Path) -> None:
    single = measure(KEY, folder)
    _shards(folder)
    sharded = measure(KEY, folder)
    assert (sharded.parameters, sharded.bytes_by_dtype) == (single.parameters, single.bytes_by_dtype)
    assert sharded.digest != single.digest


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja", "chat_template.json"])
def test_a_chat_template_is_seen_wherever_it_is_kept(folder: Path, where: str) -> None:
    if where == "tokenizer_config.json":
        _edit(folder / where, chat_template="{{ messages }}")
    else:
        (folder / where).write_text("{}")
    assert measure(KEY, folder).chat_template


def test_a_tokenizer_without_tokenizer_json_is_loaded_by_transformers(folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in vocabulary["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    assert measure(KEY, folder).architecture == "llama"
    (folder / "vocab.json").write_text("{broken")
    with pytest.raises(UserError, match=r"transformers can't read its tokenizer: "):
        measure(KEY, folder)


def _pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def _cut(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 1)


def _lie(folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((2**40).to_bytes(8, "little") + raw[8:])


def _missing_shard(folder: Path) -> None:
    _shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _escaping(folder: Path, shard: str) -> None:
    _shards(folder)
    _index(folder, lambda index: index.update({"lm_head.weight": shard}))


def _unknown_type(folder: Path) -> None:
    _drop(folder / "config.json", "vocab_size")
    _edit(folder / "config.json", model_type="nonsense")


def _empty_index(folder: Path) -> None:
    _shards(folder)
    (folder / f"{WEIGHTS}.index.json").write_text("{}")


def _link_outside(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to("/etc/hosts")


def _linked_folder(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub2").symlink_to(folder / "sub")


def _lost_tensor(folder: Path) -> None:
    _shards(folder)
    _index(folder, lambda index: index.update(extra="model-00001-of-00002.safetensors"))


BAD_FOLDERS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("no config", lambda f: (f / "config.json").unlink(), "no config.json; expected a folder in the Hugging"),
    (
        "broken config",
        lambda f: (f / "config.json").write_text('{"model_type": "llama",'),
        "config.json is not valid JSON: Expecting property name enclosed in double quotes: line 1 column 24",
    ),
    ("config is a list", lambda f: (f / "config.json").write_text("[]"), "config.json is not a JSON object"),
    (
        "config is nested",
        lambda f: (f / "config.json").write_text("[" * 99_999),
        "config.json is not valid JSON",
    ),
    ("no model type", lambda f: _drop(f / "config.json", "model_type"), "config.json has no model_type"),
    (
        "unknown model type",
        _unknown_type,
        "transformers can't read config.json: ValueError: The checkpoint you are trying to load has model "
        "type `nonsense`",
    ),
    (
        "remote code",
        lambda f: _edit(f / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"}),
        "config.json has an auto_map, it needs code from its own repository (trust_remote_code), which is "
        "never run here; use a version that transformers supports",
    ),
    (
        "tokenizer with remote code",
        lambda f: _edit(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]}),
        "tokenizer_config.json has an auto_map, it needs code",
    ),
    (
        "encoder",
        lambda f: _edit(f / "config.json", architectures=["BertModel"]),
        "BertModel is no causal language model",
    ),
    (
        "adapter",
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "it is an adapter (adapter_config.json)",
    ),
    (
        "no tokenizer",
        lambda f: (f / "tokenizer.json").unlink(),
        "no tokenizer; expected tokenizer.json, or tokenizer.model, beside config.json",
    ),
    ("broken tokenizer", lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json can't be read: "),
    (
        "pickle only",
        _pickle_only,
        "only pickle weights (pytorch_model.bin), which can run code when they are read; convert them "
        "where you trust them, with model.save_pretrained(folder) of transformers",
    ),
    ("no weights", lambda f: (f / WEIGHTS).unlink(), "no weights; expected model.safetensors"),
    (
        "odd name",
        lambda f: (f / WEIGHTS).rename(f / "weights.safetensors"),
        "neither model.safetensors nor model.safetensors.index.json",
    ),
    ("truncated", _cut, "model.safetensors is truncated: "),
    (
        "header lies",
        _lie,
        "model.safetensors is not a safetensors file: it claims a header of 1,099,511,627,776 bytes",
    ),
    ("missing shard", _missing_shard, "1 of 2 shards missing, the first is model-00002-of-00002.safetensors"),
    (
        "index escapes",
        lambda f: _escaping(f, "../../secret.safetensors"),
        "model.safetensors.index.json names '../../secret.safetensors', which is outside the folder",
    ),
    (
        "index is absolute",
        lambda f: _escaping(f, "/etc/passwd"),
        "model.safetensors.index.json names '/etc/passwd', which is outside the folder",
    ),
    (
        "index is empty",
        _empty_index,
        "model.safetensors.index.json has no weight_map",
    ),
    ("lost tensor", _lost_tensor, "no shard has the tensor 'extra' of model.safetensors.index.json"),
    (
        "link outside",
        _link_outside,
        "generation_config.json is a link that leaves the version's folder; copy the file into it",
    ),
    (
        "linked folder",
        _linked_folder,
        "sub2 is a link to a folder; only links to files are followed",
    ),
]


@pytest.mark.parametrize(("damage", "line"), [b[1:] for b in BAD_FOLDERS], ids=[b[0] for b in BAD_FOLDERS])
def test_a_bad_folder_ends_in_one_line(folder: Path, damage: Callable[[Path], Any], line: str) -> None:
    damage(folder)
    with pytest.raises(UserError) as error:
        measure(KEY, folder)
    message = str(error.value)
    assert message.startswith(f"model org/tiny@1 ({folder}): {line}")
    assert "\n" not in message


def test_a_changed_byte_under_the_same_name_changes_the_digest(folder: Path) -> None:
    """The evaluation of yesterday's weights must not stand for today's."""
    _age(folder)
    before = measure(KEY, folder)
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    after = measure(KEY, folder, before.files)
    assert after.digest != before.digest
    changed = {name for name in after.files if after.files[name].sha256 != before.files[name].sha256}
    assert changed == {WEIGHTS}


def test_the_digest_depends_on_names_and_contents_and_nothing_else(folder: Path) -> None:
    before = measure(KEY, folder).digest
    (folder / "README.md").write_text("a new card")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.json").write_text("{}")
    (folder / "download.lock").write_text("")
    (folder / "training_args.bin").write_bytes(b"pickle")
    _age(folder)
    assert measure(ModelKey("other", "2"), folder).digest == before
    (folder / "generation_config.json").rename(folder / "generation_config2.json")
    assert measure(KEY, folder).digest != before


def test_a_file_with_the_same_size_and_time_is_not_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing 140 GB on each tick of the sensor would never end."""
    _age(folder)
    first = measure(KEY, folder)
    hashed: list[str] = []

    def spy(file: Any, _name: str) -> None:
        hashed.append(Path(file.name).name)
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", spy)
        assert measure(KEY, folder, first.files) == first
        assert hashed == []
        os.utime(folder / WEIGHTS)
        with pytest.raises(AssertionError):
            measure(KEY, folder, first.files)
        assert hashed == [WEIGHTS]
    assert measure(KEY, folder, first.files).digest == first.digest


def test_a_file_as_young_as_the_clock_is_read_again(folder: Path) -> None:
    """Git's rule: a change in the same tick of the clock leaves size and time as they were."""
    now = time.time_ns()
    os.utime(folder / "config.json", ns=(now, now))
    first = measure(KEY, folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("256", "255"))
    os.utime(folder / "config.json", ns=(now, now))
    second = measure(KEY, folder, first.files)
    assert second.context_length == 255
    assert second.digest != first.digest


def test_a_file_that_changes_while_it_is_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    original = hashlib.file_digest

    def append_while_reading(file: Any, name: str) -> Any:
        with Path(file.name).open("ab") as more:
            more.write(b" ")
        return original(file, name)

    monkeypatch.setattr("hashlib.file_digest", append_while_reading)
    with pytest.raises(UserError, match=r"config\.json changed while it was read; wait until it is copied"):
        measure(KEY, folder)


def test_an_unreadable_file_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    line = re.escape(f"{folder / 'config.json'} can't be read: Permission denied")
    with pytest.raises(UserError, match=line):
        measure(KEY, folder)


def test_a_version_survives_the_way_through_json(folder: Path) -> None:
    """The record of a version is kept as JSON; its file facts spare the next run the hashing."""
    version = measure(KEY, folder)
    assert ModelVersion.from_dict(json.loads(json.dumps(version.as_dict()))) == version
