"""``python -m eval_assets`` (or ``eval-assets``): everything that can be done from a terminal."""

import os
import signal
import sys

import click

from eval_assets.commands.benchmarks import benchmarks
from eval_assets.commands.cluster import estimate, pod
from eval_assets.commands.deciding import forget, gate, retry, rollback
from eval_assets.commands.doctor import doctor
from eval_assets.commands.evaluating import evaluate, list_models, register
from eval_assets.commands.publishing import export, import_results, metrics, report
from eval_assets.commands.results import compare, leaderboard, samples, sql
from eval_assets.commands.retention import retention
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

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use, not of the alphabet


@click.group(cls=_OneLineErrors)
def main() -> None:
    """Continuous evaluation of language models.

    EVAL_* variables set it up (docs/configuration.md); every command has --json (docs/cli.md).
    """


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what completes commands and keys in a shell: eval "$(eval-assets completion bash)"."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "eval-assets", "_EVAL_ASSETS_COMPLETE").source())


for _command in (
    evaluate, leaderboard, compare, samples, sql,
    register, list_models, benchmarks,
    gate, rollback, retry, forget,
    report, import_results, export, metrics, retention,
    pod, estimate, doctor, completion,
):  # fmt: skip
    main.add_command(_command)


def run() -> None:
    """The entry point: `main`, then an exit that leaves no work to the interpreter.

    torch and DuckDB in one process end with a page of leak warnings from DuckDB's binding otherwise.
    """
    status = 0
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # who reads has seen enough, as `head` does
        status = 141
    os._exit(status)


if __name__ == "__main__":
    run()
