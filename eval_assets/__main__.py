"""``python -m eval_assets`` (or ``eval-assets``): everything that can be done from a terminal."""

import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from eval_assets.commands.benchmarks import benchmarks
from eval_assets.commands.cluster import estimate, pod
from eval_assets.commands.deciding import forget, gate, retry, rollback
from eval_assets.commands.doctor import doctor
from eval_assets.commands.evaluating import evaluate, list_models, register
from eval_assets.commands.output import printable
from eval_assets.commands.publishing import export, import_results, metrics, report
from eval_assets.commands.results import compare, leaderboard, samples, sql
from eval_assets.commands.retention import retention
from resources import interrupts
from resources.errors import UserError

UNEXPECTED, READER_GONE = 70, 128 + signal.SIGPIPE
"""EX_SOFTWARE of sysexits.h, never 1, which is a verdict of `gate`; and what a shell shows of SIGPIPE."""


class _OneLineErrors(click.Group):
    """Prints what a user can put right as one line, and exits with its status; 130 or 143 if told to end."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with pipes():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> object:
        with pipes():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> object:
        try:
            # What Ctrl-C does, done for SIGTERM, too; Dagster does the same while it executes a run.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
            with interrupts.watching():
                return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {printable(str(error))}", err=True)
            sys.exit(error.exit_status)
        except KeyboardInterrupt:
            click.echo("\ninterrupted: what is finished is kept; run it again to go on", err=True)
            sys.exit(interrupts.exit_status())

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use, not of the alphabet


@contextmanager
def pipes() -> Iterator[None]:
    """End where nobody reads stdout or stderr any more, as after `head`; click would end with 1.

    It would do so, too, where a connection broke, which is an error like any other.
    """
    try:
        yield
    except BrokenPipeError as error:
        looking = select.poll()
        for stream in (sys.stdout, sys.stderr):
            looking.register(stream.fileno(), 0)
        if any(event & select.POLLERR for _, event in looking.poll(0)):
            sys.exit(READER_GONE)
        raise ConnectionError(str(error)) from error


@click.group(cls=_OneLineErrors)
@click.option("--traceback", "shows", is_flag=True, help="show where an unexpected error comes from")
@click.pass_context
def main(ctx: click.Context, shows: bool) -> None:
    """Continuous evaluation of language models.

    EVAL_* variables set it up (docs/configuration.md); every command has --json. Exit statuses: 0 done, 2 a
    mistake, 4 a run failed, 70 unexpected, 75 try again later; 1 and 3 are verdicts of gate and doctor
    (docs/cli.md).
    """
    if isinstance(ctx.obj, dict):
        ctx.obj["traceback"] = shows


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
    status = _status()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = READER_GONE
    os._exit(status)


def _status() -> int:
    """What `main` ends with; click by itself, and Python, would end with 1 for what is no verdict."""
    options: dict[str, Any] = {}
    try:
        return int(main(standalone_mode=False, obj=options) or 0)
    except SystemExit as end:
        if isinstance(end.code, str):
            click.echo(end.code, err=True)
        return end.code if isinstance(end.code, int) else UNEXPECTED if end.code else 0
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except click.Abort:
        return 128 + signal.SIGINT
    except Exception as error:  # a bug, or what a library raises: Python would end with the status of "worse"
        with suppress(OSError):
            if options.get("traceback"):
                traceback.print_exc()
            else:
                line = printable(" ".join(f"{type(error).__name__}: {error}".split()))[:1000]
                click.echo(f"error: unexpected {line}; --traceback before the command shows where", err=True)
        return UNEXPECTED


if __name__ == "__main__":
    run()
