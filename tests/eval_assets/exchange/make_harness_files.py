"""Make the results files of a real lm_eval run that the tests of import and export read.

This file runs inside the harness's environment (tests/parity/make_environment.sh makes it). The model is
looked up as ``HuggingFaceTB/SmolLM2-135M-Instruct`` below the current folder, rows below the mirror, as in
tests/parity/run_harness.py.

    python make_harness_files.py MIRROR OUTPUT
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import evaluate
import lm_eval
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.parity.run_harness import LocalSquad, read_from

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ONE_BY_ONE = (
    "hellaswag",
    "arc_easy",
    "lambada_openai",
    "gsm8k",
    "squadv2",
    "truthfulqa_mc1",
    "truthfulqa_mc2",
    "truthfulqa_gen",
    "wikitext",
)


def run(tasks: list[str], output: Path, *, limit: int, samples: bool) -> None:
    """What the command `lm_eval run --output_path OUTPUT --log_samples` does, on the patched rows."""
    tracker = EvaluationTracker(output_path=str(output))
    results: dict[str, Any] = simple_evaluate(
        model="hf",
        model_args={"pretrained": MODEL, "revision": "main", "dtype": "float32"},
        tasks=tasks,
        limit=limit,
        batch_size=8,
        device="cpu",
        log_samples=samples,
        evaluation_tracker=tracker,
        bootstrap_iters=100,
    )
    logged: dict[str, Any] = results.pop("samples") if samples else {}
    results["pretty_env_info"] = "left out"  # pages about the machine that it ran on
    results["upper_git_hash"] = None
    tracker.save_results_aggregated(results=results, samples=logged or None)
    for name in results["configs"] if samples else ():
        tracker.save_results_samples(task_name=name, samples=logged[name])


def main() -> None:
    mirror, output = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    read_from([mirror])
    datasets.disable_progress_bars()
    evaluate.load = lambda *_args, **_kwargs: LocalSquad
    run(list(ONE_BY_ONE), output / "tasks", limit=3, samples=True)
    run(["mmlu"], output / "mmlu", limit=2, samples=False)
    run(["mmlu_social_sciences"], output / "part", limit=1, samples=True)
    for path in output.rglob("*.json"):  # where the harness was installed is nobody's business
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f"{Path(lm_eval.__file__).parents[1]}/", ""), encoding="utf-8")
    print(json.dumps(sorted(str(path.relative_to(output)) for path in output.rglob("*.json*")), indent=1))


if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    main()
