"""Aliases and notes in files that people edit: what is wrong in them is told, writers exclude each other."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resources import lease
from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import AliasMovedError, RegistryUnavailableError, aliases
from resources.registries.aliases import Labels
from tests.conftest import ROOT

KEY = ModelKey("org/tiny", "1")
FILE = Path("org", "tiny", "aliases.json")


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Of a registry with versions 1, 2 and 3 of org/tiny."""
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    return Labels(str(tmp_path), lambda key: key.name == "org/tiny" and key.version in ("1", "2", "3"))


def test_a_file_written_by_hand_is_read(labels: Labels, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'\xef\xbb\xbf{\r\n  "champion": "1",\r\n  "candidate": "3"\r\n}\r\n')
    assert labels.aliases("org/tiny") == {"champion": "1", "candidate": "3"}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"champion": "1",}', "is not valid JSON ("),
        ("", "is not valid JSON (Expecting value"),
        ("[" * 99_999, "is not valid JSON ("),
        ('["1"]', "is not a JSON object; correct or remove it"),
        ('{"champion": 1}', "alias 'champion' is 1; write its version in quotes"),
        ('{"champion": null}', "alias 'champion' is null; write its version in quotes"),
        (
            '{"champion": {"version": "1"}}',
            """alias 'champion' is {"version": "1"}; write its version in quotes""",
        ),
        ('{"cham pion": "1"}', "alias 'cham pion': use up to 100 letters, digits and ._-"),
        ('{"": "1"}', "alias '': use up to 100"),
        ('{"champion": "9"}', "alias 'champion' is at version '9', which isn't there; name one that is"),
        ('{"champion": "../../1"}', "alias 'champion' is at version '../../1', which isn't there"),
        ('{"champion": ""}', "alias 'champion' is at version '', which isn't there"),
        (
            '{"champion": "candidate", "candidate": "2"}',
            "alias 'champion' names another alias, 'candidate'; name its version, '2', instead",
        ),
        (
            '{"champion": "candidate", "candidate": "champion"}',
            "aliases go in a circle (champion -> candidate -> champion); name a version",
        ),
        ('{"champion": "champion"}', "aliases go in a circle (champion -> champion); name a version"),
    ],
)
def test_what_is_wrong_in_the_file_is_one_line_that_names_it(
    labels: Labels, tmp_path: Path, content: str, line: str
) -> None:
    """A typing error must neither end in a traceback nor promote something."""
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError) as error:
        labels.aliases("org/tiny")
    message = str(error.value)
    assert f"{tmp_path / FILE}{'' if line.startswith('is ') else ':'} {line}" in message
    assert "\n" not in message


def test_text_that_is_not_utf_8_is_told(labels: Labels, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"champion": "\xe9"}')
    with pytest.raises(UserError, match=r"aliases\.json is not UTF-8 text"):
        labels.aliases("org/tiny")


def test_an_alias_of_a_deleted_version_can_be_moved_away(labels: Labels, tmp_path: Path) -> None:
    """The way out of a dangling champion must not need an editor."""
    (tmp_path / FILE).write_text('{"champion": "9", "candidate": "2"}')
    labels.move_alias("org/tiny", "champion", "2", "9")
    assert labels.aliases("org/tiny") == {"champion": "2", "candidate": "2"}


def test_a_file_that_is_wrong_is_not_written_over(labels: Labels, tmp_path: Path) -> None:
    """The other aliases in it would be lost over a missing quote."""
    (tmp_path / FILE).write_text('{"champion": "1", "canary": "3"')
    with pytest.raises(UserError, match="is not valid JSON"):
        labels.move_alias("org/tiny", "champion", "2", "1")
    assert (tmp_path / FILE).read_text() == '{"champion": "1", "canary": "3"'


@pytest.mark.parametrize("alias", ["", "a b", "a/b", "x" * 101, "champion\n"])
def test_an_illegal_alias_is_refused(labels: Labels, tmp_path: Path, alias: str) -> None:
    with pytest.raises(UserError, match="use up to 100 letters"):
        labels.move_alias("org/tiny", alias, "1", None)
    assert not (tmp_path / FILE).exists()


def test_the_files_are_for_people_and_nothing_is_left_beside_them(labels: Labels, tmp_path: Path) -> None:
    labels.move_alias("org/tiny", "champion", "1", None)
    labels.annotate(KEY, {"verdict": "équivalent"})
    folder = tmp_path / "org" / "tiny"
    assert (folder / "aliases.json").read_text() == '{\n "champion": "1"\n}\n'
    assert json.loads((folder / "notes.json").read_text()) == {"1": {"verdict": "équivalent"}}
    assert "équivalent" in (folder / "notes.json").read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["aliases.json", "notes.json"]
    assert (folder / "aliases.json").stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("content", ['{"1": "better"}', '{"1": {"verdict": 1}}', "[]", "{"])
def test_wrong_notes_are_told_and_kept(labels: Labels, tmp_path: Path, content: str) -> None:
    file = tmp_path / "org" / "tiny" / "notes.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"notes\.json"):
        labels.annotate(KEY, {"verdict": "better"})
    assert file.read_text() == content


MOVE = """
import sys
from resources.registries import AliasMovedError
from resources.registries.aliases import Labels
root, version = sys.argv[1:]
try:
    Labels(root, lambda key: True).move_alias("org/tiny", "champion", version, "0")
    print("moved")
except AliasMovedError:
    print("told")
"""


def test_of_several_processes_that_move_an_alias_one_does_and_the_others_are_told(
    labels: Labels, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text('{"champion": "0"}')
    command = [sys.executable, "-c", MOVE, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for number in range(1, 5)
    ]
    said = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert sorted(said) == ["moved", "told", "told", "told"]
    assert json.loads((tmp_path / FILE).read_text()) == {"champion": str(said.index("moved") + 1)}


def _held(tmp_path: Path, host: str, pid: int) -> None:
    state = {"token": "x", "host": host, "pid": pid, "owner": ""}
    (tmp_path / "org" / "tiny" / ".labels.lease").write_text(json.dumps(state))


def test_a_writer_that_was_killed_does_not_lock_the_aliases(labels: Labels, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    _held(tmp_path, socket.gethostname(), ended.pid)
    labels.move_alias("org/tiny", "champion", "1", None)
    assert labels.aliases("org/tiny") == {"champion": "1"}


def test_a_writer_that_goes_on_and_on_is_told_without_changing_anything(
    labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promotion must not wait for ever in a daemon's tick."""
    _held(tmp_path, "another-machine", 1)
    count = iter(range(10**9))
    monkeypatch.setattr(lease, "_count", lambda *_: str(next(count)).encode())  # its owner goes on counting
    monkeypatch.setattr(aliases, "_WAIT_SECONDS", 0.5)
    with pytest.raises(RegistryUnavailableError, match="another process has been changing aliases"):
        labels.move_alias("org/tiny", "champion", "1", None)
    assert not (tmp_path / FILE).exists()


def test_a_writer_that_was_taken_for_dead_writes_nothing(
    labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that slept between its look and its write would undo what was decided meanwhile."""
    read = Labels._read

    def sleep_long(self: Labels, path: str) -> dict[str, object]:
        found = read(self, path)
        _held(tmp_path, "another-machine", 1)
        return found

    monkeypatch.setattr(Labels, "_read", sleep_long)
    with pytest.raises(RegistryUnavailableError, match="stood still while it was about to write"):
        labels.move_alias("org/tiny", "champion", "1", None)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda labels: labels.move_alias("org/tiny", "champion", "1", None),
        lambda labels: labels.annotate(KEY, {"verdict": "better"}),
    ],
)
def test_a_folder_that_may_not_be_written_is_told(
    labels: Labels, monkeypatch: pytest.MonkeyPatch, change: Callable[[Labels], None]
) -> None:
    def refuse(*_: object) -> None:  # root, who runs the tests in a container, may write everywhere
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(UserError, match=r"can't write to .*org/tiny: Read-only file system; check the perm"):
        change(labels)


def test_the_model_of_a_first_note_needs_no_folder_yet(tmp_path: Path) -> None:
    """Registries that keep the models elsewhere have only this folder for notes."""
    labels = Labels(str(tmp_path / "notes"), lambda _: True)
    assert labels.aliases("org/new") == {}
    assert labels.notes(ModelKey("org/new", "abc")) == {}
    labels.annotate(ModelKey("org/new", "abc"), {"verdict": "better"})
    labels.move_alias("org/new", "champion", "abc", None)
    assert labels.notes(ModelKey("org/new", "abc")) == {"verdict": "better"}
    with pytest.raises(AliasMovedError):
        labels.move_alias("org/new", "champion", "def", None)
    assert os.listdir(tmp_path / "notes" / "org") == ["new"]  # noqa: PTH208  (the name alone)
