"""``report``, ``metrics``, ``import`` and ``export``: results for people and tools elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eval_assets.commands.output import MODEL, Output, models_option, output, split

if TYPE_CHECKING:
    from datetime import datetime


@click.command()
@click.option("--open", "opens", is_flag=True, help="open it in a browser, if it is in a local folder")
@click.option(
    "--compare",
    nargs=2,
    multiple=True,
    type=MODEL,
    metavar="CANDIDATE BASELINE",
    help="give these two versions pages of their own, item by item, from now on",
)
@output
def report(out: Output, opens: bool, compare: Sequence[tuple[str, str]]) -> None:
    """Bring the HTML report in the store's folder 'reports' up to date."""
    import webbrowser
    from dataclasses import asdict

    from rich.progress import Progress

    from eval_assets.commands.results import fresh_catalog
    from eval_assets.report.building import build_report
    from resources.results import ResultsStore
    from resources.settings import Settings

    settings = Settings.from_environment()
    fresh_catalog()
    with Progress(console=out.console, transient=True, disable=not out.console.is_terminal) as progress:
        task = progress.add_task("pages", total=None)
        built = build_report(
            ResultsStore(settings.store),
            ui=settings.ui,
            compare=compare,
            on_page=lambda done, total: progress.update(task, completed=done, total=total),
        )
    out.say(
        f"{built.index}: {built.pages_written:,} pages written, {built.pages_kept:,} as they were, "
        f"{built.pages_removed:,} removed, in {built.seconds:.1f} s"
    )
    out.document(asdict(built))
    if opens and "://" not in built.index and not webbrowser.open(Path(built.index).as_uri()):
        out.say(f"no browser could be started here: open {built.index} yourself")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="the address to listen on")
@click.option("--port", default=9464, show_default=True, type=click.IntRange(0, 65535))
@output
def metrics(out: Output, host: str, port: int) -> None:
    """Serve the results' metrics to Prometheus until Ctrl-C (docs/monitoring.md)."""
    from eval_assets.operations.monitoring import serve_metrics
    from resources.settings import Settings

    def started(listening: int) -> None:
        out.say(f"metrics on http://{host}:{listening}/metrics")
        out.document({"host": host, "port": listening})

    serve_metrics(Settings.from_environment(), host, port, started=started)


@click.command("import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--model",
    "models",
    multiple=True,
    help="the key to use, name@version; or THEIR_NAME=name@version, for one of several models",
)
@output
def import_results(out: Output, paths: Sequence[Path], models: Sequence[str]) -> None:
    """Take over results files of lm-evaluation-harness (files or folders); marked as imported."""
    from dataclasses import asdict

    from eval_assets.commands.results import fresh_catalog
    from eval_assets.exchange import import_harness
    from eval_assets.partitions import SUITE
    from resources.results import ResultsStore
    from resources.settings import Settings

    given = dict(text.rpartition("=")[::2] if "=" in text else ("*", text) for text in models)
    store = ResultsStore(Settings.from_environment().store)
    done = import_harness(
        paths,
        store,
        SUITE,
        models=given,
        on_progress=lambda path: out.say(f"reading {path}"),
    )
    out.table(
        ("benchmark", "model", "items", "samples", ""),
        [
            (one.dataset, one.model, f"{one.items:,}", f"{one.samples:,}", "new" if one.new else "known")
            for one in done.evaluations
        ],
        right=("items", "samples"),
    )
    for line in done.refused:
        out.say(f"note: {line}", style="yellow")
    fresh_catalog()
    out.document(asdict(done))


@click.group()
def export() -> None:
    """Write results for other tools."""


@export.command("lm-eval")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@models_option
@click.option("--benchmarks", default="*", help="keys or patterns, comma-separated")
@click.option("--samples/--no-samples", default=True, help="every item, too")
@output
def export_lm_eval(out: Output, folder: Path, models: Sequence[str], benchmarks: str, samples: bool) -> None:
    """Write the current evaluations as lm-evaluation-harness's results files."""
    from dataclasses import asdict

    from eval_assets.exchange import export_harness
    from eval_assets.partitions import SUITE
    from resources.results import ResultsStore
    from resources.settings import Settings

    store = ResultsStore(Settings.from_environment().store)
    done = export_harness(store, SUITE, folder, models=models, benchmarks=split(benchmarks), samples=samples)
    for path in done.files:
        out.say(str(path))
    for line in done.left_out:
        out.say(f"left out: {line}", style="yellow")
    out.document(asdict(done))


@export.command("table")
@click.argument("table")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--models", default="", help="only of these; keys or patterns, comma-separated")
@click.option("--benchmarks", default="", help="only on these; keys or patterns, comma-separated")
@click.option("--metrics", default="", help="only these; names or patterns, comma-separated")
@click.option("--since", type=click.DateTime(), help="only evaluations that finished then or later (UTC)")
@click.option("--until", type=click.DateTime(), help="only evaluations that finished before (UTC)")
@click.option("--current", is_flag=True, help="only evaluations that the leaderboard shows")
@click.option("--columns", default="", help="only these, comma-separated")
@output
def export_table_(
    out: Output,
    table: str,
    file: Path,
    models: str,
    benchmarks: str,
    metrics: str,
    since: "datetime | None",
    until: "datetime | None",
    current: bool,
    columns: str,
) -> None:
    """Write a table or view (samples, metrics, leaderboard ...) as .parquet, .arrow, .csv or .jsonl."""
    from dataclasses import asdict
    from datetime import UTC

    from eval_assets.commands.results import fresh_catalog
    from eval_assets.exchange import export_table

    written = export_table(
        fresh_catalog(),
        table,
        file,
        models=split(models),
        benchmarks=split(benchmarks),
        metrics=split(metrics),
        since=since and since.replace(tzinfo=UTC),
        until=until and until.replace(tzinfo=UTC),
        current=current,
        columns=split(columns),
    )
    out.say(f"{written.path}: {written.rows:,} rows, {written.bytes:,} bytes")
    out.document(asdict(written))
