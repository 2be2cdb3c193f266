"""How each kind of work is measured: which processes run, one after the other, and what is kept of them."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tests.performance.flops import ModelShape, least, readings_of, whole
from tests.performance.machine import busy_share, describe
from tests.performance.measure import engine_seconds
from tests.performance.sides import MODEL, ROOT, Bench, Output, figures_of, say
from tests.performance.works import ANSWER_TOKENS, CANDIDATES, HarnessWork, OtherWork

Result: TypeAlias = dict[str, Any]

BUSY = 0.1
"""Beyond this share of the processor, what others run is told: threads that wait for each other suffer."""


def against_harness(bench: Bench, work: HarnessWork) -> Result:
    """Search lm_eval's best batch size, run both sides in turn, compare their answers, count the floor."""
    mirror = bench.mirror(work.slug, work.work.rows, work.items)
    theirs_asked = {**bench.engine, "work": work.for_harness(str(mirror))}
    ours_asked = {**bench.engine, "mirror": str(mirror), "slug": work.slug}

    def run_theirs(name: str, batch_size: int) -> Output:
        return bench.theirs(name, {**theirs_asked, "mode": "run", "batch_sizes": [batch_size]})

    started = time.monotonic()
    search = {**theirs_asked, "mode": "search", "batch_sizes": CANDIDATES}
    tried = bench.theirs(f"{work.slug}-search", search)["tried"]
    fitting = [entry for entry in tried if "seconds_an_item" in entry]
    best = min(fitting, key=lambda entry: float(entry["seconds_an_item"]))["batch"]
    say(f"{work.slug}: lm_eval's best batch size is {best} ({time.monotonic() - started:.0f} s of search)")
    ours, theirs = [], []
    for _ in range(bench.repeats):
        theirs.append(run_theirs(f"{work.slug}-lm_eval", best))
        ours.append(bench.ours(f"{work.slug}-ours", "our_side", ours_asked))
    result: Result = {
        "items": len(ours[0]["items"]),
        "search": {"tried": tried, "best": best},
        "sides": {"lm_eval": figures_of(theirs), "ours": figures_of(ours)},
        "versions": {"lm_eval": theirs[0]["versions"], "ours": ours[0]["engine"]},
    }
    if work.memory_peer:
        single = theirs if best == 1 else [run_theirs(f"{work.slug}-lm_eval-1", 1)]
        result["sides"]["lm_eval_1"] = figures_of(single)
    pair = {"slug": work.slug, "ours": ours[-1]["output"], "theirs": theirs[-1]["output"]}
    result["scores"] = bench.ours(f"{work.slug}-scores", "scores", {**bench.engine, **pair})
    model = ModelShape.read(bench.model)
    readings = [
        reading
        for item in ours[-1]["items"]
        for record in item["requests"]
        for reading in readings_of(record)
    ]
    result["requests"] = sum(len(item["requests"]) for item in ours[-1]["items"])
    for name, count in (
        ("whole", whole(readings, all_headed=work.asked != "generate_until")),
        ("least", least(readings)),
    ):
        result.setdefault("floor", {})[name] = {
            "tokens": count.tokens,
            "headed": count.headed,
            "flops": count.flops(model),
        }
    return result


def article(bench: Bench, work: OtherWork) -> Result:
    """The script that people write, once as they write it and once with a stop string, and our evaluation."""
    mirror = bench.mirror(work.slug, "squad", work.items)
    shared = {"encoder": str(bench.encoder), "layers": 6, "threads": bench.threads}
    rows = mirror / "rajpurkar" / "squad" / "plain_text" / "validation.parquet"
    script = {**shared, "model": str(bench.model), "rows": str(rows), "max_new_tokens": ANSWER_TOKENS}
    store = (bench.folder / "stores" / work.slug).resolve()
    mine = {**shared, "registry": str(bench.models.resolve()), "key": MODEL, "mirror": str(mirror)}
    outputs: dict[str, list[Output]] = {"script": [], "ours": [], "script_stop": []}
    for _ in range(bench.repeats):
        shutil.rmtree(store, ignore_errors=True)
        outputs["script"].append(
            bench.ours(f"{work.slug}-script", "article_script", {**script, "stop_early": False})
        )
        outputs["ours"].append(bench.ours(f"{work.slug}-ours", "our_article", {**mine, "store": str(store)}))
        outputs["script_stop"].append(
            bench.ours(f"{work.slug}-script-stop", "article_script", {**script, "stop_early": True})
        )
    return {
        "items": work.items,
        "sides": {side: figures_of(found) for side, found in outputs.items()},
        "scores": equal_items(outputs["ours"][-1]["items"], outputs["script"][-1]["items"]),
    }


def equal_items(ours: Sequence[Output], theirs: Sequence[Output]) -> dict[str, Any]:
    """Texts must be identical, scores too but for rounding."""
    notes = []
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine["text"] != other["text"]:
            notes.append(f"item {index}: ours wrote {mine['text']!r}, the script {other['text']!r}")
            continue
        for name, value in other["scores"].items():
            if abs(mine["scores"][name] - value) > (1e-4 if name == "bertscore_f1" else 1e-6):
                notes.append(f"item {index}: {name} {mine['scores'][name]} here, {value} in the script")
    texts = sum(mine["text"] == other["text"] for mine, other in zip(ours, theirs, strict=True))
    return {"equal": not notes, "notes": notes, "generated": len(ours), "texts_equal": texts}


def _instance(bench: Bench, name: str, mirror: Path | None, limit: int | None) -> dict[str, str]:
    """A Dagster instance and a store of their own, as environment variables."""
    home = (bench.folder / "instances" / name).resolve()
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    shutil.copy(ROOT / "deployments" / "local" / "dagster.yaml", home)
    return {
        "DAGSTER_HOME": str(home),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "EVAL_STORE": str(home / "store"),
        "EVAL_REGISTRY": str(bench.models.resolve()),
        "EVAL_DATA_MIRROR": str((mirror or bench.data).resolve()),
        "EVAL_DEVICE": "cpu",
        "EVAL_DTYPE": "float32",
        "EVAL_THREADS": str(bench.threads),
        **({"EVAL_LIMIT": str(limit)} if limit else {}),
    }


def pipeline(bench: Bench, work: OtherWork) -> Result:
    """A cell through Dagster, and the engine alone on the same requests."""
    mirror = bench.mirror(work.slug, work.benchmarks[0], work.items)
    asked = {"model": MODEL, "benchmarks": work.benchmarks}
    alone, through = [], []
    for repeat in range(bench.repeats):
        request = {**bench.engine, "mirror": str(mirror), "slug": work.slug}
        alone.append(bench.ours(f"{work.slug}-alone", "our_side", request))
        environment = _instance(bench, f"{work.slug}-{repeat}", mirror, None)
        bench.ours(f"{work.slug}-prepare", "pipeline", {**asked, "prepare": True}, environment)
        found = bench.ours(f"{work.slug}-run", "pipeline", {**asked, "prepare": False}, environment)
        (record,) = found["records"]
        figures = found["figures"]
        figures["load_wall"] = record["seconds"]["load"]
        figures["engine_wall"] = engine_seconds(record["seconds"])
        figures["score_wall"] = record["seconds"]["score"]
        figures["evaluation_wall"] = figures["run_wall"] - figures["load_wall"]
        figures["evaluation_cpu"] = figures["run_cpu"]
        through.append(found)
    (record,) = through[-1]["records"]
    accuracy = alone[-1]["aggregates"]["acc_norm"]["value"]
    return {
        "items": record["samples"],
        "sides": {"engine": figures_of(alone), "pipeline": figures_of(through)},
        "scores": {"equal": abs(record["metrics"]["acc_norm"] - accuracy) < 1e-9, "notes": []},
    }


def row(bench: Bench, work: OtherWork) -> Result:
    """All benchmarks of a model in one run, and each in a run and process of its own."""
    single, several = (_instance(bench, f"{work.slug}-{kind}", None, work.items) for kind in ("one", "each"))
    asked = {"model": MODEL, "benchmarks": work.benchmarks}
    for environment in (single, several):
        bench.ours(f"{work.slug}-prepare", "pipeline", {**asked, "prepare": True}, environment)
    apart = [
        bench.ours(
            f"{work.slug}-{key}", "pipeline", {"model": MODEL, "benchmarks": [key], "prepare": False}, several
        )
        for key in work.benchmarks
    ]
    together = bench.ours(f"{work.slug}-all", "pipeline", {**asked, "prepare": False}, single)
    scores = {record["dataset"]: record["metrics"] for found in apart for record in found["records"]}
    same = all(scores[record["dataset"]] == record["metrics"] for record in together["records"])
    return {
        "items": work.items * len(work.benchmarks),
        "sides": {
            "four_runs": {
                name: sum(found[name] for found in apart) for name in ("process_wall", "process_cpu")
            },
            "one_run": {name: together[name] for name in ("process_wall", "process_cpu")},
        },
        "scores": {"equal": same, "notes": []},
    }


def planner(bench: Bench, work: OtherWork) -> Result:
    """Requests planned, without a model."""
    found = bench.ours(work.slug, "planner", {"items": work.items})
    return {"items": work.items, "planned": found["seconds"], "peak_bytes": found["peak_bytes"]}


_OTHER: Mapping[str, Callable[[Bench, OtherWork], Result]] = {
    "article": article,
    "pipeline": pipeline,
    "row": row,
    "planner": planner,
}


def measure(bench: Bench, work: HarnessWork | OtherWork) -> Result:
    """A work's figures, with what it is and what it ran on."""
    busy = busy_share()
    if busy > BUSY:
        say(f"{work.slug}: {busy:.0%} of the processor is in use by others: the times will mean little")
    result = against_harness(bench, work) if isinstance(work, HarnessWork) else _OTHER[work.kind](bench, work)
    return result | {
        "slug": work.slug,
        "title": work.title,
        "kind": "harness" if isinstance(work, HarnessWork) else work.kind,
        "goal": work.goal,
        "threads": bench.threads,
        "machine": describe(),
        "busy": busy,
    }
