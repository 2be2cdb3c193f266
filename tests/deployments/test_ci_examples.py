"""The examples for a CI in docs/automation.md are valid where they are pasted, and their commands exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hera.workflows.models import Workflow

from eval_assets.__main__ import main
from tests.conftest import ROOT


def example(title: str) -> str:
    blocks = re.findall(r"```yaml\n(# .*?)```", (ROOT / "docs" / "automation.md").read_text(), re.DOTALL)
    [found] = [block for block in blocks if block.startswith(f"# {title}")]
    return str(found)


def commands(value: Any) -> list[str]:
    """Every text in the document that calls us, a list of words joined."""
    if isinstance(value, dict):
        return [found for part in value.values() for found in commands(part)]
    if isinstance(value, list):
        if "eval_assets" in value:
            return [shlex.join(value)]
        return [found for part in value for found in commands(part)]
    return [value] if isinstance(value, str) and "eval_assets" in value else []


def errors(title: str, schema: str, text: str, folder: Path) -> str:
    file = folder / "example.yaml"
    file.write_text(text)
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)]
    result = subprocess.run(check, capture_output=True, text=True, check=False, timeout=120)
    return result.stdout if result.returncode else ""


SCHEMAS = {"GitHub Actions": "vendor.github-workflows", "GitLab CI": "vendor.gitlab-ci"}


@pytest.mark.parametrize("title", SCHEMAS)
def test_an_example_is_valid_for_its_ci(title: str, tmp_path: Path) -> None:
    text = example(title)
    assert errors(title, SCHEMAS[title], text, tmp_path) == ""
    misspelt = text.replace("runs-on:", "runs_on:").replace("script:", "scirpt:")
    assert misspelt != text
    assert "Schema validation errors" in errors(title, SCHEMAS[title], misspelt, tmp_path)


def test_the_argo_example_is_a_workflow_without_unknown_fields() -> None:
    document = yaml.safe_load(example("Argo Workflows"))
    known = Workflow.model_validate(document).dict(by_alias=True, exclude_none=True)
    assert {name: value for name, value in known.items() if name in document} == document


@pytest.mark.parametrize("title", [*SCHEMAS, "Argo Workflows"])
def test_the_command_of_an_example_exists(title: str) -> None:
    [command] = commands(yaml.safe_load(example(title)))
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "eval_assets"]
    context = main.commands[words[3]].make_context(words[3], words[4:])
    assert context.params["run"] is True
