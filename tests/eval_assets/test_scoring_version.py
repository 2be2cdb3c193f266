"""When the scoring code changes, somebody decides whether scores can change (docs/decisions/0003)."""

import ast
import hashlib
from pathlib import Path

import pytest

from eval_assets.tasks import SCORING_VERSION
from tests.conftest import ROOT

DIGEST = "99b30932ad3bbbdbedae13212eedda1751aad83c0cba9b29b7ca455b4b0a0cb0"
VERSION = "2"


def scoring_digest(root: Path) -> str:
    """SHA-256 over the syntax trees of tasks, metrics and statistics, without comments and docstrings."""
    digest = hashlib.sha256()
    folder = root / "eval_assets"
    estimates = folder / "statistics" / "estimates.py"
    for path in sorted([*folder.glob("tasks/*.py"), *folder.glob("metrics/*.py"), estimates]):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
                and isinstance(body[0].value.value, str)
            ):
                node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
        digest.update(repr(_shape(tree)).encode())
    return digest.hexdigest()


def _shape(node: object) -> object:
    """A syntax tree as tuples, without empty fields: Python versions differ in which of them there are."""
    if isinstance(node, ast.AST):
        fields = [(name, _shape(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return (type(node).__name__, *fields)
    return [_shape(one) for one in node] if isinstance(node, list) else node


def test_changed_scoring_code_comes_with_a_decision_about_its_version() -> None:
    found = scoring_digest(ROOT)
    assert (found, SCORING_VERSION) == (DIGEST, VERSION), (
        "the code of tasks, metrics or statistics changed: if any score can come out differently, raise "
        f"SCORING_VERSION; either way put DIGEST = {found!r} and the version here"
    )


@pytest.mark.parametrize(
    ("change", "differs"),
    [('"""Another docstring."""', False), ("# a comment", False), ("ANSWER = 42", True)],
)
def test_only_code_counts(tmp_path: Path, change: str, differs: bool) -> None:
    for name in ("tasks/__init__.py", "metrics/__init__.py", "statistics/estimates.py"):
        path = tmp_path / "eval_assets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("VALUE = 1\n")
    before = scoring_digest(tmp_path)
    path = tmp_path / "eval_assets" / "statistics" / "estimates.py"
    path.write_text(f"{change}\n{path.read_text()}")
    assert (scoring_digest(tmp_path) != before) is differs
