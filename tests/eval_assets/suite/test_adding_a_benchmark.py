"""docs/adding-a-benchmark.md, followed: its files load, give the items it shows, and name every field."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel

from eval_assets.suite import SUITE_FOLDER, load_suite, normalize
from eval_assets.suite.spec import (
    BenchmarkSpec,
    Chat,
    Extract,
    FewShot,
    Generation,
    MetricSpec,
    Source,
    WrittenExample,
)
from eval_assets.suite.templates import FILTERS
from eval_assets.tasks import task_for
from resources.datasets import read_rows
from resources.engines import ChatMessage, GenerationRequest, LoglikelihoodRequest, Sampling

PAGE = SUITE_FOLDER.parent.parent / "docs" / "adding-a-benchmark.md"


def titled_blocks() -> Mapping[str, str]:
    """The page's fenced blocks that have a title."""
    text = PAGE.read_text(encoding="utf-8")
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', text, re.M | re.S))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that a reader of the page has after its second step."""
    for name, body in titled_blocks().items():
        if name.endswith((".yaml", ".csv")):
            (tmp_path / name).write_text(body, encoding="utf-8")
    return tmp_path


def test_the_pages_files_give_the_benchmark_that_it_promises(folder: Path) -> None:
    """A newcomer who copies the page's files must get a benchmark, not an error."""
    files = ["capitals.csv", "capitals.yaml", "capitals_sampled.yaml"]
    assert sorted(path.name for path in folder.iterdir()) == files
    spec = load_suite(str(folder))["capitals"]
    normalized = normalize(spec, read_rows)
    assert len(normalized.items) == 12
    assert normalized.warnings == ()
    assert {item.group for item in normalized.items} == {"Africa", "America", "Asia", "Europe", "Oceania"}
    assert all(item.target == 0 for item in normalized.items)
    assert all(item.query not in [e.query for e in item.examples] for item in normalized.items)


def test_the_prompt_that_the_page_shows_is_the_one_that_a_model_is_shown(folder: Path) -> None:
    spec = load_suite([folder])["capitals"]
    requests = task_for(spec).requests(normalize(spec, read_rows).items[0], None)
    shown = titled_blocks()["first prompt"].removesuffix("\n")
    named = re.findall(r"` (\w+)`", PAGE.read_text(encoding="utf-8"))
    assert requests == [LoglikelihoodRequest(shown, f" {choice}") for choice in named]
    assert len(requests) == 4


def test_the_sampled_benchmark_asks_for_the_conversation_that_the_page_shows_ten_times(folder: Path) -> None:
    spec = load_suite([folder])["capitals_sampled"]
    item = normalize(spec, read_rows).items[0]

    def template(messages: Sequence[ChatMessage]) -> str:
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)

    requests = task_for(spec).requests(item, template)
    shown = titled_blocks()["first conversation"]
    assert requests == [
        GenerationRequest(shown, (".", "\n"), 16, Sampling(0.8, 0.95, 0, 1234), draw) for draw in range(10)
    ]
    assert [metric.name for metric in spec.metrics] == ["exact_match", "pass@1", "pass@10"]


def test_the_page_explains_every_field_and_filter_and_no_others() -> None:
    """A field that nobody finds is a field that nobody can use."""
    page, _, metrics = PAGE.read_text(encoding="utf-8").partition("\n## Metrics\n")
    page += metrics.partition("\n## ")[2]  # what that table has are no fields
    tables = [line.split("|")[1] for line in page.splitlines() if line.startswith("|")]
    explained = {name for cell in tables for name in re.findall(r"`(\w+)", cell)}
    models: tuple[type[BaseModel], ...] = (BenchmarkSpec, Source, FewShot, Chat, Generation, MetricSpec)
    fields = {name for model in models for name in model.model_fields} - {"key", "folder"}
    assert fields | {"extends"} | set(FILTERS) <= explained
    tasks = {"multiple_choice", "generation", "perplexity"}
    sections = {"source", "fewshot", "chat", "generation", "metrics"}
    assert explained <= fields | {"extends"} | set(FILTERS) | tasks | sections
    inner = {*Extract.model_fields, *WrittenExample.model_fields}
    assert all(f"{name}:" in PAGE.read_text(encoding="utf-8") for name in inner)
