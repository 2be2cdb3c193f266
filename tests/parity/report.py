"""The comparison as a table and as the page docs/parity.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.parity.differences import Comparison, MetricComparison

Found = Mapping[str, Sequence[Comparison]]
"""Comparisons by model."""

_HEADER = (
    "work",
    "items",
    "prompts equal",
    "token ids equal",
    "largest difference, nats a token",
    "greedy flags equal",
    "generated texts equal",
    "metric: ours = lm_eval",
)


def table(found: Found) -> str:
    """The whole comparison as a Markdown table, one row a work and model."""
    several = len(found) > 1
    rows = [
        _row(comparison, f"{comparison.name} ({model})" if several else comparison.name)
        for model, comparisons in found.items()
        for comparison in comparisons
    ]
    lines = [_HEADER, tuple("---" for _ in _HEADER), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _row(comparison: Comparison, name: str) -> tuple[str, ...]:
    scored = comparison.scored > 0
    return (
        name,
        str(comparison.items),
        _share(comparison.prompts_equal, comparison.requests),
        _share(comparison.token_ids_equal, comparison.requests),
        f"{comparison.largest_difference:.1e}" if scored else "",
        _share(comparison.greedy_equal, comparison.scored) if scored else "",
        _share(comparison.texts_equal, comparison.generated) if comparison.generated else "",
        "<br>".join(_metric(metric) for metric in comparison.metrics),
    )


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}"


def _metric(metric: MetricComparison) -> str:
    sign = "=" if metric.same_value else "≠"
    items = (
        ""
        if metric.equal_items == metric.items
        else f", equal in {metric.equal_items} of {metric.items} items"
    )
    return f"{metric.name}: {metric.ours:.6g} {sign} {metric.theirs:.6g}{items}"


def notes(found: Found) -> list[str]:
    """What differs, a line each: exceptions with their reasons, then whatever else does not agree."""
    lines = []
    for model, comparisons in found.items():
        for comparison in comparisons:
            where = f"{comparison.name} ({model})"
            for exception in comparison.exceptions:
                kind = "exception" if exception.excused else "DIFFERENCE"
                lines.append(f"{kind}: {where}, item {exception.item}: {exception.reason}")
            lines.extend(f"DIFFERENCE: {where}, {note}" for note in comparison.notes)
    return lines


def document(found: Found, versions: Mapping[str, str], seconds: Mapping[str, float]) -> str:
    """The page docs/parity.md: the comparison set into the text of page.md."""
    exceptions = [f"- {line.removeprefix('exception: ')}" for line in notes(found)]
    page = (Path(__file__).parent / "page.md").read_text(encoding="utf-8")
    return page.format(
        models=" and ".join(found),
        table=table(found),
        exceptions="\n".join(exceptions) or "None: every generated text is identical.",
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        seconds=f"The harness took {seconds['lm_eval']:.0f} s, ours {seconds['ours']:.0f} s.",
    )
