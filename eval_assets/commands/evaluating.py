"""``register``, ``evaluate`` and ``models``: what there is to evaluate, and evaluating it."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from eval_assets.commands.output import (
    MODEL,
    MODELS,
    Output,
    benchmark_named,
    benchmarks_option,
    models_option,
    output,
)

if TYPE_CHECKING:
    from eval_assets.commands.runs import Runs


@click.command()
@click.argument("models", nargs=-1, type=MODELS)
@output
def register(out: Output, models: Sequence[Sequence[str]]) -> None:
    """Verify, measure and record model versions (name@version, * for any text; none: all)."""
    from eval_assets.commands.runs import Runs

    patterns = [pattern for given in models for pattern in given]
    runs = Runs()
    keys = runs.models(patterns)
    if not patterns:
        for skipped in runs.registry.versions().skipped:
            out.say(f"skipped {skipped.place}: {skipped.reason}", style="yellow")
    runs.register(keys)
    records = {key: record for key in keys if (record := runs.store.model_version(key)) is not None}
    out.table(_MODEL_COLUMNS, [_model_row(key, record) for key, record in records.items()])
    out.document(list(records.values()))


@click.command("models")
@models_option
@output
def list_models(out: Output, models: Sequence[str]) -> None:
    """List the registered model versions, what they are and how they were judged."""
    from fnmatch import fnmatchcase

    from eval_assets.commands.results import fresh_catalog
    from resources.errors import UserError
    from resources.results import ResultsStore
    from resources.settings import Settings

    store, catalog = ResultsStore(Settings.from_environment().store), fresh_catalog()
    verdicts = store.verdicts()
    with catalog.connect() as connection:
        cells = dict(connection.execute("SELECT model, count(*) FROM leaderboard GROUP BY model").fetchall())
    found = []
    for key, record in store.model_versions().items():
        if any(fnmatchcase(key, pattern) for pattern in models):
            verdict = verdicts.get(key, {}).get("status")
            found.append({**record, "evaluations": cells.get(key, 0), "verdict": verdict})
    if not found:
        raise UserError(
            f"no registered model version matches {', '.join(models)} in {store.root}: run 'register' first"
        )
    rows = [(*_model_row(one["key"], one), str(one["evaluations"]), one["verdict"] or "") for one in found]
    out.table((*_MODEL_COLUMNS, "benchmarks evaluated", "verdict"), rows, right=("benchmarks evaluated",))
    out.document(found)


_MODEL_COLUMNS = (
    "model version", "architecture", "parameters", "weights", "context", "chat template", "digest",
)  # fmt: skip


def _model_row(key: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        key + (" (deleted)" if record.get("deleted") else ""),
        record["architecture"],
        f"{record['parameters']:,}",
        f"{record['weight_bytes'] / 1e6:,.0f} MB",
        f"{record['context_length']:,}",
        "yes" if record["chat_template"] else "no",
        record["digest"][:12],
    )


@click.command()
@click.argument("model", required=False, type=MODEL)
@models_option
@benchmarks_option
@click.option(
    "--limit", type=click.IntRange(1), help="items of each benchmark; by default EVAL_LIMIT, or all"
)
@click.option("--key", help="the key that MODEL gets, name@version, where it is a folder")
@click.option("--force", is_flag=True, help="evaluate again what is committed already")
@output
def evaluate(
    out: Output,
    model: str | None,
    models: Sequence[str],
    benchmarks: Sequence[str],
    limit: int | None,
    key: str | None,
    force: bool,
) -> None:
    """Evaluate what is missing or stale, then show the leaderboard.

    MODEL is a model's folder, a name@version of the registry, or org/name of the Hub, and needs no Dagster
    instance. Without it, --models of the registry are evaluated on the one in DAGSTER_HOME, and judged.
    """
    from eval_assets.commands.ad_hoc import limited, opened
    from resources.errors import UserError

    if model is not None:
        with opened(model, key=key, limit=limit) as (runs, version):
            evaluated = evaluate_grid(out, runs, [version], benchmarks, force=force)
    elif key is not None:
        raise UserError("--key is for a model that is named as a folder: evaluate FOLDER --key name@version")
    else:
        with limited(limit):
            evaluated = evaluate_grid(out, None, models, benchmarks, force=force)
    out.document(evaluated)
    if evaluated["failures"]:
        raise UserError("; ".join(evaluated["failures"]))


def evaluate_grid(
    out: Output, runs: "Runs | None", patterns: Sequence[str], benchmarks: Sequence[str], *, force: bool
) -> dict[str, Any]:
    """Evaluate what is missing, with a progress bar, then show the leaderboard and where things are.

    `runs` are those of the instance in DAGSTER_HOME, if not given. Returns what was done as plain data, with
    a line in ``failures`` for each run that failed.
    """
    from eval_assets.automation import no_versions_message
    from eval_assets.commands.bar import Bar
    from eval_assets.commands.results import fresh_catalog, leaderboard_table
    from eval_assets.commands.runs import RunFailedError, Runs
    from eval_assets.evaluations import progress_to
    from eval_assets.leaderboard import leaderboard_cells
    from eval_assets.partitions import SUITE
    from resources.errors import UserError

    started = time.monotonic()
    datasets = [benchmark_named(key) for key in benchmarks] or list(SUITE)
    runs = runs or Runs()
    models = runs.models(patterns)
    if not models:
        raise UserError(no_versions_message(runs.registry))
    for key in runs.register(models, only_changed=True):
        out.say(f"registered {key}")
    failures: list[str] = []
    for key, failure in runs.prepare(datasets).items():
        if failure is None:
            out.say(f"prepared   {key}")
        else:
            failures.append(failure)
            datasets.remove(key)
    cells = runs.cells(models, datasets)
    requests = runs.missing(cells, force=force)
    asked = {(request.model, dataset) for request in requests for dataset in request.datasets}
    todo = {cell: benchmark for cell, benchmark in cells.items() if (cell.model, cell.dataset) in asked}
    rest = {cell: benchmark for cell, benchmark in cells.items() if cell not in todo}
    elsewhere = 0 if force else len(rest) - len(runs.finished(rest))
    if elsewhere:
        out.say(f"{elsewhere} of {len(cells)} cells are being evaluated by other runs.")
    elif not todo:
        out.say(f"All {len(cells)} cells are evaluated already: nothing to do.")
    if todo:
        new = {cell: b for cell, b in todo.items() if force or runs.store.committed(cell) is None}
        items = sum(benchmark.count for benchmark in new.values())
        out.say(f"{len(new)} of {len(cells)} cells to evaluate, {items:,} samples.")
        if len(new) < len(todo):
            out.say(f"{len(todo) - len(new)} cells are in the store already and are only recorded.")
        with Bar(out.console, len(new), items, runs.work_left(new)) as bar, progress_to(bar.update):
            for request in requests:
                try:
                    runs.evaluate(request, force=force)
                except RunFailedError as error:
                    failures.append(str(error))
    verdicts: list[dict[str, Any]] = []
    try:
        verdicts += runs.judge(models)
    except RunFailedError as error:
        failures.append(str(error))
    found: list[dict[str, Any]] = []
    try:
        runs.refresh_leaderboard()
        found = leaderboard_cells(fresh_catalog())
        leaderboard_table(out, found)
        _show_verdicts(out, verdicts)
    except UserError as error:
        failures.append(str(error))
    seconds = time.monotonic() - started
    _say_where(out, runs, seconds, models[-1], datasets[0] if datasets else "hellaswag")
    return {
        "seconds": seconds, "evaluated": len(todo), "leaderboard": found, "verdicts": verdicts,
        "failures": failures,
    }  # fmt: skip


def _show_verdicts(out: Output, verdicts: Sequence[Mapping[str, Any]]) -> None:
    for verdict in verdicts:
        against = f" against {verdict['baseline']}" if verdict["baseline"] else ""
        colour = {"failed": "red", "undecided": "yellow"}.get(verdict["status"], "green")
        out.say(f"{verdict['model']}{against}: {verdict['status']}, {verdict['action']}", style=colour)
        out.say(f"  {verdict['reason']}")


def _say_where(out: Output, runs: "Runs", seconds: float, model: str, dataset: str) -> None:
    out.say(
        f"\nDone in {seconds:,.0f} s. Everything is in {runs.settings.store}:\n"
        "  evaluations/<benchmark>/<model>/<id>/   samples.parquet, metrics.parquet, evaluation.json\n"
        "  catalog.duckdb                          the same as tables for DuckDB\n"
        "  reports/index.html                      the report\n"
        "\nTry next:\n"
        "  make report                             open the report\n"
        "  make ui                                 the grid in Dagster's web UI\n"
        '  Q="select * from comparisons" make -s sql\n'
        f"  EVAL_LIMIT=500 make evaluate MODELS='{model}' BENCHMARKS={dataset}"
    )
