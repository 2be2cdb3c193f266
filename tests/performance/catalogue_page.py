"""What ``make bench-catalog`` measured, as the page docs/catalogue.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GOAL_SECONDS = 0.050
GOAL_RATIO = 50
GOALS = {"rebuild": 60.0, "refresh": 1.0}
GOAL_BYTES = 2**30
GOAL_ROWS = 2_000_000
"""The goals are those of a store of a million samples."""

_TEMPLATE = Path(__file__).with_name("catalogue_page.md")


def page(results: Sequence[Mapping[str, Any]], over_s3: Mapping[str, Any] | None = None) -> str:
    """The page, with a section a size, and one of a store in a bucket."""
    sections = [_section(result) for result in results]
    growth = [_growth(results)] if len(results) > 1 else []
    bucket = [bucket_section(over_s3)] if over_s3 else []
    return _TEMPLATE.read_text().replace("{sections}", "\n".join([*sections, *growth, *bucket]))


def bucket_section(result: Mapping[str, Any]) -> str:
    """What a store in a bucket takes."""
    lines = [
        f"## In a bucket: {result['evaluations']:,} evaluations of {result['samples']:,} samples",
        "",
        "Over moto on the same machine, a slow stand-in for S3: one process answers all requests, a",
        f"hundred or two a second. The catalogue has {_size(result['catalogue_bytes'])}. Measured by",
        "",
        "    python -m tests.performance.catalogue --evaluations 1000 --samples 10 --over-s3",
        "",
        "| | seconds |",
        "| --- | --- |",
    ]
    for name, title in (
        ("rebuild", "rebuilt from nothing, and put there"),
        ("unchanged", "refreshed without a change: listings only"),
        ("refresh", "refreshed after one new evaluation, and put there"),
        ("first", "first opened on another machine: downloaded"),
        ("second", "opened again: one listing"),
    ):
        lines.append(f"| {title} | {result[name]:.2f} |")
    lines += ["", f"Before the measurement others used {result['busy']:.0%} of the processor.", ""]
    return "\n".join(lines)


def reached(result: Mapping[str, Any]) -> dict[str, bool]:
    """Which goals are met, by name."""
    seconds = result["catalogue"]["seconds"]
    peaks = [result[side]["peak"] for side in ("rebuild", "refresh", "catalogue")]
    return {
        "each question under 50 ms": all(taken < GOAL_SECONDS for taken in seconds.values()),
        "each at least 50 times as fast as a glob over all files": all(
            result["everywhere"]["seconds"][name] >= GOAL_RATIO * taken for name, taken in seconds.items()
        ),
        "each at least 50 times as fast as a glob at its best": all(
            result["glob"]["seconds"][name] >= GOAL_RATIO * taken for name, taken in seconds.items()
        ),
        "refresh after one new evaluation under 1 s": result["refresh"]["wall"] < GOALS["refresh"],
        "rebuild under 60 s": result["rebuild"]["wall"] < GOALS["rebuild"],
        "memory under 1 GiB": max(peaks) < GOAL_BYTES,
    }


def _section(result: Mapping[str, Any]) -> str:
    lines = [
        f"## {result['evaluations']:,} evaluations, {result['rows']:,} samples",
        "",
        "| question | rows | catalogue | glob over all files | glob at its best | pandas "
        "| against the glob | at its best |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, taken in result["catalogue"]["seconds"].items():
        everywhere, best = result["everywhere"]["seconds"][name], result["glob"]["seconds"][name]
        rows = result["catalogue"]["answers"][name][0]
        lines.append(
            f"| {name} | {rows:,} | {_time(taken)} | {_time(everywhere)} | "
            f"{_time(best)} | {_time(result['pandas']['seconds'][name])} | **{everywhere / taken:,.0f}x** | "
            f"{best / taken:,.1f}x |"
        )
    lines += ["", "| | seconds | processor s | peak memory |", "| --- | --- | --- | --- |"]
    for side, title in (
        ("rebuild", "rebuilt from nothing"),
        ("refresh", "refreshed after one new evaluation"),
    ):
        one = result[side]
        lines.append(f"| {title} | {one['wall']:.2f} | {one['cpu']:.2f} | {_size(one['peak'])} |")
    for side, title in (
        ("catalogue", "the questions to the catalogue"),
        ("everywhere", "to the glob over all files"),
        ("pandas", "to pandas"),
    ):
        lines.append(f"| {title} | | | {_size(result[side]['peak'])} |")
    lines += [
        "",
        f"The store has {_size(result['bytes'])}, its catalogue {_size(result['catalogue_bytes'])}.",
        "",
    ]
    if result["rows"] < GOAL_ROWS:
        lines.append("Goals: " + "; ".join(f"{n} {_met(m)}" for n, m in reached(result).items()) + ".\n")
    if note := result.get("note"):
        lines.append(f"{note}\n")
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    lines.append(
        f"Machine: {machine}. Before the measurement others used {result['busy']:.0%} of the processor.\n"
    )
    return "\n".join(lines)


def _growth(results: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "## How it grows",
        "",
        "| | " + " | ".join(f"{result['rows']:,} samples" for result in results) + " |",
        "| --- |" + " --- |" * len(results),
    ]
    for name in results[0]["catalogue"]["seconds"]:
        row = " | ".join(_time(result["catalogue"]["seconds"][name]) for result in results)
        lines.append(f"| {name} | {row} |")
    for side, title in (("refresh", "refresh"), ("rebuild", "rebuild")):
        lines.append(
            f"| {title} | " + " | ".join(f"{result[side]['wall']:.2f} s" for result in results) + " |"
        )
        peaks = " | ".join(_size(result[side]["peak"]) for result in results)
        lines.append(f"| its peak memory | {peaks} |")
    lines.append("| catalogue | " + " | ".join(_size(result["catalogue_bytes"]) for result in results) + " |")
    return "\n".join([*lines, ""])


def _met(met: bool) -> str:
    return "**reached**" if met else "**not reached**"


def _time(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1000 * seconds:,.1f} ms"


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
