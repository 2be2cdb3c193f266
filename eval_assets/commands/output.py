"""What every command shares: words for people or one JSON document, and keys that complete themselves."""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 200
"""Characters a line where nothing says how wide a terminal is."""


class Output:
    """Where a command writes: tables and words on stdout, or with ``--json`` one JSON document there.

    With ``--json`` the words go to stderr, so that a pipe gets the document and nothing else.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    @cached_property
    def console(self) -> "Console":
        """For progress bars and styled words."""
        from rich.console import Console

        class OurConsole(Console):
            def on_broken_pipe(self) -> None:
                raise  # the error, which __main__ makes a status of; rich would exit with 1

        stream = sys.stderr if self.as_json else sys.stdout
        width = None if stream.isatty() else PIPE_WIDTH
        return OurConsole(stderr=self.as_json, highlight=False, width=width)

    def say(self, text: str, style: str | None = None) -> None:
        """Lines for people; taken literally, never broken by us, and nothing that a terminal would obey."""
        self.console.print(printable(text), style=style, markup=False, soft_wrap=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[str] = (),
        sections: Callable[[int], bool] | None = None,
    ) -> None:
        """A table for people; not shown with ``--json``. A line follows row n where `sections(n)` says so."""
        if self.as_json:
            return
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for column in columns:
            table.add_column(Text(printable(column)), justify="right" if column in right else "left")
        for number, row in enumerate(rows):
            end = sections is not None and sections(number)
            table.add_row(*(Text(printable(value)) for value in row), end_section=end)
        self.console.print(table)

    def document(self, value: object) -> None:
        """The command's JSON document; nothing without ``--json``. No number is NaN or infinite in it."""
        if self.as_json:
            click.echo(json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False))


def printable(text: str) -> str:
    """Text whose control and direction characters are written out: a terminal obeys them otherwise."""
    return "".join(
        c if c in "\n\t" or (c.isprintable() and c not in _DIRECTIONS) else repr(c)[1:-1] for c in text
    )


_DIRECTIONS = frozenset(
    chr(code) for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
)


def _plain(value: object) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def output(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option ``--json`` and its function an `Output` as the first argument."""

    @click.option("--json", "as_json", is_flag=True, help="one JSON document on stdout; words on stderr")
    @wraps(function)
    def command(*arguments: Any, as_json: bool, **options: Any) -> None:
        function(Output(as_json), *arguments, **options)

    return command


class Keys(click.ParamType[Any]):
    """Keys or patterns, comma-separated; the last one completes itself from what `known` lists."""

    name = "keys"

    def __init__(self, known: Callable[[], Sequence[str]]) -> None:
        self._known = known

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The parts of the text."""
        return split(value) if isinstance(value, str) else tuple(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The keys that go on from what is typed."""
        before, comma, last = incomplete.rpartition(",")
        return [
            CompletionItem(f"{before}{comma}{key}") for key in _quietly(self._known) if key.startswith(last)
        ]


class Key(click.ParamType[Any]):
    """One key, which completes itself."""

    name = "key"

    def __init__(self, known: Callable[[], Sequence[str]]) -> None:
        self._known = known

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The keys that begin with what is typed."""
        return [CompletionItem(key) for key in _quietly(self._known) if key.startswith(incomplete)]


def split(text: str) -> tuple[str, ...]:
    """The parts of a text with commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def known_models() -> list[str]:
    """Keys of the registered model versions: names of files, no file is read."""
    from resources.keys import key_of_segment
    from resources.results import ResultsStore
    from resources.settings import Settings

    paths = ResultsStore(Settings.from_environment().store).matching("models/*.json")
    return sorted(key_of_segment(path.rsplit("/", 1)[1].removesuffix(".json")) for path in paths)


def known_benchmarks() -> list[str]:
    """Keys of the benchmarks: names of files, no file is read."""
    from pathlib import Path

    from resources.settings import Settings

    folders = [Path(__file__).parent.parent / "suite", *Settings.from_environment().benchmarks]
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def benchmark_named(key: str) -> str:
    """The key of a benchmark. Raises UserError, with the nearest one, where there is none."""
    from difflib import get_close_matches

    from eval_assets.partitions import SUITE
    from resources.errors import UserError

    if key in SUITE:
        return key
    near = get_close_matches(key, SUITE, n=1)
    raise UserError(
        f"unknown benchmark {key!r}{f': did you mean {near[0]!r}?' if near else ''} "
        "('benchmarks list' lists them; your own go into a folder named by EVAL_BENCHMARKS)"
    )


def _quietly(known: Callable[[], Sequence[str]]) -> Sequence[str]:
    try:
        return known()
    except Exception:  # a shell that completes has no place for an error
        return []


MODEL, MODELS = Key(known_models), Keys(known_models)
BENCHMARK, BENCHMARKS = Key(known_benchmarks), Keys(known_benchmarks)

models_option = click.option(
    "--models", type=MODELS, default="*", help="name@version, comma-separated; * stands for any text"
)
benchmarks_option = click.option(
    "--benchmarks", type=BENCHMARKS, default="", help="keys, comma-separated; none: all"
)
