"""``leaderboard``, ``compare``, ``samples`` and ``sql``: what evaluations came to."""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from eval_assets.commands.output import (
    BENCHMARK,
    MODEL,
    Output,
    benchmarks_option,
    models_option,
    output,
    printable,
)
from resources import interrupts

if TYPE_CHECKING:
    import duckdb

    from resources.catalog import Catalog

SHOWN_ROWS = 1000
"""Rows of a query that a terminal is shown; ``--json`` and ``export`` give all."""


def fresh_catalog() -> "Catalog":
    """The catalogue of EVAL_STORE, brought up to date."""
    from resources.catalog import Catalog
    from resources.results import ResultsStore
    from resources.settings import Settings

    catalog = Catalog(ResultsStore(Settings.from_environment().store))
    for note in catalog.refresh().notes:
        click.echo(f"note: {printable(note)}", err=True)
    return catalog


@click.command()
@models_option
@benchmarks_option
@output
def leaderboard(out: Output, models: Sequence[str], benchmarks: Sequence[str]) -> None:
    """Show the current evaluation of each cell, against the version in production."""
    from eval_assets.leaderboard import leaderboard_cells
    from resources.errors import UserError
    from resources.settings import Settings

    every = leaderboard_cells(fresh_catalog())
    if not every:
        raise UserError(
            f"no evaluations in {Settings.from_environment().store} yet: run 'make demo' or 'make evaluate'"
        )
    chosen = [
        cell
        for cell in every
        if any(fnmatchcase(cell["model"], pattern) for pattern in models)
        and (not benchmarks or any(fnmatchcase(cell["benchmark"], pattern) for pattern in benchmarks))
    ]
    if not chosen:
        raise UserError(f"no evaluation of {', '.join(models)} on {', '.join(benchmarks) or 'any benchmark'}")
    leaderboard_table(out, chosen)
    out.document(chosen)


def leaderboard_table(out: Output, cells: Sequence[Mapping[str, Any]]) -> None:
    """Show `leaderboard_cells` as a table, a section a benchmark."""
    from eval_assets.leaderboard import COLUMNS, row_of

    rows = [row_of(cell).cells() for cell in cells]
    out.table(
        COLUMNS,
        rows,
        right=("score", "95% interval", "n"),
        sections=lambda n: n + 1 == len(rows) or rows[n + 1][0] != rows[n][0],
    )


@click.command()
@click.argument("candidate", type=MODEL)
@click.argument("baseline", type=MODEL)
@benchmarks_option
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    help="how much worse is good enough, in points of the metric; by default as in EVAL_MODELS or as judged",
)
@output
def compare(
    out: Output, candidate: str, baseline: str, benchmarks: Sequence[str], tolerance: float | None
) -> None:
    """Compare two versions, sample by sample, on every benchmark that both were evaluated on."""
    from eval_assets.grid.cells import Cells
    from eval_assets.grid.comparing import COLUMNS, compare_current, shown
    from eval_assets.grid.tracking import tracked
    from resources.keys import ModelKey
    from resources.results import ResultsStore
    from resources.settings import Settings

    settings = Settings.from_environment()
    for key in (candidate, baseline):
        ModelKey.parse(key)
    cells = Cells(settings, ResultsStore(settings.store), tracked(settings))
    compared, missing = compare_current(cells, fresh_catalog(), candidate, baseline, benchmarks, tolerance)
    rows = [one.as_row() for one in compared]
    out.say(f"{candidate} against {baseline}")
    out.table(COLUMNS, [shown(row) for row in rows])
    for one in compared:
        dtypes = [side["engine"].get("dtype") for side in (one.candidate, one.baseline)]
        if dtypes[0] != dtypes[1]:
            out.say(f"note: {one.dataset} compares {dtypes[0]} with {dtypes[1]}", style="yellow")
    for dataset, reason in missing.items():
        out.say(f"not compared on {dataset}: {reason}")
    out.document({"candidate": candidate, "baseline": baseline, "compared": rows, "missing": missing})


@click.command()
@click.argument("model", type=MODEL)
@click.argument("benchmark", type=BENCHMARK)
@click.argument("sample_id", required=False)
@click.option("--group", help="only samples of this group")
@click.option("--metric", help="the score to show and filter by; by default the primary metric")
@click.option("--below", type=float, help="only samples whose score is below this")
@click.option("--above", type=float, help="only samples whose score is above this")
@click.option("--errors", is_flag=True, help="only samples that could not be scored")
@click.option("--find", help="only samples with this text in prompt, output, choices or references")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="samples to show")
@output
def samples(
    out: Output,
    model: str,
    benchmark: str,
    sample_id: str | None,
    group: str | None,
    metric: str | None,
    below: float | None,
    above: float | None,
    errors: bool,
    find: str | None,
    limit: int,
) -> None:
    """Browse what a model answered: a line a sample, or all of one (by the beginning of its id)."""
    from resources.errors import UserError

    catalog = fresh_catalog()
    with catalog.connect() as connection:
        cell = connection.execute(
            "SELECT evaluation_id, metric FROM leaderboard WHERE model = ? AND dataset = ?",
            [model, benchmark],
        ).fetchone()
        if cell is None:
            raise UserError(
                f"{model} has no evaluation on {benchmark}: 'leaderboard' lists what there is, "
                "'evaluate' makes one"
            )
        evaluation, primary = cell
        query = connection.execute(
            f"""
            SELECT * EXCLUDE (scores), map_extract_value(scores, $metric) AS score, scores FROM samples
            WHERE dataset = $dataset AND model = $model AND evaluation_id = $evaluation
              AND ($sample IS NULL OR starts_with(sample_id, $sample))
              AND ($group IS NULL OR "group" = $group)
              AND ($below IS NULL OR map_extract_value(scores, $metric) < $below)
              AND ($above IS NULL OR map_extract_value(scores, $metric) > $above)
              AND (NOT $errors OR error IS NOT NULL)
              AND ($find IS NULL OR {_FOUND})
            ORDER BY "index"
            """,
            {
                "dataset": benchmark, "model": model, "metric": metric or primary, "evaluation": evaluation,
                "sample": sample_id, "group": group,
                "below": below, "above": above, "errors": errors, "find": find,
            },
        )  # fmt: skip
        names = [column[0] for column in query.description or ()]
        found = [dict(zip(names, row, strict=True)) for row in query.fetchmany(limit)]
        more = len(query.fetchall())
    if not found:
        raise UserError(f"{model} on {benchmark}: no sample like that")
    if sample_id:
        for sample in found:
            _show_whole(out, sample)
    else:
        name = metric or primary
        columns = ("sample", "group", name, "answer", "right answer", "prompt")
        out.table(columns, [_sample_row(sample) for sample in found], right=(name,))
        if more:
            out.say(f"{more:,} more: --limit, or narrow it by --group, --below, --above, --errors, --find")
    out.document(found)


_FOUND = " OR ".join(
    [f"contains(lower({column}), lower($find))" for column in ("prompt", "output")]
    + [
        f"list_bool_or([contains(lower(one), lower($find)) FOR one IN {column}])"
        for column in ("choices", '"references"')
    ]
)


def _sample_row(sample: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        sample["sample_id"],
        sample["group"] or "",
        "" if sample["score"] is None else f"{sample['score']:.4g}",
        _short(sample["error"] or _answer(sample), 40),
        _short(_right_answer(sample), 40),
        _short(sample["prompt"] or "", 60, end=True),
    )


def _answer(sample: Mapping[str, Any]) -> str:
    """What was written, or the choice that the model finds likeliest; of a text its nats."""
    from eval_assets.metrics.metric import likeliest

    likelihoods, choices = sample["loglikelihoods"] or [], sample["choices"] or []
    if sample["output"] is not None:
        return str(sample["output"])
    best = likeliest(choices, likelihoods)
    if best is not None:
        return str(choices[best])
    return f"{sum(likelihoods):,.1f} nats" if likelihoods else ""


def _right_answer(sample: Mapping[str, Any]) -> str:
    choices, target = sample["choices"] or [], sample["target"]
    if target is not None and target < len(choices):
        return str(choices[target])
    return str((sample["references"] or [""])[0])


def _short(text: str, width: int, *, end: bool = False) -> str:
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    return "…" + line[1 - width :] if end else line[: width - 1] + "…"


def _show_whole(out: Output, sample: Mapping[str, Any]) -> None:
    if out.as_json:
        return
    out.say(f"sample {sample['sample_id']}, item {sample['index']}", style="bold")
    for name in ("group", "cluster", "error", "finish_reason", "prompt_tokens", "output_tokens"):
        if sample[name] not in (None, 0):
            out.say(f"{name.replace('_', ' ')}: {sample[name]}")
    for metric, value in (sample["scores"] or {}).items():
        out.say(f"{metric}: {value:.6g}")
    if sample["prompt"] is None:
        out.say("its texts were removed (docs/retention.md)", style="yellow")
    else:
        out.say("prompt", style="bold")
        out.say(sample["prompt"])
    if sample["choices"]:
        out.say("choices", style="bold")
        likelihoods = sample["loglikelihoods"] or [None] * len(sample["choices"])
        for number, (choice, likelihood) in enumerate(zip(sample["choices"], likelihoods, strict=False)):
            mark = "*" if number == sample["target"] else " "
            nats = "" if likelihood is None else f"{likelihood:10.4f} nats  "
            out.say(f"{mark} {nats}{choice}")
    elif sample["loglikelihoods"]:
        out.say(f"log-likelihood: {sum(sample['loglikelihoods']):.4f} nats")
    if sample["output"] is not None:
        out.say("output", style="bold")
        out.say(sample["output"])
    if sample["references"]:
        out.say("references", style="bold")
        for reference in sample["references"]:
            out.say(reference)
    out.say("")


@click.command()
@click.argument("query", required=False)
@output
def sql(out: Output, query: str | None) -> None:
    """Run one query on the results, or open a shell where none is given."""
    import duckdb

    from resources.errors import UserError

    with fresh_catalog().connect() as connection:
        if query is None:
            _shell(out, connection)
            return
        try:
            result = connection.execute(query)
            names = [column[0] for column in result.description or ()]
            rows = result.fetchall() if out.as_json else result.fetchmany(SHOWN_ROWS + 1)
        except duckdb.Error as error:
            raise UserError(f"SQL: {str(error).splitlines()[0]}") from error
    _show_rows(out, names, rows)
    out.document([dict(zip(names, row, strict=True)) for row in rows])


def _shell(out: Output, connection: "duckdb.DuckDBPyConnection") -> None:
    import duckdb

    relations = [row[0] for row in connection.execute(_RELATIONS).fetchall()]
    out.say(f"Tables and views: {', '.join(relations)}.  End with ; — leave with Ctrl-D.")
    for query in _queries():
        try:
            result = connection.execute(query)
            names = [column[0] for column in result.description or ()]
            _show_rows(out, names, result.fetchmany(SHOWN_ROWS + 1))
        except duckdb.Error as error:
            out.say(f"SQL: {error}", style="red")


_RELATIONS = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'main' ORDER BY 1"


def _show_rows(out: Output, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    if names:
        out.table(names, [[_cell(value) for value in row] for row in rows[:SHOWN_ROWS]])
    if len(rows) > SHOWN_ROWS and not out.as_json:
        out.say(f"the first {SHOWN_ROWS:,} rows; 'export' and --json give all")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "" if value is None else str(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _queries() -> Iterator[str]:
    """Each query that is typed, up to its semicolon."""
    with suppress(ImportError):  # importing it gives input() line editing and a history
        import readline  # noqa: F401
    buffered: list[str] = []
    while True:
        try:
            line = input("sql> " if not buffered else "...> ") if sys.stdin.isatty() else input()
        except EOFError:
            if buffered:
                yield "\n".join(buffered)
            return
        except KeyboardInterrupt:
            if interrupts.received() is signal.SIGTERM:
                raise
            buffered.clear()
            print()
            continue
        if line.strip() == ".tables" and not buffered:
            yield _RELATIONS
            continue
        buffered.append(line)
        if line.rstrip().endswith(";"):
            yield "\n".join(buffered)
            buffered.clear()
