"""A real evaluation, killed at random moments until nothing is left to kill."""

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.committed import committed_in
from tests.conftest import ROOT
from tests.eval_assets.conftest import Project

KILLS = 20
PHASES = ("loading", "scoring", "writing", "committing")

# Imports everything once and forks for each run, which then goes the way of `python -m eval_assets`. What it
# comes to is written to a pipe, a letter at a time.
DRIVER = """
import os, sys
import torch, transformers
from eval_assets import __main__ as command, automation
from eval_assets.evaluating import evaluator
from eval_assets.commands import runs
from eval_assets.commands import bar
from resources.engines.transformers_engine import TransformersEngine
from resources.results import ResultsStore

told = int(sys.argv[1])

def telling(owner, name, letter, when=lambda *_: True):
    original = getattr(owner, name)
    def tells(*arguments, **options):
        if when(*arguments):
            os.write(told, letter)
        return original(*arguments, **options)
    setattr(owner, name, tells)

telling(TransformersEngine, "load", b"l")
telling(evaluator._Evaluation, "finish", b"s")
telling(ResultsStore, "put", b"w", lambda _, path, *rest: "/progress/" in path)
telling(ResultsStore, "put", b"c", lambda _, path, *rest: path.endswith(
    ("samples.parquet", "metrics.parquet")))
telling(ResultsStore, "put_new", b"c", lambda _, path, *rest: path.endswith("evaluation.json"))

for line in sys.stdin:
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        sys.argv = ["eval_assets", "evaluate", "--models", "tiny@1", "--benchmarks", "capitals"]
        command.run()
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
LETTERS = dict(zip(PHASES, b"lswc", strict=True))


class Driver:
    """Runs the evaluation again and again, each time in a new process."""

    def __init__(self) -> None:
        self._told, telling = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(telling)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[telling],
        )  # fmt: skip
        os.close(telling)

    def run(self, phase: str | None = None, number: int = 0, delay: float = 0.0) -> bool:
        """Run once; with a phase, kill it `delay` seconds after it came to it `number` times.

        Returns whether it was killed.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        seen = 0
        while not select.select([self.process.stdout], [], [], 0)[0]:
            if not select.select([self._told, self.process.stdout.fileno()], [], [], 120)[0]:
                pytest.fail("the evaluation does not go on")
            if select.select([self._told], [], [], 0)[0]:
                seen += os.read(self._told, 1)[0] == LETTERS.get(phase or "")
                if phase is not None and seen == number:
                    moment = time.perf_counter() + delay
                    while time.perf_counter() < moment:
                        pass
                    os.kill(child, signal.SIGKILL)
                    phase = None
        status = int(self.process.stdout.readline())
        while select.select([self._told], [], [], 0)[0]:
            os.read(self._told, 4096)
        assert status in (0, -signal.SIGKILL)
        return status != 0

    def close(self) -> None:
        self.process.communicate()
        os.close(self._told)


def test_an_evaluation_killed_twenty_times_ends_as_an_undisturbed_one(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spot instances are killed without a word: no sample may be lost, doubled or differ in a bit."""
    rows = "".join(f"Land {i},Town {i},A {i},B {i},C {i},Europe\n" for i in range(800))
    with (project.benchmarks / "capitals.csv").open("a") as file:
        file.write(rows)
    store = project.registered("tiny@1").store
    undisturbed = str(project.folder / "undisturbed")
    monkeypatch.setenv("EVAL_BATCH_TOKENS", "512")
    driver = Driver()
    try:
        assert not driver.run()
        (expected,) = committed_in(store)
        samples = store.samples(expected)
        folder = Path(store.root, "evaluations")
        folder.rename(undisturbed)
        draw = random.Random(20)
        # Commits last: before one there is nothing to commit, after one nothing to answer.
        first = [phase for phase in PHASES[:-1] for _ in range(KILLS // len(PHASES))]
        draw.shuffle(first)
        left = [PHASES[-1]] * (KILLS // len(PHASES)) + first
        most_in_one = 0
        while left or not committed_in(store):
            killed = False
            if left:
                numbers = {"loading": 1, "scoring": draw.randint(1, 60), "writing": draw.randint(1, 3)}
                number = numbers.get(left[-1], draw.randint(1, 3))
                killed = driver.run(left[-1], number, draw.choice([0, draw.uniform(0, 0.01)]))
            else:
                driver.run()
            if killed:
                left.pop()
            for record in committed_in(store):
                # Also of one that was killed when its record was written already.
                assert record["content_digest"] == expected["content_digest"]
                assert record["metrics"] == expected["metrics"]
                assert store.samples(record) == samples
                most_in_one = max(most_in_one, record["interruptions"])
                if left:
                    next(iter(folder.iterdir())).rename(f"{undisturbed}-{len(left)}")
        assert most_in_one >= 5
        assert len({sample.sample_id for sample in samples}) == len(samples) == 812
    finally:
        driver.close()
