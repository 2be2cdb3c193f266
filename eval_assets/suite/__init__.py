"""Benchmarks: their declarations (YAML), and their items."""

from eval_assets.suite.items import (
    Example,
    Item,
    Items,
    items_fingerprint,
    items_from_table,
    items_to_table,
    select_items,
)
from eval_assets.suite.load import SUITE_FOLDER, load_suite, prepared_spec
from eval_assets.suite.normalize import ReadRows, benchmark_files, normalize
from eval_assets.suite.spec import BenchmarkSpec, MetricSpec, TaskType

__all__ = [
    "SUITE_FOLDER",
    "BenchmarkSpec",
    "Example",
    "Item",
    "Items",
    "MetricSpec",
    "ReadRows",
    "TaskType",
    "benchmark_files",
    "items_fingerprint",
    "items_from_table",
    "items_to_table",
    "load_suite",
    "normalize",
    "prepared_spec",
    "select_items",
]
