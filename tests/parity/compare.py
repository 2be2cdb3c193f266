"""Run lm_eval 0.4.13 and this project on the same model and rows, and compare them item by item.

    python -m tests.parity.compare --models ./models --data ./data \\
        --harness-python .venv-lm-eval/bin/python --write docs/parity.md

Exits with status 1 where anything differs that is no named exception.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from eval_assets.suite import load_suite  # noqa: E402  (the path must be set first)
from resources.engines.settings import EngineSettings  # noqa: E402
from tests.parity import report, slices  # noqa: E402
from tests.parity.differences import Comparison, compare  # noqa: E402
from tests.parity.ours import name_exceptions, run_ours  # noqa: E402
from tests.parity.rows import tables_of, write_mirror  # noqa: E402
from tests.parity.works import SLICE, WORKS, Work  # noqa: E402

SMOLLM = "smollm2-135m/1"
GEMMA = "gemma3-270m/1"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    works = [work for work in (SLICE if options.slice else WORKS) if options.only in work.name]
    if options.items:
        works = [replace(work, limit=min(work.limit, options.items)) for work in works]
    folder = Path(options.keep or tempfile.mkdtemp(prefix="parity-"))
    try:
        compared = {
            "SmolLM2-135M-Instruct": _compare_model(
                options, options.models / SMOLLM, works, folder / "smollm"
            )
        }
        if options.gemma:
            fewer = [replace(work, limit=min(work.gemma, work.limit)) for work in works if work.gemma]
            compared["Gemma-3-270M"] = _compare_model(
                options, options.models / GEMMA, fewer, folder / "gemma"
            )
        if options.slice:
            slices.write(folder / "smollm", works, options.slice)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    found = {model: comparisons for model, (comparisons, _, _) in compared.items()}
    print(report.table(found))
    for line in report.notes(found):
        print(line)
    if options.write:
        versions, seconds = compared["SmolLM2-135M-Instruct"][1:]
        options.write.write_text(report.document(found, versions, seconds), encoding="utf-8")
        print(f"written to {options.write}")
    return 0 if all(comparison.agrees for comparisons in found.values() for comparison in comparisons) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="compare this project with lm_eval, item by item")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder registry with the models")
    parser.add_argument("--data", type=Path, default=Path("data"), help="data mirror with the real rows")
    parser.add_argument(
        "--harness-python",
        type=Path,
        default=Path(".venv-lm-eval/bin/python"),
        help="the harness's interpreter",
    )
    parser.add_argument("--write", type=Path, help="write the result as Markdown")
    parser.add_argument("--slice", type=Path, help="compare a slice only, and write it for the tests")
    parser.add_argument(
        "--gemma", action="store_true", help="also compare Gemma 3 270M (its licence is its own)"
    )
    parser.add_argument("--only", default="", help="works whose name holds this text")
    parser.add_argument("--items", type=int, help="at most so many items a work")
    parser.add_argument("--keep", help="folder to keep rows and answers in, and to reuse the harness's from")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def _compare_model(
    options: argparse.Namespace, model: Path, works: Sequence[Work], folder: Path
) -> tuple[list[Comparison], dict[str, str], dict[str, float]]:
    if not model.is_dir():
        raise SystemExit(f"{model} is not there: make the demo's models first")
    for work in works:
        write_mirror(tables_of(work.rows, options.data, work.limit), _mirror(folder, work))
    dumped = folder / "harness.json"
    seconds = {}
    if not dumped.exists():
        started = time.monotonic()
        _run_harness(options, model, works, folder, dumped)
        seconds["lm_eval"] = time.monotonic() - started
    harness = json.loads(dumped.read_text(encoding="utf-8"))
    started = time.monotonic()
    comparisons = _compare_works(model, works, folder, harness["works"], options.threads)
    seconds["ours"] = time.monotonic() - started
    return comparisons, harness["versions"], seconds


def _mirror(folder: Path, work: Work) -> Path:
    return (folder / "rows" / work.slug).resolve()


def _run_harness(
    options: argparse.Namespace, model: Path, works: Sequence[Work], folder: Path, dumped: Path
) -> None:
    request = {
        "model": str(model.resolve()),
        "threads": options.threads,
        "works": [work.for_harness(str(_mirror(folder, work))) for work in works],
    }
    asked = folder / "request.json"
    asked.write_text(json.dumps(request), encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": ""}
    log = folder / "harness.log"
    print(f"the harness is running {len(works)} works; its log is {log}", flush=True)
    with log.open("w", encoding="utf-8") as output:
        finished = subprocess.run(
            [
                str(options.harness_python.absolute()),
                str(Path(__file__).parent / "run_harness.py"),
                str(asked),
                str(dumped),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    if finished.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise SystemExit(f"the harness failed:\n{tail}")


def _compare_works(
    model: Path, works: Sequence[Work], folder: Path, harness: dict[str, Any], threads: int
) -> list[Comparison]:
    from resources.engines.transformers_engine import TransformersEngine
    from tests.parity.ours import Side

    suite = load_suite()
    settings = EngineSettings(device="cpu", dtype="float32", threads=threads)
    comparisons = []
    sides: dict[int | None, Side] = {}
    # Works with the model's own context first, so that two engines are never in memory together.
    for work in sorted(works, key=lambda work: work.max_length or 0):
        if work.max_length not in sides:
            for side in sides.values():
                side.engine.close()
            path = model if work.max_length is None else shortened(model, folder / "short", work.max_length)
            sides = {work.max_length: Side(TransformersEngine.load(path, settings), path)}
        side = sides[work.max_length]
        started = time.monotonic()
        ours = run_ours(work.adapt(suite[work.benchmark]), _mirror(folder, work), side)
        print(f"{work.name}: {len(ours['items'])} items, {time.monotonic() - started:.0f} s", flush=True)
        comparison = compare(work.name, ours, harness[work.name], work.metrics, asked_more=work.asked_more)
        name_exceptions(comparison, side)
        comparisons.append(comparison)
    for side in sides.values():
        side.engine.close()
    order = [work.name for work in works]
    return sorted(comparisons, key=lambda comparison: order.index(comparison.name))


def shortened(model: Path, folder: Path, context_length: int) -> Path:
    """The model with a shorter context: the same files, but for the limit in its config."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in model.resolve().iterdir():
        target = folder / file.name
        if file.name != "config.json" and not target.exists():
            target.symlink_to(file)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = context_length
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


if __name__ == "__main__":
    sys.exit(main())
