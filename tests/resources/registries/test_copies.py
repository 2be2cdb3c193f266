"""Copies in the cache: complete or not there, resumed after a kill, and shared by processes."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import RegistryUnavailableError
from resources.registries.copies import copy_version
from resources.registries.files import Seen
from tests.conftest import ROOT

KEY = ModelKey("org/tiny", "1")
SIZES = {"config.json": 2, "sub/a.json": 3, "tokenizer.json": 4}


def _files(identity: str = "x") -> dict[str, Seen]:
    return {path: Seen(size, identity) for path, size in SIZES.items()}


class Source:
    """Gives files of the right size; counts what was asked for."""

    def __init__(self, content: bytes = b"x") -> None:
        self.content = content
        self.asked: list[str] = []

    def get(self, relative: str, target: Path) -> None:
        self.asked.append(relative)
        target.write_bytes(self.content * SIZES[relative])


def test_a_copy_lies_in_a_folder_of_its_key_and_is_made_once(tmp_path: Path) -> None:
    source = Source()
    folder = copy_version(tmp_path, KEY, _files(), source.get)
    assert folder == tmp_path / "org%2Ftiny@1"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.json")} == {
        *SIZES,
        ".listing.json",
    }
    assert copy_version(tmp_path, KEY, _files(), source.get) == folder
    assert sorted(source.asked) == sorted(SIZES)


def test_a_copy_of_which_a_file_was_removed_or_cut_is_made_again(tmp_path: Path) -> None:
    """Somebody clears a full disk by hand; the next evaluation must not run on what is left."""
    folder = copy_version(tmp_path, KEY, _files(), Source().get)
    (folder / "sub" / "a.json").unlink()
    (copy_version(tmp_path, KEY, _files(), Source().get) / "config.json").write_bytes(b"")
    folder = copy_version(tmp_path, KEY, _files(), Source().get)
    assert {path: (folder / path).stat().st_size for path in SIZES} == SIZES


def test_another_listing_replaces_the_copy_whole(tmp_path: Path) -> None:
    copy_version(tmp_path, KEY, _files("x"), Source(b"x").get)
    files = _files("y")
    del files["sub/a.json"]
    folder = copy_version(tmp_path, KEY, files, Source(b"y").get)
    assert (folder / "config.json").read_bytes() == b"yy"
    assert not (folder / "sub").exists()
    assert [path.name for path in (tmp_path / ".copying" / "org%2Ftiny@1").iterdir()] == ["lock"]


def test_a_version_whose_name_goes_on_keeps_its_half_made_copy(tmp_path: Path) -> None:
    """org/tiny@1 and org/tiny@1.5 share the beginning of their names, and must share nothing else."""

    def fail(relative: str, target: Path) -> None:
        if relative == "tokenizer.json":
            raise UserError("no")
        Source().get(relative, target)

    with pytest.raises(UserError):
        copy_version(tmp_path, ModelKey("org/tiny", "1.5"), _files(), fail)
    copy_version(tmp_path, KEY, _files(), Source().get)
    source = Source()
    copy_version(tmp_path, ModelKey("org/tiny", "1.5"), _files(), source.get)
    assert source.asked == ["tokenizer.json"]


SLOW = """
import sys, time
from pathlib import Path
from resources.registries.copies import copy_version
from tests.resources.registries.test_copies import KEY, SIZES, _files
def get(relative, target):
    if relative == "tokenizer.json":
        target.write_bytes(b"x")
        print("in the middle", flush=True)
        time.sleep(600)
    target.write_bytes(b"x" * SIZES[relative])
copy_version(Path(sys.argv[1]), KEY, _files(), get)
"""


def test_after_a_kill_in_the_middle_of_a_file_only_that_and_the_rest_are_fetched(tmp_path: Path) -> None:
    """140 GB from the beginning after each preempted pod would never end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in the middle\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "org%2Ftiny@1").exists()
    source = Source()
    folder = copy_version(tmp_path, KEY, _files(), source.get)
    assert source.asked == ["tokenizer.json"]
    assert not list(folder.rglob("*.tmp"))


def test_of_two_that_copy_at_once_one_fetches(tmp_path: Path) -> None:
    """Two pods of one row start together; the volume's bandwidth is for one of them."""
    source = Source()

    def slow(relative: str, target: Path) -> None:
        time.sleep(0.05)  # long enough for the others to come to the lock: that they wait at it can't be seen
        source.get(relative, target)

    with ThreadPoolExecutor(3) as threads:
        made = list(threads.map(lambda _: copy_version(tmp_path, KEY, _files(), slow), range(3)))
    assert len(set(made)) == 1
    assert sorted(source.asked) == sorted(SIZES)


def test_a_volume_without_locks_still_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert copy_version(tmp_path, KEY, _files(), Source().get).is_dir()


def test_a_file_that_comes_short_is_fetched_again_and_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.registries.copies._PAUSE_SECONDS", 0)
    tries: list[str] = []

    def short(relative: str, target: Path) -> None:
        tries.append(relative)
        target.write_bytes(b"x" * (SIZES[relative] - (len(tries) < 3)))

    copy_version(tmp_path, KEY, _files(), short)
    assert tries == ["config.json"] * 3 + ["sub/a.json", "tokenizer.json"]

    def always(relative: str, target: Path) -> None:
        target.write_bytes(b"")

    with pytest.raises(RegistryUnavailableError, match=r"config\.json came with 0 bytes, its listing says 2"):
        copy_version(tmp_path, ModelKey("org/tiny", "2"), _files(), always)
    assert not (tmp_path / "org%2Ftiny@2").exists()


@pytest.mark.parametrize("path", ["../x.json", "/etc/x.json", "a/../../x.json", "a\\..\\x.json", "a\0b", ""])
def test_a_path_that_leaves_the_folder_is_refused_before_anything_is_fetched(
    tmp_path: Path, path: str
) -> None:
    """Whoever may register a model would write anywhere on the machine."""
    source = Source()
    with pytest.raises(UserError, match="leaves the version's folder"):
        copy_version(tmp_path / "cache", KEY, {"config.json": Seen(2, ""), path: Seen(1, "")}, source.get)
    assert source.asked == []
    assert not (tmp_path / "cache").exists()


def test_weights_that_are_shorter_than_their_header_says_take_no_place(
    tmp_path: Path, tiny_model: Path
) -> None:
    cut = (tiny_model / "model.safetensors").read_bytes()[:-10]

    def get(_: str, target: Path) -> None:
        target.write_bytes(cut)

    with pytest.raises(UserError, match=r"model org/tiny@1: still being copied: model\.safetensors has"):
        copy_version(tmp_path, KEY, {"model.safetensors": Seen(len(cut), "")}, get)
    assert not (tmp_path / "org%2Ftiny@1").exists()


def test_a_full_disk_is_one_line_and_what_was_fetched_is_kept(tmp_path: Path) -> None:
    def full(relative: str, target: Path) -> None:
        if relative == "tokenizer.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        Source().get(relative, target)

    with pytest.raises(UserError, match=r"can't write to .*: No space left on device; free some space"):
        copy_version(tmp_path, KEY, _files(), full)
    source = Source()
    copy_version(tmp_path, KEY, _files(), source.get)
    assert source.asked == ["tokenizer.json"]


def test_a_listing_that_is_no_json_is_made_again(tmp_path: Path) -> None:
    """A machine that lost its power can leave an empty file."""
    folder = copy_version(tmp_path, KEY, _files(), Source().get)
    (folder / ".listing.json").write_text("")
    source = Source()
    copy_version(tmp_path, KEY, _files(), source.get)
    assert sorted(source.asked) == sorted(SIZES)
    assert json.loads((folder / ".listing.json").read_text())
