"""Both sides' processes: how they are started, and what is measured of each as a whole."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tests.parity.rows import write_mirror
from tests.performance.rows import tables_for

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
MODEL = "smollm2-135m@1"

Output: TypeAlias = dict[str, Any]
"""What a process wrote, and of the process as a whole `process_wall` and `process_cpu`."""


class ProcessFailedError(Exception):
    """A side's process failed; the text has the end of its log."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where things are, and how often each side runs."""

    folder: Path
    models: Path
    data: Path
    harness_python: Path
    threads: int
    repeats: int

    @property
    def model(self) -> Path:
        return (self.models / MODEL.replace("@", "/")).resolve()

    @property
    def engine(self) -> dict[str, Any]:
        """What every request to a side that runs the model says."""
        return {"model": str(self.model), "threads": self.threads}

    @property
    def encoder(self) -> Path:
        return (self.data / "encoders" / "all-MiniLM-L6-v2").resolve()

    def mirror(self, name: str, kind: str, items: int) -> Path:
        """The rows of a work, written where both sides read them."""
        mirror = (self.folder / "rows" / name).resolve()
        shutil.rmtree(mirror, ignore_errors=True)
        write_mirror(tables_for(kind, self.data, items), mirror)
        return mirror

    def ours(
        self,
        name: str,
        module: str,
        request: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> Output:
        """Run a module of this folder in this project's environment."""
        command = [*prefix, sys.executable, "-m", f"tests.performance.{module}"]
        return self._run(name, command, request, environment or {})

    def theirs(self, name: str, request: Mapping[str, Any]) -> Output:
        """Run lm_eval in its own environment."""
        command = [str(self.harness_python.absolute()), str(HERE / "harness_side.py")]
        return self._run(name, command, request, {"PYTHONPATH": ""})

    def _run(
        self, name: str, command: Sequence[str], request: Mapping[str, Any], environment: Mapping[str, str]
    ) -> Output:
        """The process's output, and of the process as a whole: seconds and the memory at its peak."""
        folder = self.folder / "processes"
        folder.mkdir(parents=True, exist_ok=True)
        asked, answered, log = (folder / f"{name}.{end}" for end in ("request.json", "json", "log"))
        asked.write_text(json.dumps(request), encoding="utf-8")
        answered.unlink(missing_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("EVAL_")}
        threads = {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        started = time.perf_counter()
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [*command, str(asked), str(answered)],
                cwd=ROOT,
                env={**kept, **threads, **offline, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or not answered.exists():
            tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
            raise ProcessFailedError(f"{name} failed with status {process.returncode}:\n{tail}")
        found: Output = json.loads(answered.read_text(encoding="utf-8"))
        found["output"] = str(answered)
        found["process_wall"] = time.perf_counter() - started
        found["process_cpu"] = used.ru_utime + used.ru_stime
        return found


def figures_of(outputs: Sequence[Output]) -> dict[str, float]:
    """The figures of the run that took the shortest time."""
    best = min(outputs, key=lambda output: output["figures"]["evaluation_wall"])
    return {
        **best["figures"],
        "process_wall": best["process_wall"],
        "process_cpu": best["process_cpu"],
        "runs": len(outputs),
    }


def say(text: str) -> None:
    """Tell how far the bench is."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)
