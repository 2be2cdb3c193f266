"""What a command prints while it evaluates."""

import time

import pytest

from eval_assets.commands.bar import Bar
from eval_assets.commands.output import Output
from eval_assets.evaluating.progress import Progress
from resources.results import Cell

CELL = Cell("capitals", "tiny@1", "f" * 64)


def progress(done: int) -> Progress:
    return Progress(
        CELL, done, 100, resumed=0, work_done=done * 10, work_resumed=0, work_total=1000,
        prompt_tokens=done * 50, output_tokens=done, sequences=16, memory_bytes=10**9, seconds=done / 2,
    )  # fmt: skip


def test_on_a_pipe_progress_is_a_line_at_most_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a log of CI nobody sees a progress bar; five lines a second would hide everything else."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Bar(Output().console, 2, 200, 2000) as bar:
        for second in range(1, 36):
            now[0] = float(second)
            bar.update(progress(second))
        bar.update(progress(100))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "tiny@1 on capitals: 10/100 samples",
        "tiny@1 on capitals: 20/100 samples",
        "tiny@1 on capitals: 30/100 samples",
        "tiny@1 on capitals: 100/100 samples",
    ]
    assert lines[0].endswith(
        "2.0 samples/s, 100 prompt tokens/s, 2 output tokens/s, 0:45 left, batch 16, 1.00 GB"
    )
    assert lines[-1].endswith("cell 2/2  100/200 samples  0:35 left")
