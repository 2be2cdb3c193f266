"""Logs as a JSON object a line, with the ids of the run and cell that it is about (``EVAL_LOG_FORMAT=json``).

The fields are those that Dagster's own services write with ``--log-format json`` (event, level, logger,
timestamp), and made by the same library, so that one pipeline reads all of them.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import dagster._loggers
import structlog

from resources import spans

_DAGSTER_META = "dagster_meta"
"""Where Dagster keeps what it knows of a run's log record."""


def write_json_lines() -> None:
    """Have this process log such lines: runs, and all loggers that have no handler of their own.

    A job's own loggers count for Dagster only where a run's configuration names them; otherwise it makes its
    coloured one. So that is made another; tests/resources/test_json_logs.py holds us to the name.
    """
    dagster._loggers.create_console_logger = _run_logger  # type: ignore[attr-defined]  # private there
    root = logging.getLogger()
    if not any(isinstance(handler.formatter, _Formatter) for handler in root.handlers):
        handler = _handler()
        # Dagster's services have a handler for theirs.
        handler.addFilter(
            lambda record: record.name.partition(".")[0] not in ("dagster", "dagster-webserver")
        )
        root.addHandler(handler)
    logging.captureWarnings(True)


def _run_logger(name: str, level: str | int) -> logging.Logger:
    of_run = logging.Logger(name, level)
    of_run.addHandler(_handler())
    return of_run


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Of records of the standard library."""

    def __init__(self) -> None:
        super().__init__(
            foreign_pre_chain=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                _add_ids,
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=str),
            ],
        )


def _handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    return handler


def _add_ids(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    meta = getattr(event["_record"], _DAGSTER_META, None) or {}
    of_dagster = {name: meta.get(name) for name in ("run_id", "job_name", "step_key")}
    found = {**of_dagster, **spans.ids(), "event": meta.get("orig_message")}
    event.update({name: value for name, value in found.items() if value is not None})
    return event
