"""Evaluating a model without a Dagster instance or registry: the same results, in the same place."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner

from eval_assets.__main__ import main
from eval_assets.commands.ad_hoc import opened
from eval_assets.commands.evaluating import evaluate_grid
from eval_assets.commands.output import Output
from resources.catalog import Catalog
from resources.configured import EngineResource
from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries.one_folder import OneFolderRegistry
from resources.results import ResultsStore
from tests.committed import committed_in
from tests.conftest import ROOT
from tests.eval_assets.conftest import Project, make_worse
from tests.resources.registries.hub.server import running


@pytest.fixture
def folder(tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A person's folder: a model, nothing set up, and nothing that may appear beside it."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("DAGSTER_", "EVAL_"))]:
        if name != "EVAL_BENCHMARKS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("EVAL_DEVICE", "cpu")
    monkeypatch.setenv("EVAL_THREADS", "1")

    def ours() -> dict[str, str]:
        return {n: v for n, v in os.environ.items() if n.startswith(("DAGSTER_", "EVAL_"))}

    before = ours()
    yield Path(shutil.copytree(tiny_models / "tiny" / "1", tmp_path / "my-model"))
    assert ours() == before, "the settings of one call must not become those of the next"


def evaluate(
    model: str,
    benchmarks: list[str],
    *,
    force: bool = False,
    key: str | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """What the command does, and the records that are there then."""
    with opened(model, key=key, limit=limit) as (runs, version):
        done = evaluate_grid(Output(), runs, [version], benchmarks, force=force)
        if done["failures"]:
            raise UserError("; ".join(done["failures"]))
        records = [runs.store.committed(cell) for cell in runs.cells([version], benchmarks)]
    assert None not in records
    return records  # type: ignore[return-value]  # None is not among them


def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the models whose weights are loaded from now on."""
    found: list[str] = []
    load = EngineResource.load

    def loaded(self: EngineResource, model: object, dtype: str) -> object:
        found.append(model.key)  # type: ignore[attr-defined]
        return load(self, model, dtype)  # type: ignore[arg-type]

    monkeypatch.setattr(EngineResource, "load", loaded)
    return found


def test_a_folder_is_all_that_it_takes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever tries this first has a model and ten minutes, and no instance, registry or daemon."""
    records = evaluate(str(folder), ["capitals", "sentences"])
    assert [record["dataset"] for record in records] == ["capitals", "sentences"]
    assert {record["status"] for record in records} == {"valid"}
    shown = capsys.readouterr().out
    assert "2 of 2 cells to evaluate" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == [".eval", "my-model"]
    catalog = Catalog(ResultsStore(str(tmp_path / ".eval")))
    catalog.refresh()
    with catalog.connect() as connection:
        rows = connection.execute(
            "SELECT model, dataset, origin FROM leaderboard ORDER BY dataset"
        ).fetchall()
    key = records[0]["model"]
    assert rows == [(key, "capitals", None), (key, "sentences", None)]
    assert key == f"my-model@{records[0]['model_digest'][:8]}"


def test_what_is_said_in_the_end_can_be_done(folder: Path, tmp_path: Path) -> None:
    """Make targets, and models of a registry, are nothing to somebody who has needed neither."""
    done = subprocess.run(
        [sys.executable, "-m", "eval_assets", "evaluate", str(folder), "--benchmarks", "capitals",
         "--key", "mine@1", "--limit", "5"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "make " not in done.stdout
    report = tmp_path / ".eval" / "reports" / "index.html"
    assert done.stdout.splitlines()[-1] == f"The report: {report}"
    assert report.is_file()
    [command] = [line for line in done.stdout.splitlines() if "samples mine@1" in line]
    words = re.split("   +", command.strip())[0].removeprefix("python -m eval_assets ").split()
    assert CliRunner().invoke(main, words).exit_code == 0


def test_what_is_there_is_not_computed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(str(folder), ["capitals"])
    loaded = loads(monkeypatch)
    assert evaluate(str(folder), ["capitals"]) == first
    assert loaded == []
    both = evaluate(str(folder), ["capitals", "sentences"])
    assert both[0] == first[0]
    assert loaded == [first[0]["model"]]
    [again] = evaluate(str(folder), ["capitals"], force=True)
    assert again["evaluation_id"] != first[0]["evaluation_id"]
    assert again["content_digest"] == first[0]["content_digest"]


def test_versions_are_compared_whatever_limit_they_were_evaluated_under(
    folder: Path, tmp_path: Path, tiny_models: Path
) -> None:
    """A comparison that looks for today's settings finds nothing of what somebody has just evaluated."""
    shutil.copytree(tiny_models / "tiny" / "2", tmp_path / "other")
    evaluate(str(folder), ["capitals", "sentences"], key="mine@1", limit=8)
    evaluate(str(tmp_path / "other"), ["capitals", "capitals_written"], key="mine@2", limit=5)

    def compared(*options: str) -> Any:
        done = CliRunner().invoke(main, ["compare", "mine@2", "mine@1", "--json", *options])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    found = compared()
    [row] = found["compared"]
    assert (row["dataset"], row["comparison"]["n"], row["verdict"]["tolerance"]) == ("capitals", 5, 0.02)
    assert len(row["comparison"]["only_in_baseline"]) == 3
    assert found["missing"] == {
        "capitals_written": "mine@1 was not evaluated on it", "sentences": "mine@2 was not evaluated on it",
    }  # fmt: skip
    [row] = compared("--tolerance", "0.9", "--benchmarks", "capitals")["compared"]
    assert row["verdict"]["tolerance"] == 0.9


def test_a_model_that_was_trained_on_is_another_version(folder: Path, tmp_path: Path) -> None:
    [first] = evaluate(str(folder), ["capitals"])
    make_worse(folder, tmp_path / "later")
    shutil.rmtree(folder)
    (tmp_path / "later").rename(folder)
    [second] = evaluate(str(folder), ["capitals"])
    assert first["model_name"] == second["model_name"] == "my-model"
    assert first["model_version"] != second["model_version"]


def test_a_later_run_through_dagster_reuses_the_results(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody computed at their desk would otherwise be computed again on the cluster."""
    home = os.environ.pop("DAGSTER_HOME")
    records = evaluate(str(project.registry / "tiny" / "1"), ["capitals", "sentences"])
    assert {record["model"] for record in records} == {"tiny@1"}
    monkeypatch.setenv("DAGSTER_HOME", home)
    assert list(Path(home).iterdir()) == [Path(home, "dagster.yaml")]
    runs = project.registered("tiny@1")
    loaded = loads(monkeypatch)
    cells = runs.cells(["tiny@1"], ["capitals", "sentences"])
    for request in runs.missing(cells):
        runs.evaluate(request)
    assert loaded == []
    assert runs.finished(cells) == {cell.fingerprint for cell in cells}
    assert [runs.store.committed(cell) for cell in cells] == records


def test_a_key_of_the_configured_registry_needs_no_instance_either(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME")
    [record] = evaluate("tiny@2", ["capitals"], limit=3)
    assert (record["model"], record["samples"]) == ("tiny@2", 3)


def test_limit_and_key_are_arguments(folder: Path, tmp_path: Path) -> None:
    [record] = evaluate(str(folder), ["capitals"], limit=4, key="team/model@7")
    assert (record["samples"], record["model"]) == (4, "team/model@7")
    assert [one["model"] for one in committed_in(ResultsStore(str(tmp_path / ".eval")))] == ["team/model@7"]


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("run7/checkpoint-500", "run7/checkpoint-500"),
        ("llama/3", "llama/3"),
        ("out/final", "out/final"),
        ("My Model (v2)", "My-Model-v2"),
        ("models/smol", "smol"),
    ],
)
def test_a_folder_is_named_so_that_it_is_known_again(
    folder: Path, tmp_path: Path, place: str, name: str
) -> None:
    target = tmp_path / place
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    [record] = evaluate(place, ["capitals"], limit=2)
    assert record["model_name"] == name
    target.rename(folder)


def test_a_model_of_the_hub_is_fetched_and_evaluated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running() as hub:
        repo = hub.repo("org/tiny", {path.name: path.read_bytes() for path in folder.iterdir()})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        [record] = evaluate("org/tiny", ["capitals"], limit=2)
        assert record["model"] == f"org/tiny@{repo.head[:12]}"
        [same] = evaluate(f"org/tiny@{repo.head[:12]}", ["capitals"], limit=2)
        assert same == record
        with pytest.raises(UserError, match="org/nothing"):
            evaluate("org/nothing", ["capitals"])
    monkeypatch.delenv("HF_ENDPOINT")
    huggingface_hub.close_session()


def test_a_tracked_name_is_asked_as_its_entry_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its results would not be those that the automation looks for."""
    entry = {"registry": {"folder": str(tmp_path / "none")}, "names": "tracked", "dtype": "bfloat16"}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": [entry]}))
    monkeypatch.setenv("EVAL_MODELS", str(tmp_path / "models.yaml"))
    [tracked] = evaluate(str(folder), ["capitals"], key="tracked@1", limit=2)
    [other] = evaluate(str(folder), ["capitals"], key="other@1", limit=2)
    assert (tracked["engine"]["dtype"], other["engine"]["dtype"]) == ("bfloat16", "float32")
    monkeypatch.delenv("EVAL_MODELS")


def test_what_is_no_model_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = [
        ("./nothing", {}, "no such folder"),
        ("empty", {}, "holds no config.json: it is no folder of a Hugging Face model"),
        ("nothing", {}, "name a folder, a registered name@version, or org/name of the Hub"),
        ("nothing@1", {}, "name a folder"),
        (str(folder), {"key": "../x@1"}, "model key"),
        ("org/x@1", {"key": "a@1"}, "only a folder can be given another key"),
    ]
    for model, options, reason in cases:
        with pytest.raises(UserError, match=reason) as raised:
            evaluate(model, ["capitals"], **options)  # type: ignore[arg-type]
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="unknown benchmark 'capitalls'"):
        evaluate(str(folder), ["capitalls"])


def test_a_broken_model_fails_in_one_line_and_the_rest_is_kept(
    folder: Path, tiny_models: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(tiny_models / "broken" / "1", tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"broken/?.*model\.safetensors") as raised:
        evaluate(str(broken), ["capitals"])
    assert "\n" not in str(raised.value)


def test_one_folder_is_a_registry_of_one_version_without_aliases(folder: Path) -> None:
    key = ModelKey.parse("a/b@1")
    registry = OneFolderRegistry(folder, key)
    assert registry.versions().keys == (key,)
    assert registry.versions(registry.versions().cursor).keys == ()
    assert registry.fetch(key) == folder
    assert registry.aliases("a/b") == {}
    with pytest.raises(UserError, match="in no registry, so there is no alias 'champion' to move"):
        registry.move_alias("a/b", "champion", "1", None)
    for refused in (lambda: registry.aliases("c"), lambda: registry.fetch(ModelKey.parse("c@1"))):
        with pytest.raises(UserError, match=r"c.*is a/b@1"):
            refused()
    before = sorted(folder.iterdir())
    registry.annotate(key, {"verdict": "passed"})
    assert sorted(folder.iterdir()) == before
