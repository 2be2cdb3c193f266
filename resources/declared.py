"""YAML files in which people declare things, read into pydantic models with one line for each mistake."""

from functools import cache
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from resources.errors import UserError

Declared = TypeVar("Declared", bound=BaseModel)


def load_declared(path: Path, kind: type[Declared], variable: str) -> Declared:
    """The file as a `kind`. Raises UserError naming file, field and rule, and `variable` that led to it."""
    try:
        document = yaml.safe_load(_text(path, path.stat().st_mtime_ns))
    except OSError as error:
        raise UserError(f"{variable}: {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{variable}: {path} is not UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).lstrip(".")
        rule = str(first["msg"]).removeprefix("Value error, ")
        rule = "unknown field" if first["type"] == "extra_forbidden" else rule
        raise UserError(f"{path}: {f'{place}: ' if place else ''}{rule}") from None


@cache
def _text(path: Path, _: int) -> str:
    return path.read_text(encoding="utf-8")
