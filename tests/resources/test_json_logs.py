"""A log line is one JSON object whatever is logged, with the ids of what it is about."""

import io
import json
import logging
import subprocess
import sys
from typing import Any

import dagster._loggers
import pytest

from resources import json_logs, spans
from tests.conftest import ROOT

HOSTILE = [
    'two\nlines\r\n{"event": "forged"}',
    "\u202e\x00\x1b[31m",
    "a lone surrogate \ud800",
    '"}{',
    "é" * 9,
]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> tuple[logging.Logger, io.StringIO]:
    """A logger as runs get it, and what it writes."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    return json_logs._run_logger("dagster", "INFO"), stream


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_line_is_one_object_whatever_is_in_it(lines: tuple[logging.Logger, io.StringIO], text: str) -> None:
    logger, stream = lines
    logger.info(text)
    [line] = parsed(stream)
    assert line["event"] == text
    assert line["level"] == "info"
    assert {"logger", "timestamp"} <= set(line)


def test_a_line_has_the_ids_of_its_run_and_cell(lines: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = lines
    with spans.span("cell", model="m@1", dataset="squad", evaluation_id="e-1"):
        logger.info("a", extra={"dagster_meta": {"run_id": "r", "job_name": "j", "orig_message": "plain"}})
    logger.info("b", extra={"dagster_meta": {"run_id": "r", "step_key": None}})
    logger.debug("not told")
    first, second = parsed(stream)
    wanted = {"run_id": "r", "job_name": "j", "model": "m@1", "dataset": "squad", "evaluation_id": "e-1"}
    assert wanted.items() <= first.items()
    assert first["event"] == "plain"
    assert second["run_id"] == "r"
    assert not {"model", "step_key"} & set(second)


def test_an_exception_is_in_its_line(lines: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = lines
    try:
        raise ValueError("so it is")
    except ValueError:
        logger.exception("it failed")
    [line] = parsed(stream)
    assert line["event"] == "it failed"
    assert "ValueError: so it is" in line["exception"]


def test_dagster_makes_its_console_logger_where_it_is_replaced() -> None:
    """Dagster calls a private function of this name; where it is gone, runs would log coloured text again."""
    source = dagster._loggers.colored_console_logger.logger_fn.__code__.co_names
    assert "create_console_logger" in source


def test_warnings_and_other_loggers_write_such_lines_once_and_services_keep_their_own() -> None:
    code = """
import logging, warnings
from resources.json_logs import write_json_lines
write_json_lines()
write_json_lines()
warnings.warn("mind this")
logging.getLogger("transformers").warning("and this")
logging.getLogger("dagster.daemon").warning("its service has a handler for that")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["py.warnings", "transformers"]
    assert "mind this" in lines[0]["event"]
