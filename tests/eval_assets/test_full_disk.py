"""A disk that is really full: a small file system of its own, in a mount namespace of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resources.results import ResultsStore
from tests.committed import committed_in
from tests.conftest import ROOT
from tests.eval_assets.conftest import Project
from tests.eval_assets.evaluating.test_evaluator import run
from tests.eval_assets.fake_engine import FakeEngine

PROGRAM = """
import errno, os, sys
from pathlib import Path
from resources.errors import UserError
from resources.lease import Lease
from resources.results import ResultsStore
from tests.eval_assets.fake_engine import FakeEngine
from tests.eval_assets.evaluating.test_evaluator import run

root, kind = sys.argv[1:]
ballast = Path(root, "ballast")

def fill():
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC

def filling(owner, name, when):
    original = getattr(owner, name)
    def fills(*arguments, **options):
        if when(*arguments):
            fill()
        return original(*arguments, **options)
    setattr(owner, name, fills)
    return lambda: setattr(owner, name, original)

if kind == "lease.json":
    undo = filling(Lease, "acquire", lambda *_: True)
else:
    undo = filling(ResultsStore, "put", lambda _, path, content: kind in path)
try:
    run(ResultsStore(root), FakeEngine())
except UserError as error:
    print(error)
undo()
ballast.unlink()
_, outcome = run(ResultsStore(root), FakeEngine())
print(outcome.record["content_digest"])
print([path.name for path in Path(root).glob("evaluations/*/*/*/*")])
"""


def on_a_small_disk(
    folder: Path, size: str, command: str, *arguments: str
) -> "subprocess.CompletedProcess[str]":
    """Run a shell command with a file system of `size` mounted at `folder`, which only it can see."""
    folder.mkdir(exist_ok=True)
    mounted = f'mount -t tmpfs -o size={size} tmpfs "$0" && {command}'
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", mounted, str(folder), *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    ["lease.json", "runs.json", "progress/part-", "samples.parquet", "metrics.parquet", "evaluation.json"],
)
def test_a_full_disk_is_one_line_and_the_evaluation_goes_on_once_there_is_space(
    tmp_path: Path, kind: str
) -> None:
    """Whatever is being written: nothing half-written may count, and nothing that is finished be lost."""
    _, undisturbed = run(ResultsStore(str(tmp_path / "undisturbed")), FakeEngine())
    disk = tmp_path / "disk"
    done = on_a_small_disk(disk, "2m", '"$1" -c "$2" "$0" "$3"', sys.executable, PROGRAM, kind)
    assert done.returncode == 0, done.stderr
    line, digest, files = done.stdout.splitlines()
    assert line.startswith(f"results store: can't write {disk}/evaluations/capitals/fake@1/"), line
    assert "No space left on device; free some space" in line
    assert digest == undisturbed.record["content_digest"]
    assert sorted(files.strip("[]").split(", ")) == [
        "'evaluation.json'", "'metrics.parquet'", "'samples.parquet'",
    ]  # fmt: skip


def test_a_command_that_met_a_full_disk_is_repeated_once_there_is_space(project: Project) -> None:
    """One line, status 2; then the same command, and the result of an undisturbed one."""
    runs = project.registered("tiny@1")
    prepared = project.folder / "prepared"
    shutil.copytree(runs.store.root, prepared)
    command = [
        sys.executable, "-m", "eval_assets", "evaluate", "--models", "tiny@1", "--benchmarks", "capitals",
    ]  # fmt: skip
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    (expected,) = committed_in(runs.store)
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in prepared.rglob("*") if path.is_file())
    disk, saved = project.folder / "disk", project.folder / "saved"
    done = on_a_small_disk(
        disk,
        str(used + 8192),
        'cp -r "$1"/. "$0" && saved=$2 && shift 2 && export EVAL_STORE="$0" && ! "$@" && echo FREED >&2 '
        '&& mount -o remount,size=64m "$0" && "$@" && cp -r "$0" "$saved"',
        str(prepared),
        str(saved),
        *command,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line = done.stderr.partition("FREED")[0].strip()
    assert line.startswith("error: ")
    assert "No space left on device" in line
    assert "\n" not in line
    (record,) = committed_in(ResultsStore(str(saved)))
    assert record["content_digest"] == expected["content_digest"]
    assert record["metrics"] == expected["metrics"]
