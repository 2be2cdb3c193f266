"""Small benchmarks made of a YAML text and rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

from eval_assets.suite import BenchmarkSpec, Items, load_suite, normalize
from resources.datasets import RowSource
from tests.eval_assets.suite.quiz import CHOICE

Rows: TypeAlias = list[dict[str, Any]]
Build: TypeAlias = Callable[..., BenchmarkSpec]
Normalized: TypeAlias = Callable[..., Items]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A benchmark with the given fields, from a YAML file; None takes a field away."""

    def build_spec(base: dict[str, Any] = CHOICE, **fields: Any) -> BenchmarkSpec:
        document = {name: value for name, value in {**base, **fields}.items() if value is not None}
        (tmp_path / "quiz.yaml").write_text(yaml.safe_dump(document))
        return load_suite([tmp_path])["quiz"]

    return build_spec


@pytest.fixture
def normalized(build: Build) -> Normalized:
    """The items of a benchmark over rows given as a list, or as one list a split or (config, split)."""

    def items_of(rows: Any, base: dict[str, Any] = CHOICE, **fields: Any) -> Items:
        def read(source: RowSource) -> Rows:
            if isinstance(rows, list):
                return rows
            found: Rows = rows[source.split] if source.split in rows else rows[source.config, source.split]
            return found

        return normalize(build(base, **fields), read)

    return items_of
