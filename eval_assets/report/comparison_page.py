"""A cell against another's: the verdict, where the two differ, and the items that do."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from eval_assets.report import charts, naming, pairing
from eval_assets.report.cell_page import Cursor
from eval_assets.report.index_page import MARKS
from eval_assets.report.items import data_files, folder_of
from eval_assets.report.pairs import Pair
from eval_assets.report.reading import Comparison, Evaluation, Results, read_samples
from eval_assets.report.rendering import render
from eval_assets.report.writing import Page, plain
from eval_assets.suite.spec import MetricSpec


def comparison_page(results: Results, comparison: Comparison, cursor: Cursor, items: int, text: int) -> Page:
    """The page of a recorded comparison, with up to `items` of the items that differ (0: numbers only)."""
    path = naming.comparison_page(comparison.dataset, comparison.model)
    baseline, candidate = results.sides(comparison)
    current = results.current.get((comparison.dataset, comparison.model))
    replaced = current is not None and current.evaluation_id != comparison.candidate_evaluation
    declared = results.declared.get(comparison.dataset, ())
    links = _links(results, path, comparison.dataset, (comparison.baseline, comparison.model))
    identities = [baseline and baseline.identity, candidate and candidate.identity]

    def files() -> Iterator[tuple[str, bytes]]:
        rows = None
        if items and baseline is not None and candidate is not None:
            with cursor() as connection:
                rows = [read_samples(connection, side) for side in (baseline, candidate)]
        sides = [one for one in (baseline, candidate) if one is not None]
        yield from _files(
            path, comparison, sides, rows, declared, items, text, links, replaced=replaced, recorded=True
        )

    return Page(path, [plain(comparison), identities, declared, replaced, links, items, text], files)


def pair_page(results: Results, pair: Pair, cursor: Cursor, items: int, text: int) -> Page:
    """The page of two versions that nobody has judged against each other: compared when it is written.

    The tolerance is the one that the candidate was judged with on this benchmark, if it was.
    """
    models = (pair.baseline.model, pair.candidate.model)
    path = naming.pair_page(pair.dataset, models[1], models[0])
    judged = results.comparisons.get((pair.dataset, models[1]))
    tolerance = None if judged is None else judged.tolerance
    declared = results.declared.get(pair.dataset, ())
    links = _links(results, path, pair.dataset, models)
    identities = [pair.baseline.identity, pair.candidate.identity]

    def files() -> Iterator[tuple[str, bytes]]:
        sides = [pair.baseline, pair.candidate]
        with cursor() as connection:
            rows = [read_samples(connection, side) for side in sides]
        try:
            comparison = pairing.compared(pair, rows, declared, tolerance)
        except ValueError as error:
            yield (
                path,
                render(
                    "uncompared.html.j2",
                    path,
                    dataset=pair.dataset,
                    model=models[1],
                    baseline=models[0],
                    why=str(error),
                    **links,
                ),
            )
            return
        yield from _files(
            path, comparison, sides, rows, declared, items, text, links, replaced=False, recorded=False
        )

    return Page(path, ["pair", identities, declared, tolerance, links, items, text], files)


def _links(results: Results, path: str, dataset: str, models: Sequence[str]) -> dict[str, dict[str, str]]:
    """The pages of both versions and of their cells, as this page writes them; empty where there is none."""
    model_page, cell_page = {}, {}
    for model in models:
        place = (dataset, model)
        known = place in results.current or place in results.damaged_cells
        cell_page[model] = naming.link(path, naming.cell_page(dataset, model)) if known else ""
        known = model in results.models
        model_page[model] = naming.link(path, naming.model_page(model)) if known else ""
    return {"model_page": model_page, "cell_page": cell_page}


def _files(
    path: str,
    comparison: Comparison,
    sides: Sequence[Evaluation],
    rows: Sequence[Sequence[pairing.Sample]] | None,
    declared: Sequence[MetricSpec],
    items: int,
    text: int,
    links: Mapping[str, Any],
    *,
    replaced: bool,
    recorded: bool,
) -> Iterator[tuple[str, bytes]]:
    """The page, after its data. `sides` are the evaluations that are there, `rows` the samples of both."""
    found: dict[str, Any] = {"data": "", "shown": 0, "differing": 0, "metrics": [], "groups": []}
    found |= {"metric_chart": "", "calibration": [], "reliability": "", "lengths": [], "length_chart": ""}
    found["histogram"] = []
    pairs = [] if rows is None else pairing.pairs_of(*rows)
    candidate = sides[-1] if sides and sides[-1].model == comparison.model else None
    if pairs and rows is not None and candidate is not None:
        listed, differing = pairing.listed_pairs(pairs, candidate, comparison, items, text)
        data = ""
        for name, content in data_files(folder_of(path), listed):
            yield name, content
            data = name
        found |= {
            "data": naming.link(path, data) if listed.items else "",
            "shown": len(listed.items),
            "differing": differing,
            **_analysed(comparison, candidate, pairs, rows, declared),
        }
    yield (
        path,
        render(
            "comparison.html.j2",
            path,
            comparison=comparison,
            higher=candidate is None or candidate.higher_is_better,
            readable=len(sides) == 2,
            included=bool(items),
            replaced=replaced,
            recorded=recorded,
            marks=MARKS,
            least=pairing.LEAST,
            sides=sides,
            **links,
            **found,
        ),
    )


def _analysed(
    comparison: Comparison,
    candidate: Evaluation,
    pairs: Sequence[tuple[pairing.Sample, pairing.Sample]],
    rows: Sequence[Sequence[pairing.Sample]],
    declared: Sequence[MetricSpec],
) -> dict[str, Any]:
    """What is found beyond the recorded numbers, with its charts."""
    names = (comparison.baseline, comparison.model)
    metrics, groups = pairing.differences(pairs, candidate, declared)
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
