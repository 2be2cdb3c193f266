"""What the command line says of itself, and what docs/cli.md says of it."""

import re
import subprocess
import sys
from collections.abc import Iterator

import click

from eval_assets.__main__ import main
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "cli.md").read_text()
OF_ALL = {"--json"}


def commands(command: click.Command, *words: str) -> Iterator[tuple[str, set[str]]]:
    """Every command, as it is typed, with its options."""
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from commands(one, *words, name)
    else:
        options = [one for one in command.params if isinstance(one, click.Option)]
        yield " ".join(words), {text for one in options for text in (*one.opts, *one.secondary_opts)} - OF_ALL


def rows() -> Iterator[tuple[str, set[str]]]:
    """Every command that the page's table names, with the options that its row names."""
    for line in re.findall(r"^\| (`.*) \|$", PAGE, re.MULTILINE):
        first = line.split(" | ")[0]
        for text in re.findall(r"`([^`]+)`", first):
            words = [word for word in text.split() if re.fullmatch("[a-z][a-z-]*", word)]
            yield " ".join(words), set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line))


def test_the_page_names_every_command_and_option_and_no_other() -> None:
    """An option that only the code knows is not used; one that only the page knows is an error."""
    assert dict(rows()) == dict(commands(main))
    assert len(list(rows())) == len(dict(rows()))
    known = (
        {option for _, options in commands(main) for option in options} | OF_ALL | {"--help", "--traceback"}
    )
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE)) <= known


def test_every_command_has_json_but_completion() -> None:
    def found(command: click.Command, *words: str) -> Iterator[str]:
        if isinstance(command, click.Group):
            for name, one in command.commands.items():
                yield from found(one, *words, name)
        elif "--json" not in {text for one in command.params for text in one.opts}:
            yield " ".join(words)

    assert list(found(main)) == ["completion"]


def test_the_help_imports_nothing_heavy() -> None:
    """A shell that completes, and a person who looks an option up, would wait for torch."""
    program = (
        "import sys\nsys.argv = ['eval-assets', '--help']\n"
        "from eval_assets.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'dagster', 'torch', 'duckdb', 'pandas', 'rich', 'pyarrow', 'transformers', 'pydantic'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)), len(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = re.search(r"heavy: (\[.*\]) (\d+)\n$", done.stdout)
    assert found is not None
    assert found[1] == "[]"
    assert int(found[2]) < 250  # 150 or so now
