"""``python -m eval_assets``: register models, evaluate them, look at the results."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import click

from resources import interrupts
from resources.errors import UserError


class _OneLineErrors(click.Group):
    """Prints what a user can put right as one line, and exits with status 2; 130 or 143 if told to end."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            # What Ctrl-C does, done for SIGTERM, too; Dagster does the same while it executes a run.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
            with interrupts.watching():
                return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("\ninterrupted: what is finished is kept; run it again to go on", err=True)
            sys.exit(interrupts.exit_status())


@click.group(cls=_OneLineErrors)
def main() -> None:
    """Continuous evaluation of language models. EVAL_* variables set it up: docs/configuration.md."""


@main.command()
@click.argument("models", nargs=-1)
def register(models: tuple[str, ...]) -> None:
    """Verify, measure and record model versions (name@version, * for any text; none: all)."""
    from eval_assets.terminal import register_models

    register_models(models)


@main.command()
@click.option("--models", default="*", help="name@version, comma-separated; * stands for any text")
@click.option("--benchmarks", default="", help="keys, comma-separated; none: all")
@click.option("--force", is_flag=True, help="evaluate again what is committed already")
def evaluate(models: str, benchmarks: str, force: bool) -> None:
    """Evaluate what is missing or stale of models x benchmarks, then show the leaderboard."""
    from eval_assets.terminal import evaluate_grid

    evaluate_grid(_split(models), _split(benchmarks), force=force)


@main.command()
@click.argument("model")
@click.option("--run", is_flag=True, help="first evaluate and judge what is missing")
@click.option("--summary", type=click.Path(path_type=Path), help="append a Markdown summary to this file")
@click.option("--junit", type=click.Path(path_type=Path), help="write a JUnit file")
def gate(model: str, run: bool, summary: Path | None, junit: Path | None) -> None:
    """Has a version passed? Exits with 0 (passed), 1 (failed) or 2 (not decided), for a CI."""
    from eval_assets import deciding

    sys.exit(deciding.gate(model, run=run, summary=summary, junit=junit))


@main.command()
@click.argument("candidate")
@click.argument("baseline")
@click.option("--benchmarks", default="", help="keys, comma-separated; none: all")
def compare(candidate: str, baseline: str, benchmarks: str) -> None:
    """Compare two versions, sample by sample."""
    from eval_assets import deciding

    deciding.compare_versions(candidate, baseline, _split(benchmarks))


@main.command()
@click.argument("name")
@click.option("--to", "version", help="the version; by default the one that was in production before")
def rollback(name: str, version: str | None) -> None:
    """Put the version before back into production."""
    from eval_assets import deciding

    deciding.rollback(name, version)


@main.command()
@click.argument("model")
@click.option("--benchmarks", default="", help="keys, comma-separated; none: all")
def retry(model: str, benchmarks: str) -> None:
    """Have the automation try again what it gave up of a model version or benchmark."""
    from eval_assets import deciding

    deciding.retry(model, _split(benchmarks))


@main.command()
@click.argument("model")
def forget(model: str) -> None:
    """Remove the partition of a version that is deleted in its registry; its results stay."""
    from eval_assets import deciding

    deciding.forget(model)


@main.command()
@click.argument("model")
@click.option("--dataset", default="", help="one benchmark; by default the model's whole row")
def pod(model: str, dataset: str) -> None:
    """Print the Kubernetes Job that evaluating a model version would get, and why it is that large."""
    from eval_assets.pods import print_pod

    print_pod(model, dataset)


@main.command()
@click.option("--models", default="*", help="name@version, comma-separated; * stands for any text")
@click.option(
    "--benchmarks", default="", help="keys, comma-separated; none: all that the models are tracked on"
)
def estimate(models: str, benchmarks: str) -> None:
    """What evaluating would cost on the cluster, before anything is launched."""
    from eval_assets.pods import print_estimate

    print_estimate(_split(models), _split(benchmarks))


@main.command()
def leaderboard() -> None:
    """Show the leaderboard of everything that is committed."""
    from eval_assets.terminal import show_leaderboard

    show_leaderboard()


@main.command()
@click.argument("query", required=False)
def sql(query: str | None) -> None:
    """Run one query on the results, or open a shell where none is given."""
    from eval_assets.terminal import run_query, sql_shell

    _run: Callable[[], None] = (lambda: run_query(query)) if query else sql_shell
    _run()


@main.command("check-benchmarks")
def check_benchmarks() -> None:
    """Validate every benchmark's YAML and list them."""
    from eval_assets.terminal import list_benchmarks

    list_benchmarks()


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def run() -> None:
    """The entry point: `main`, then an exit that leaves no work to the interpreter.

    torch and DuckDB in one process end with a page of leak warnings from DuckDB's binding otherwise.
    """
    status = 0
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
