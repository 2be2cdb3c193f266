"""A version on a benchmark: its score and what it rests on, every metric by group, and its samples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

import duckdb

from eval_assets.report import naming
from eval_assets.report.index_page import MARKS
from eval_assets.report.items import data_files, folder_of, listed_samples
from eval_assets.report.pairs import Pair, page_of
from eval_assets.report.reading import Evaluation, Metric, Results, read_metrics, read_samples
from eval_assets.report.rendering import render
from eval_assets.report.writing import Page, plain

Cursor: TypeAlias = Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]


@dataclass(frozen=True, slots=True)
class Groups:
    """Metrics by group: a row a group, in each the metrics in the order of `metrics`."""

    metrics: Sequence[str]
    rows: Sequence[tuple[str, int, Sequence[Metric | None]]]


def by_group(metrics: Sequence[Metric], primary: str) -> tuple[list[Metric], Groups]:
    """The metrics over all items, the primary one first, and those of the groups, in the groups' order."""
    whole = sorted(
        (one for one in metrics if one.group is None), key=lambda one: (one.metric != primary, one.metric)
    )
    names = sorted(
        {one.metric for one in metrics if one.group is not None}, key=lambda name: (name != primary, name)
    )
    found: dict[str, dict[str, Metric]] = {}
    for one in metrics:
        if one.group is not None:
            found.setdefault(one.group, {})[one.metric] = one
    rows = [
        (group, max(one.n for one in of.values()), [of.get(name) for name in names])
        for group, of in sorted(found.items())
    ]
    return whole, Groups(names, rows)


def lineage(cell: Evaluation, ui: str) -> list[tuple[str, str, str]]:
    """``(what, value, link)``: all that the score depends on, so that it can be had again."""
    packages: Mapping[str, str] = cell.of_record("packages") or {}
    rows = [
        ("Evaluation", cell.evaluation_id, ""),
        ("Computed by", cell.run_id, f"{ui}/runs/{cell.run_id}" if cell.run_id and ui else ""),
        ("Finished", None if cell.finished_at is None else f"{cell.finished_at:%Y-%m-%d %H:%M:%S %Z}", ""),
        ("Model digest", cell.model_digest, ""),
        ("Benchmark version", cell.benchmark_version, ""),
        ("Benchmark fingerprint", cell.benchmark_fingerprint, ""),
        ("Fingerprint", cell.fingerprint, ""),
        ("Content digest", cell.content_digest, ""),
        ("Scoring version", cell.scoring_version, ""),
        ("Code revision", cell.git_revision, ""),
        ("Seed", cell.seed, ""),
        ("Engine", ", ".join(filter(None, [cell.engine, cell.device, cell.dtype])), ""),
        ("Python", cell.python, ""),
        ("Packages", ", ".join(f"{name} {version}" for name, version in sorted(packages.items())), ""),
        ("Origin", cell.of_record("origin"), ""),
    ]
    return [(what, str(value), link) for what, value, link in rows if value not in (None, "")]


def cell_page(
    results: Results,
    cell: Evaluation,
    cursor: Cursor,
    samples: int,
    text: int,
    ui: str,
    pairs: Sequence[Pair] = (),
) -> Page:
    """The page of a cell's current evaluation, with its first `samples` samples (0: none, and it says so).

    `pairs` are those that it is the candidate of and that have a page.
    """
    path = naming.cell_page(cell.dataset, cell.model)
    against = results.verdict_on(cell)
    earlier = [
        {"id": one.evaluation_id, "finished": one.finished_at, "value": one.value if one.valid else None,
         "low": one.ci_low, "high": one.ci_high, "n": one.samples, "run": one.run_id}
        for one in results.by_model[cell.model]
        if one.dataset == cell.dataset and one.evaluation_id != cell.evaluation_id
    ]  # fmt: skip
    asked = min(samples, cell.samples)
    damaged = [one for one in results.damaged_of.get(cell.model, ()) if one.dataset == cell.dataset]
    inputs = [
        cell.identity,
        list(map(plain, damaged)),
        plain(against),
        earlier,
        asked,
        text,
        ui,
        cell.model in results.deleted,
        [one.baseline.model for one in pairs],
    ]

    def files() -> Iterator[tuple[str, bytes]]:
        folder = folder_of(path)
        data = ""
        with cursor() as connection:
            metrics = read_metrics(connection, cell)
            rows = read_samples(connection, cell, asked) if asked else []
        if rows:
            for name, content in data_files(folder, listed_samples(rows, cell.primary_metric, text)):
                yield name, content
                data = name
        whole, groups = by_group(metrics, cell.primary_metric)
        yield (
            path,
            render(
                "cell.html.j2",
                path,
                cell=cell,
                against=against,
                comparison=naming.link(path, naming.comparison_page(cell.dataset, cell.model))
                if against
                else "",
                model_page=naming.link(path, naming.model_page(cell.model)),
                marks=MARKS,
                metrics=whole,
                groups=groups,
                lineage=lineage(cell, ui),
                earlier=earlier,
                ui=ui,
                shown=len(rows),
                data=naming.link(path, data) if data else "",
                deleted=cell.model in results.deleted,
                damaged=damaged,
                pairs=[(one.baseline.model, naming.link(path, page_of(one))) for one in pairs],
            ),
        )

    return Page(path, inputs, files)
