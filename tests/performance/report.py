"""The measurements as tables and as the page docs/performance.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.performance.works import WORKS

Result = Mapping[str, Any]
"""What comparisons.py measures of a work."""

_TITLES = {
    "ours": "ours",
    "lm_eval": "lm_eval",
    "lm_eval_1": "lm_eval, batch size 1",
    "script": "script",
    "script_stop": "script with a stop string",
    "engine": "engine alone",
    "pipeline": "whole pipeline",
    "one_run": "one run",
    "four_runs": "four runs",
}
_COMPARED = {"harness": ("ours", "lm_eval"), "article": ("ours", "script"), "row": ("one_run", "four_runs")}
"""By kind of work: our side and the one it is compared with."""


def ratio(result: Result, measure: str = "wall") -> float | None:
    """The peer's seconds over ours; None for a work that is not compared so."""
    if result["kind"] not in _COMPARED:
        return None
    ours, theirs = (result["sides"][side] for side in _COMPARED[result["kind"]])
    phase = "process" if result["kind"] == "row" else "evaluation"
    return float(theirs[f"{phase}_{measure}"] / ours[f"{phase}_{measure}"])


def floor(result: Result) -> float | None:
    """How many times fewer operations the least is than what lm_eval's method takes."""
    counted = result.get("floor")
    return None if counted is None else float(counted["whole"]["flops"] / counted["least"]["flops"])


def overhead(result: Result) -> float:
    """What the pipeline takes more than the engine alone, as a share of the latter."""
    sides = result["sides"]
    return float(sides["pipeline"]["evaluation_wall"] / sides["engine"]["evaluation_wall"]) - 1


def reached(result: Result) -> bool | None:
    """Whether the work's goal is met; None where there is none."""
    if result["goal"] is None:
        return None
    if result["kind"] == "pipeline":
        return overhead(result) < float(result["goal"])
    value = ratio(result)
    if "lm_eval_1" in result["sides"] and not _within_memory(result):
        return False
    return value is not None and value >= float(result["goal"])


def _within_memory(result: Result) -> bool:
    return bool(result["sides"]["ours"]["peak_bytes"] <= result["sides"]["lm_eval_1"]["peak_bytes"])


def table(results: Sequence[Result]) -> str:
    """Every work in a row."""
    rows: list[tuple[str, ...]] = [
        (
            "work",
            "items",
            "CPU s",
            "wall s",
            "peak memory",
            "samples/s",
            "ratio (wall)",
            "ratio (CPU)",
            "goal",
            "floor",
            "reached of it",
            "scores equal",
        )
    ]
    for result in _ordered(results):
        if result["kind"] in _COMPARED:
            rows.append(_row(result))
    return _markdown(rows)


def _row(result: Result) -> tuple[str, ...]:
    ours, theirs = (result["sides"][side] for side in _COMPARED[result["kind"]])
    phase = "process" if result["kind"] == "row" else "evaluation"
    wall, cpu, least = ratio(result), ratio(result, "cpu"), floor(result)
    goal = result["goal"]
    met = reached(result)
    return (
        result["title"],
        str(result["items"]),
        _pair(theirs[f"{phase}_cpu"], ours[f"{phase}_cpu"]),
        _pair(theirs[f"{phase}_wall"], ours[f"{phase}_wall"]),
        _memory(theirs, ours),
        _pair(result["items"] / theirs[f"{phase}_wall"], result["items"] / ours[f"{phase}_wall"], 2),
        f"**{wall:.2f}x**",
        f"{cpu:.2f}x",
        "" if goal is None else f"{goal:g}x {'reached' if met else 'NOT reached'}",
        "" if least is None else f"{least:.2f}x",
        "" if least is None or wall is None else f"{wall / least:.0%}",
        _equal(result),
    )


def _pair(theirs: float, ours: float, digits: int = 1) -> str:
    return f"{theirs:.{digits}f} → {ours:.{digits}f}"


def _memory(theirs: Mapping[str, float], ours: Mapping[str, float]) -> str:
    if "peak_bytes" not in ours:
        return ""
    return f"{_gigabytes(theirs['peak_bytes'])} → {_gigabytes(ours['peak_bytes'])}"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _equal(result: Result) -> str:
    scores = result.get("scores")
    if scores is None:
        return ""
    if not scores["equal"]:
        return "NO"
    excused = scores.get("generated", 0) - scores.get("texts_equal", 0)
    return f"yes, {excused} of {scores['generated']} texts excused" if excused else "yes"


def others(results: Sequence[Result]) -> str:
    """What is compared with no peer: the pipeline's own share, and the planner."""
    lines = []
    for result in _ordered(results):
        if result["kind"] == "pipeline":
            engine, through = result["sides"]["engine"], result["sides"]["pipeline"]
            lines.append(
                f"- {result['title']}: {result['items']} items take {engine['evaluation_wall']:.1f} s in the "
                f"engine alone and {through['evaluation_wall']:.1f} s from the start of the run to its end, "
                f"less {through['load_wall']:.1f} s for loading the weights: **{overhead(result):+.1%}** "
                f"(goal: under {result['goal']:.0%}, {'reached' if reached(result) else 'NOT reached'}). In "
                f"that run itself the engine took {through['engine_wall']:.1f} s, scoring and writing the "
                f"samples {through['score_wall']:.1f} s. The two scores are equal: {_equal(result)}."
            )
        if result["kind"] == "planner":
            planned = "; ".join(
                f"{int(count):,} requests in {seconds:.2f} s" for count, seconds in result["planned"].items()
            )
            lines.append(f"- {result['title']}: {planned}; {_gigabytes(result['peak_bytes'])} at the peak.")
    return "\n".join(lines)


def processes(results: Sequence[Result]) -> str:
    """Of each side's process: imports, loading, evaluation and the whole."""
    rows: list[tuple[str, ...]] = [
        ("work", "side", "imports s", "load s", "evaluation s", "whole process s", "its CPU s", "peak")
    ]
    for result in _ordered(results):
        for side, figures in result.get("sides", {}).items():
            rows.append(
                (
                    result["title"],
                    _TITLES[side],
                    *(
                        f"{figures[f'{phase}_wall']:.1f}" if f"{phase}_wall" in figures else ""
                        for phase in ("import", "load", "evaluation", "process")
                    ),
                    f"{figures['process_cpu']:.1f}",
                    _gigabytes(figures["peak_bytes"]) if "peak_bytes" in figures else "",
                )
            )
    return _markdown(rows)


def searches(results: Sequence[Result]) -> str:
    """The batch sizes tried for lm_eval, and the best of each work."""
    rows: list[tuple[str, ...]] = [("work", "seconds an item at each batch size", "best")]
    for result in _ordered(results):
        if result["kind"] == "harness":
            rows.append(
                (
                    result["title"],
                    "; ".join(map(_tried, result["search"]["tried"])),
                    str(result["search"]["best"]),
                )
            )
    return _markdown(rows)


def _tried(entry: Mapping[str, Any]) -> str:
    if "skipped" in entry:
        return f"{entry['batch']}: not tried ({entry['skipped']})"
    return f"{entry['batch']}: {entry['seconds_an_item']:.2f} ({entry['items']} items)"


def floors(results: Sequence[Result]) -> str:
    """Tokens and operations of both methods."""
    rows: list[tuple[str, ...]] = [
        ("work", "requests", "tokens read", "the least", "heads", "the least", "TFLOP", "the least", "ratio")
    ]
    for result in _ordered(results):
        least = floor(result)
        if least is None:
            continue
        counted = [result["floor"]["whole"], result["floor"]["least"]]
        rows.append(
            (
                result["title"],
                f"{result['requests']:,}",
                *(f"{count[name]:,}" for name in ("tokens", "headed") for count in counted),
                *(f"{count['flops'] / 1e12:.2f}" for count in counted),
                f"{least:.2f}x",
            )
        )
    return _markdown(rows)


def goals(results: Sequence[Result]) -> str:
    """A line for each goal that is not reached and each score that is not equal; or that there is none."""
    lines = []
    for result in _ordered(results):
        if reached(result) is False:
            value = overhead(result) if result["kind"] == "pipeline" else ratio(result)
            within = (
                ""
                if "lm_eval_1" not in result["sides"] or _within_memory(result)
                else (
                    f", with {_gigabytes(result['sides']['ours']['peak_bytes'])} against "
                    f"{_gigabytes(result['sides']['lm_eval_1']['peak_bytes'])} at batch size 1"
                )
            )
            lines.append(f"- {result['title']}: {value:.2f} where the goal is {result['goal']:g}{within}.")
        notes = result.get("scores", {}).get("notes", [])
        lines.extend(f"- {result['title']}: {note}." for note in notes)
    missing = {work.slug for work in WORKS} - {result["slug"] for result in results}
    lines.extend(f"- Not measured: {work.title}." for work in WORKS if work.slug in missing)
    return "\n".join(lines) or "Every goal is reached, and all scores are equal without exception."


def machine(results: Sequence[Result]) -> str:
    """What the measurements ran on; each combination once, with the works that it served."""
    machines: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for result in _ordered(results):
        described = {**result["machine"], "threads": str(result["threads"])}
        machines.setdefault(tuple(described.items()), []).append(result["title"])
    return "\n\n".join(
        (f"{'; '.join(titles)}: " if len(machines) > 1 else "")
        + ", ".join(f"{name} {value}" for name, value in items)
        + "."
        for items, titles in machines.items()
    )


def versions(results: Sequence[Result]) -> str:
    """The packages in the harness's environment."""
    found: Mapping[str, str] = next(
        (result["versions"]["lm_eval"] for result in results if "versions" in result), {}
    )
    return ", ".join(f"{name} {value}" for name, value in found.items())


def document(results: Sequence[Result]) -> str:
    """The page docs/performance.md: the measurements set into the text of page.md."""
    page = (Path(__file__).parent / "page.md").read_text(encoding="utf-8")
    return page.format(
        table=table(results),
        goals=goals(results),
        others=others(results),
        searches=searches(results),
        floors=floors(results),
        processes=processes(results),
        machine=machine(results),
        versions=versions(results),
        busy=f"{max((result['busy'] for result in results), default=0.0):.0%}",
        minutes=f"{sum(result['seconds'] for result in results) / 60:.0f}",
    )


def _ordered(results: Sequence[Result]) -> list[Result]:
    order = [work.slug for work in WORKS]
    return sorted(results, key=lambda result: order.index(result["slug"]))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
