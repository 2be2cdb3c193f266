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

REPORT = "reports/index.html"
"""Where the report is, in the store."""


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
    Exits with 4 where a run failed; the others' results are kept.
    """
    from eval_assets.commands.ad_hoc import limited, opened
    from eval_assets.commands.runs import RunFailedError
    from resources.errors import UserError

    if model is not None:
        with opened(model, key=key, limit=limit) as (runs, version):
            evaluated = evaluate_grid(out, runs, [version], benchmarks, force=force)
            nexts = _after_one_model(evaluated)
    elif key is not None:
        raise UserError("--key is for a model that is named as a folder: evaluate FOLDER --key name@version")
    else:
        with limited(limit):
            evaluated = evaluate_grid(out, None, models, benchmarks, force=force)
            nexts = _after_a_grid(evaluated)
    if evaluated["leaderboard"]:
        _say_where(out, evaluated, nexts)
    out.document(evaluated)
    if evaluated["failures"]:
        raise RunFailedError("; ".join(evaluated["failures"]))


def evaluate_grid(
    out: Output, runs: "Runs | None", patterns: Sequence[str], benchmarks: Sequence[str], *, force: bool
) -> dict[str, Any]:
    """Evaluate what is missing, with a progress bar, then show the leaderboard and verdicts.

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
        for verdict in verdicts:
            show_verdict(out, verdict)
    except UserError as error:
        failures.append(str(error))
    return {
        "seconds": time.monotonic() - started, "models": models, "benchmarks": datasets,
        "evaluated": len(todo), "leaderboard": found, "verdicts": verdicts, "failures": failures,
        "report": f"{runs.settings.store}/{REPORT}",
    }  # fmt: skip


def show_verdict(out: Output, verdict: Mapping[str, Any]) -> None:
    """A version's verdict, what followed from it, and why."""
    against = f" against {verdict['baseline']}" if verdict["baseline"] else ""
    action = f", {verdict['action']}" if verdict["action"] else ""
    colour = {"failed": "red", "undecided": "yellow"}.get(verdict["status"], "green")
    out.say(f"{verdict['model']}{against}: {verdict['status']}{action}", style=colour)
    out.say(f"  {verdict['reason']}")


def _say_where(out: Output, evaluated: Mapping[str, Any], nexts: Mapping[str, str]) -> None:
    """Where everything is and what to do `nexts` (command -> what for); the last line is the report."""
    store = str(evaluated["report"]).removesuffix(REPORT)
    width = max(map(len, nexts))
    lines = [
        f"\nDone in {evaluated['seconds']:,.0f} s. Everything is in {store.rstrip('/')}:",
        "  evaluations/<benchmark>/<model>/<id>/   samples.parquet, metrics.parquet, evaluation.json",
        "  catalog.duckdb                          the same as tables for DuckDB",
        "\nTry next:",
        *(f"  {command:<{width}}   {what}".rstrip() for command, what in nexts.items()),
        f"\nThe report: {evaluated['report']}",
    ]
    out.say("\n".join(lines))


def _after_a_grid(evaluated: Mapping[str, Any]) -> dict[str, str]:
    from resources.settings import Settings

    settings = Settings.from_environment()
    set_here = {"EVAL_LIMIT": settings.limit, "EVAL_MODELS": settings.models}
    given = " ".join(f"{name}={value}" for name, value in set_here.items() if value is not None)
    model, dataset = evaluated["models"][-1], (evaluated["benchmarks"] or ["hellaswag"])[0]
    nexts = {
        "make report": "opens the report",
        "make ui": "the grid in Dagster's web UI",
        'Q="select * from comparisons" make -s sql': "",
        f"EVAL_LIMIT=500 make evaluate MODELS='{model}' BENCHMARKS={dataset}": "",
    }
    if given:
        nexts |= {
            f"export {given}": "asks the same in 'make ui', 'gate' and 'make evaluate' as was asked here"
        }
    return nexts


def _after_one_model(evaluated: Mapping[str, Any]) -> dict[str, str]:
    program = click.get_current_context().find_root().info_name
    model, dataset = evaluated["models"][-1], (evaluated["benchmarks"] or ["hellaswag"])[0]
    return {
        f"{program} samples {model} {dataset}": "what it answered",
        f"{program} compare {model} NAME@VERSION": "item by item with another one that was evaluated",
        f"{program} report --open": "opens the report",
    }
