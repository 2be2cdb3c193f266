"""Files come from the Hub whole, once and as the commit has them, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resources.errors import TransientError, UserError
from resources.keys import ModelKey
from resources.registries import RegistryUnavailableError
from resources.registries.hub import HubRegistry
from resources.registries.verify import measure
from tests.conftest import ROOT
from tests.resources.registries.hub.server import WEIGHTS, Hub, Repo, commit_key


class TestFetching:
    """Files come whole, once, as the commit has them, whatever happens on the way."""

    def test_the_files_that_a_load_reads_are_fetched_and_no_others(
        self, repo: Repo, registry: HubRegistry, tiny_model: Path, hub: Hub
    ) -> None:
        (key,) = registry.versions().keys
        folder = registry.fetch(key)
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name[0] != "."}
        assert there == {path.name for path in tiny_model.iterdir()}
        assert measure(key, folder).digest == measure(key, tiny_model).digest
        assert folder.name == f"org%2Ftiny@{repo.head}"
        hub.requests.clear()
        assert registry.fetch(key) == folder
        assert hub.asked("/resolve/") == []

    def test_a_tag_and_its_commit_share_their_files(
        self, repo: Repo, registry: HubRegistry, hub: Hub
    ) -> None:
        repo.tags["v1"] = repo.head
        folder = registry.fetch(ModelKey("org/tiny", "v1"))
        assert registry.fetch(commit_key(repo, repo.head)) == folder

    def test_of_a_new_commit_only_what_changed_is_fetched(
        self, repo: Repo, registry: HubRegistry, hub: Hub
    ) -> None:
        """A new chat template must not cost another 140 GB of traffic and disk."""
        old = registry.fetch(commit_key(repo, repo.head))
        hub.requests.clear()
        repo.commit({"chat_template.jinja": b"{{ messages }}"})
        new = registry.fetch(commit_key(repo, repo.head))
        assert [request.path.rpartition("/")[2] for request in hub.asked("/resolve/")] == [
            "chat_template.jinja"
        ]
        assert (new / "model.safetensors").samefile(old / "model.safetensors")

    def test_a_copy_that_was_damaged_is_not_passed_on(
        self, repo: Repo, registry: HubRegistry, files: dict[str, bytes]
    ) -> None:
        old = registry.fetch(commit_key(repo, repo.head))
        (old / "tokenizer.json").write_bytes(bytes(len(files["tokenizer.json"])))
        repo.commit({"chat_template.jinja": b"{{ messages }}"})
        new = registry.fetch(commit_key(repo, repo.head))
        assert (new / "tokenizer.json").read_bytes() == files["tokenizer.json"]

    def test_shards_are_fetched_as_the_index_names_them(
        self, hub: Hub, repo: Repo, registry: HubRegistry, files: dict[str, bytes]
    ) -> None:
        shard = "model-00001-of-00001.safetensors"
        index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
        changes = {
            shard: files["model.safetensors"],
            "model.safetensors.index.json": json.dumps(index).encode(),
        }
        repo.commit(changes, remove=("model.safetensors",))
        folder = registry.fetch(commit_key(repo, repo.head))
        assert sorted(path.name for path in folder.glob("*.safetensors")) == [shard]
        repo.commit({"config.json": b"{}"}, remove=(shard,))
        with pytest.raises(UserError, match="no safetensors"):
            registry.fetch(commit_key(repo, repo.head))

    def test_a_cut_file_goes_on_where_it_was_cut(
        self, hub: Hub, repo: Repo, registry: HubRegistry, files: dict[str, bytes]
    ) -> None:
        """Forty gigabytes over a bad line never arrive if each cut starts them again."""
        for _ in range(5):
            hub.cuts(WEIGHTS, after=10_000)
        folder = registry.fetch(commit_key(repo, repo.head))
        assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
        parts = [request for request in hub.requests if request.host == "cdn"]
        assert [part.range for part in parts] == [None, *(f"bytes={n}0000-" for n in range(1, 6))]
        assert sum(part.sent for part in parts) == len(files["model.safetensors"])

    def test_a_line_that_brings_nothing_any_more_is_given_up(
        self, hub: Hub, repo: Repo, registry: HubRegistry, files: dict[str, bytes]
    ) -> None:
        hub.cuts(WEIGHTS, after=10_000)
        hub.fails(WEIGHTS, 503, times=50)
        key = commit_key(repo, repo.head)
        with pytest.raises(
            RegistryUnavailableError, match=r"model org/tiny: model\.safetensors: .*answered 503"
        ):
            registry.fetch(key)
        assert not list((registry._cache).glob("org*"))
        hub.heal()
        hub.requests.clear()
        registry.fetch(key)
        assert (
            sum(r.sent for r in hub.requests if r.host == "cdn") == len(files["model.safetensors"]) - 10_000
        )

    def test_a_server_without_ranges_is_read_from_the_start(
        self, hub: Hub, repo: Repo, registry: HubRegistry, files: dict[str, bytes]
    ) -> None:
        """Appending a whole file to half a file would never be right, and be fetched for ever."""
        hub.cuts(WEIGHTS, after=10_000)
        hub.knows_no_ranges(WEIGHTS)
        folder = registry.fetch(commit_key(repo, repo.head))
        assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
        assert [request.range for request in hub.requests if request.host == "cdn"] == [None, "bytes=10000-"]

    @pytest.mark.parametrize("place", [WEIGHTS, "/resolve/.*/tokenizer.json"])
    def test_wrong_bytes_are_noticed_and_fetched_again(
        self, hub: Hub, repo: Repo, registry: HubRegistry, files: dict[str, bytes], place: str
    ) -> None:
        """Of the right size, they would be evaluated, and the model blamed."""
        hub.spoils(place)
        folder = registry.fetch(commit_key(repo, repo.head))
        for name in ("model.safetensors", "tokenizer.json"):
            assert (folder / name).read_bytes() == files[name]

    def test_bytes_that_stay_wrong_are_told_and_never_seen(
        self, hub: Hub, repo: Repo, registry: HubRegistry
    ) -> None:
        hub.spoils(WEIGHTS, times=50)
        key = commit_key(repo, repo.head)
        with pytest.raises(
            TransientError, match=rf"model {key}: model\.safetensors: came 2 times with other bytes"
        ):
            registry.fetch(key)
        assert not list((registry._cache).glob("org*"))
        hub.heal()
        assert registry.fetch(key).is_dir()

    def test_a_commit_in_the_cache_is_there_while_the_hub_is_down(
        self, hub: Hub, repo: Repo, registry: HubRegistry
    ) -> None:
        """Each evaluation fetches; an hour without the Hub would fail them all. A tag may have moved."""
        repo.tags["v1"] = repo.head
        key = commit_key(repo, repo.head)
        folder = registry.fetch(key)
        hub.fails("hub/api", 503, times=50, headers={"Retry-After": "60"})
        assert registry.fetch(key) == folder
        with pytest.raises(RegistryUnavailableError):
            registry.fetch(ModelKey("org/tiny", "v1"))
        with pytest.raises(RegistryUnavailableError):
            registry.fetch(ModelKey("org/tiny", "0" * 12))

    def test_a_fetch_that_was_killed_in_the_middle_of_a_file_goes_on_there(
        self, hub: Hub, repo: Repo, registry: HubRegistry, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        """A pod that is evicted after nine of ten hours must not begin again."""
        fault = hub.holds(WEIGHTS, after=50_000)
        process = _fetching(hub, tmp_path, repo)
        try:
            assert fault.held is not None
            assert fault.held.wait(60), "the process asked for no weights"
            part = _wait_for_part(tmp_path)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        there = part.stat().st_size
        hub.heal()
        assert not list((tmp_path / "cache").glob("org*"))
        hub.requests.clear()
        folder = registry.fetch(commit_key(repo, repo.head))
        assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
        (request,) = (request for request in hub.requests if request.host == "cdn")
        assert (request.range, request.sent) == (f"bytes={there}-", len(files["model.safetensors"]) - there)
        assert not list(tmp_path.rglob("*.part"))

    def test_two_processes_fetch_once(
        self, hub: Hub, repo: Repo, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        """Four pods of one model on one volume would fetch it, and store it, four times."""
        fault = hub.holds(WEIGHTS, after=50_000)
        processes = [_fetching(hub, tmp_path, repo) for _ in range(2)]
        try:
            assert fault.held is not None
            assert fault.held.wait(60), "no process asked for the weights"
            _poll(lambda: len(hub.asked("/revision/")) == 2)
            fault.released.set()
            answers = [process.communicate(timeout=60) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        assert [process.returncode for process in processes] == [0, 0], answers
        assert len({out for out, _ in answers}) == 1
        assert sum(r.sent for r in hub.requests if r.host == "cdn") == len(files["model.safetensors"])
        assert [path.name for path in (tmp_path / "cache").glob("org*")] == [f"org%2Ftiny@{repo.head}"]


def _fetching(hub: Hub, tmp_path: Path, repo: Repo) -> "subprocess.Popen[str]":
    program = (
        "import sys; from pathlib import Path; from resources.keys import ModelKey; "
        "from resources.registries.hub import HubRegistry; url, base, key = sys.argv[1:]; "
        "registry = HubRegistry(['org/tiny'], [], Path(base, 'cache'), base + '/notes', url); "
        "print(registry.fetch(ModelKey.parse(key)))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, hub.url, str(tmp_path), str(commit_key(repo, repo.head))],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_part(tmp_path: Path) -> Path:
    found: list[Path] = []

    def looks() -> bool:
        found[:] = [p for p in tmp_path.rglob(".model.safetensors.part") if p.stat().st_size > 30_000]
        return bool(found)

    _poll(looks)
    return found[0]


def _poll(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline, "waited for 60 s"
        time.sleep(0.02)
