"""Time cells that go the whole way: a Dagster run, the store, samples, metrics and checks.

    python -m tests.performance.pipeline REQUEST.json OUTPUT.json

The request is ``{"model": key, "benchmarks": [...], "prepare": true or false}``. `prepare` registers the
model and prepares the benchmarks, untimed; otherwise the cells are evaluated in one run. EVAL_* variables and
DAGSTER_HOME say where.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.performance.measure import Figures, peak_memory_bytes, timed


def main() -> None:
    figures: Figures = {}
    with timed(figures, "import"):
        from eval_assets.commands.runs import Runs
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model, benchmarks = request["model"], request["benchmarks"]
    output: dict[str, Any] = {}
    runs = Runs()
    if request["prepare"]:
        runs.register([model])
        failed = {key: reason for key, reason in runs.prepare(benchmarks).items() if reason}
        if failed:
            raise SystemExit(f"not prepared: {failed}")
    else:
        with timed(figures, "run"):
            runs.evaluate_cells(model, benchmarks)
        records = [runs.store.committed(cell) for cell in runs.cells([model], benchmarks)]
        output["records"] = [
            {name: record[name] for name in ("dataset", "samples", "seconds", "metrics")}
            for record in records
            if record is not None
        ]
    figures["peak_bytes"] = peak_memory_bytes()
    Path(sys.argv[2]).write_text(json.dumps({**output, "figures": figures}), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # as eval_assets.__main__.run does: DuckDB's binding would end with a page of warnings


if __name__ == "__main__":
    main()
