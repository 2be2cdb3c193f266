"""A cell against its baseline's: the recorded verdict, where the two differ, and the items that do."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from eval_assets.report import charts, naming, pairing
from eval_assets.report.cell_page import Cursor
from eval_assets.report.index_page import MARKS
from eval_assets.report.items import data_files, folder_of
from eval_assets.report.reading import Comparison, Evaluation, Results, read_samples
from eval_assets.report.rendering import render
from eval_assets.report.writing import Page, plain


def comparison_page(results: Results, comparison: Comparison, cursor: Cursor, items: int, text: int) -> Page:
    """The page of a recorded comparison, with up to `items` of the items that differ (0: numbers only)."""
    path = naming.comparison_page(comparison.dataset, comparison.model)
    baseline, candidate = results.sides(comparison)
    current = results.current.get((comparison.dataset, comparison.model))
    replaced = current is not None and current.evaluation_id != comparison.candidate_evaluation
    readable = baseline is not None and candidate is not None
    cells = {
        model: (comparison.dataset, model) in results.current
        or (comparison.dataset, model) in results.damaged_cells
        for model in (comparison.baseline, comparison.model)
    }
    known = {model: model in results.models for model in cells}
    inputs = [
        plain(comparison),
        baseline and baseline.identity,
        candidate and candidate.identity,
        replaced,
        [cells, known],
        items,
        text,
    ]

    def files() -> Iterator[tuple[str, bytes]]:
        found: dict[str, Any] = {"data": "", "shown": 0, "differing": 0, "metrics": [], "groups": []}
        found |= {
            "metric_chart": "",
            "calibration": [],
            "reliability": "",
            "lengths": [],
            "length_chart": "",
            "histogram": [],
        }
        if items and baseline is not None and candidate is not None:
            with cursor() as connection:
                rows = [read_samples(connection, side) for side in (baseline, candidate)]
            pairs = pairing.pairs_of(*rows)
            if pairs:
                listed, differing = pairing.listed_pairs(pairs, candidate, comparison, items, text)
                data = ""
                for name, content in data_files(folder_of(path, comparison.model), listed):
                    yield name, content
                    data = name
                found |= {
                    "data": naming.link(path, data) if listed.items else "",
                    "shown": len(listed.items),
                    "differing": differing,
                    **_analysed(comparison, candidate, pairs, rows),
                }
        yield (
            path,
            render(
                "comparison.html.j2",
                path,
                comparison=comparison,
                higher=candidate is None or candidate.higher_is_better,
                readable=readable,
                included=bool(items),
                replaced=replaced,
                marks=MARKS,
                least=pairing.LEAST,
                model_page={
                    model: naming.link(path, naming.model_page(model)) if there else ""
                    for model, there in known.items()
                },
                cell_page={
                    model: naming.link(path, naming.cell_page(comparison.dataset, model)) if there else ""
                    for model, there in cells.items()
                },
                sides=[one for one in (baseline, candidate) if one is not None],
                **found,
            ),
        )

    return Page(path, inputs, files)


def _analysed(
    comparison: Comparison,
    candidate: Evaluation,
    pairs: Sequence[tuple[pairing.Sample, pairing.Sample]],
    rows: Sequence[Sequence[pairing.Sample]],
) -> dict[str, Any]:
    """What is found beyond the recorded numbers, with its charts."""
    names = (comparison.baseline, comparison.model)
    metrics, groups = pairing.differences(pairs, candidate)
    by_side = dict(zip(names, rows, strict=True))
    calibration = _known(pairing.calibration(side, of) for side, of in by_side.items())
    outputs = _known(pairing.output_length(side, of) for side, of in by_side.items())
    choices = _known(pairing.choice_length(side, of) for side, of in by_side.items())
    histogram = pairing.histogram(by_side) if outputs else []
    shown = [
        {"what": one.what, "d": one.difference, "low": one.low, "high": one.high, "n": one.n}
        for one in metrics
        if one.low is not None
    ]
    return {
        "metrics": metrics,
        "groups": groups,
        "metric_chart": charts.differences(shown, comparison.tolerance) if shown else "",
        "calibration": calibration,
        "reliability": charts.reliability(
            [
                {"side": one.side, "confidence": c, "right": r, "n": n}
                for one in calibration
                for c, r, n in one.points
            ]
        )
        if calibration
        else "",
        "lengths": outputs or choices,
        "length_chart": charts.lengths(histogram) if outputs else "",
        "histogram": histogram,
    }


_T = TypeVar("_T")


def _known(found: Iterable[_T | None]) -> list[_T]:
    return [one for one in found if one is not None]
