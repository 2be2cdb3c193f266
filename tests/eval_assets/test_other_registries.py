"""The whole way with what teams have instead of a folder: a bucket that holds everything, and a Hub."""

import json
import shutil
from pathlib import Path

import fsspec
import huggingface_hub
import pytest

from resources.catalog import Catalog
from resources.results import ResultsStore
from tests.eval_assets.conftest import Automation, make_worse
from tests.resources.registries.hub.server import Repo, commit_key, running


def _track(automation: Automation, monkeypatch: pytest.MonkeyPatch, registry: object, names: str) -> None:
    entry = {
        "registry": registry, "names": names, "benchmarks": ["capitals", "sentences"], "tolerance": 0.5,
        "promote": True,
    }  # fmt: skip
    path = automation.project.folder / "models.yaml"
    path.write_text(json.dumps({"models": [entry]}))
    monkeypatch.setenv("EVAL_MODELS", str(path))
    monkeypatch.setenv("EVAL_CACHE", str(automation.project.folder / "copies"))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_bucket_holds_models_and_results(
    automation: Automation, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pods on many machines share nothing else."""
    models, files = automation.project.registry / "tiny", fsspec.filesystem("s3")
    make_worse(models / "2", models / "3")
    for version in ("1", "2"):
        files.put(str(models / version), f"{bucket}/models/tiny/{version}", recursive=True)
    _track(automation, monkeypatch, {"folder": f"{bucket}/models"}, "tiny")
    monkeypatch.setenv("EVAL_STORE", f"{bucket}/results")
    automation = Automation(automation.project, automation.instance)
    automation.until_at_rest()
    aliases = f"{bucket}/models/tiny/aliases.json"
    assert json.loads(files.cat_file(aliases)) == {"champion": "2"}
    files.put(str(models / "3"), f"{bucket}/models/tiny/3", recursive=True)
    assert [job for job, _ in automation.until_at_rest()] == [
        "register_models", "evaluate_models", "judge_models",
    ]  # fmt: skip
    files.invalidate_cache()
    assert json.loads(files.cat_file(aliases)) == {"champion": "2"}
    store = ResultsStore(f"{bucket}/results")
    assert {key: verdict["status"] for key, verdict in store.verdicts().items()} == {
        "tiny@1": "first", "tiny@2": "passed", "tiny@3": "failed",
    }  # fmt: skip
    assert not (automation.project.folder / "store").exists()
    catalog = Catalog(store)
    catalog.refresh()
    with catalog.connect() as connection:
        assert connection.execute("SELECT count(*) FROM leaderboard").fetchall() == [(6,)]


def test_commits_of_a_hub_go_all_the_way(automation: Automation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit is a version; the champion is kept beside the store, since a Hub has no aliases."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    models = automation.project.registry / "tiny"
    make_worse(models / "2", models / "3")
    with running() as hub:
        repo: Repo = hub.repo("org/tiny", _files(models / "1"))
        first = repo.head
        _track(automation, monkeypatch, {"hub": {"repos": ["org/tiny"], "endpoint": hub.url}}, "org/*")
        automation = Automation(automation.project, automation.instance)
        automation.until_at_rest()
        good = repo.commit(_files(models / "2"))
        automation.until_at_rest()
        worse = repo.commit(_files(models / "3"))
        automation.until_at_rest()
        shutil.rmtree(automation.project.folder / "copies")
        assert automation.until_at_rest() == []
        runs = automation.project.runs()
        assert {key: verdict["status"] for key, verdict in runs.store.verdicts().items()} == {
            str(commit_key(repo, first)): "first",
            str(commit_key(repo, good)): "passed",
            str(commit_key(repo, worse)): "failed",
        }
        assert runs.registry.aliases("org/tiny") == {"champion": commit_key(repo, good).version}
    huggingface_hub.close_session()
