"""Every environment variable that this project reads, in one place."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from resources.errors import UserError


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be set from outside. docs/configuration.md is checked against these fields by a test."""

    store: str
    registry: str
    models: Path | None
    cache: Path
    benchmarks: tuple[Path, ...]
    data_mirror: Path
    limit: int | None
    device: str
    device_map: bool
    dtype: str
    threads: int
    batch_tokens: int | None
    memory_bytes: int | None
    seed: int
    bertscore_model: str
    bertscore_layers: int | None
    git_revision: str | None
    nightly: tuple[int, int]
    timezone: str
    webhook: str | None
    smtp: str
    email_from: str
    email_to: tuple[str, ...]
    ui: str
    report_url: str
    accelerators: Path | None
    queue_timeout: int
    cluster_patience: int
    pod: Mapping[str, Any] | None
    budget: float | None
    metrics_cells: int
    pushgateway: str | None
    traces: str | None
    log_format: str

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the variables of `VARIABLES`; relative paths start at the current folder.

        Raises UserError naming the variable where a value can't be used.
        """
        env = os.environ if environ is None else environ

        def text(field: str) -> str:
            variable = VARIABLES[field]
            return env.get(variable.name, "").strip() or variable.default

        def whole_number(field: str) -> int:
            try:
                number = int(text(field))
            except ValueError:
                number = -1
            if number < (0 if field == "seed" else 1):
                raise UserError(
                    f"{VARIABLES[field].name}={text(field)!r}: expected a positive whole number; "
                    "correct it or unset it"
                )
            return number

        def gigabytes(field: str) -> int:
            try:
                number = float(text(field))
            except ValueError:
                number = 0.0
            if not 0 < number < float("inf"):
                raise UserError(
                    f"{VARIABLES[field].name}={text(field)!r}: expected a positive number of GB; "
                    "correct it or unset it"
                )
            return int(number * 2**30)

        def amount(field: str) -> float | None:
            try:
                number = float(text(field)) if text(field) else None
            except ValueError:
                number = -1.0
            if number is not None and not 0 <= number < float("inf"):
                raise UserError(f"{VARIABLES[field].name}={text(field)!r}: expected an amount like 250")
            return number

        def yes_or_no(field: str) -> bool:
            if text(field) not in ("yes", "no"):
                raise UserError(f"{VARIABLES[field].name}={text(field)!r}: expected yes or no")
            return text(field) == "yes"

        def time_of_day(field: str) -> tuple[int, int]:
            match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text(field))
            if match is None:
                raise UserError(f"{VARIABLES[field].name}={text(field)!r}: expected a time like 02:00")
            return int(match[1]), int(match[2])

        def time_zone(field: str) -> str:
            try:
                ZoneInfo(text(field))
            except (ZoneInfoNotFoundError, ValueError):
                raise UserError(
                    f"{VARIABLES[field].name}={text(field)!r}: expected a time zone like Europe/Berlin"
                ) from None
            return text(field)

        def pod() -> Mapping[str, Any] | None:
            try:
                found = json.loads(text("pod")) if text("pod") else None
            except ValueError:
                found = ""
            if found is not None and not isinstance(found, dict):
                raise UserError(
                    "EVAL_POD: expected a JSON object; the run launcher sets it, unset it elsewhere"
                )
            return found

        def log_format() -> str:
            if text("log_format") not in ("text", "json"):
                raise UserError(f"EVAL_LOG_FORMAT={text('log_format')!r}: expected text or json")
            return text("log_format")

        def gateway() -> str | None:
            try:
                url = urlsplit(text("pushgateway"))
                usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
            except ValueError:
                usable = False
            if text("pushgateway") and (not usable or "@" in url.netloc or url.query or url.fragment):
                raise UserError(
                    "EVAL_PUSHGATEWAY: expected a URL like http://pushgateway:9091, without a password"
                )
            return text("pushgateway").rstrip("/") or None

        def mail_server() -> str:
            try:
                url = urlsplit(text("smtp"))
                usable = url.scheme in ("smtp", "smtps") and bool(url.hostname) and url.port != 0
            except ValueError:
                usable = False
            if text("smtp") and not usable:
                raise UserError(
                    "EVAL_SMTP: expected smtp://user:password@host:587 or smtps://host (a secret)"
                )
            return text("smtp")

        def addresses() -> tuple[str, ...]:
            found = tuple(part.strip() for part in text("email_to").split(",") if part.strip())
            for address in (*found, text("email_from")):
                if not re.fullmatch(r"[^@\s,<>]+@[^@\s,<>]+", address):
                    raise UserError(f"{address!r} in EVAL_EMAIL_TO or EVAL_EMAIL_FROM is no e-mail address")
            if found and not text("smtp"):
                raise UserError("EVAL_EMAIL_TO is set, but EVAL_SMTP is not: name the mail server")
            return found

        encoder = text("bertscore_model") or str(Path(text("data_mirror"), LOCAL_ENCODER).absolute())
        return cls(
            store=_absolute(text("store")),
            registry=_absolute(text("registry")),
            models=Path(text("models")).absolute() if text("models") else None,
            cache=Path(text("cache")).absolute(),
            benchmarks=tuple(
                Path(folder).absolute() for folder in text("benchmarks").split(os.pathsep) if folder
            ),
            data_mirror=Path(text("data_mirror")).absolute(),
            limit=whole_number("limit") if text("limit") not in ("", "none") else None,
            device=text("device"),
            device_map=yes_or_no("device_map"),
            dtype=text("dtype"),
            threads=whole_number("threads") if text("threads") else _cores(),
            batch_tokens=whole_number("batch_tokens") if text("batch_tokens") else None,
            memory_bytes=gigabytes("memory_bytes") if text("memory_bytes") else None,
            seed=whole_number("seed"),
            bertscore_model=encoder,
            bertscore_layers=whole_number("bertscore_layers") if text("bertscore_layers") else None,
            git_revision=text("git_revision") or _checked_out_revision(),
            nightly=time_of_day("nightly"),
            timezone=time_zone("timezone"),
            webhook=text("webhook") or None,
            smtp=mail_server(),
            email_from=text("email_from"),
            email_to=addresses(),
            ui=text("ui").rstrip("/"),
            report_url=text("report_url"),
            accelerators=Path(text("accelerators")).absolute() if text("accelerators") else None,
            queue_timeout=whole_number("queue_timeout"),
            cluster_patience=whole_number("cluster_patience"),
            pod=pod(),
            budget=amount("budget"),
            metrics_cells=whole_number("metrics_cells"),
            pushgateway=gateway(),
            traces=text("traces") or None,
            log_format=log_format(),
        )


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable: its name, the default ("" for none) and what it does."""

    name: str
    default: str
    meaning: str


LOCAL_ENCODER = "encoders/all-MiniLM-L6-v2"

VARIABLES: Mapping[str, Variable] = {
    "store": Variable("EVAL_STORE", ".eval", "folder or URL of the results store"),
    "registry": Variable("EVAL_REGISTRY", "models", "folder of the model registry: <name>/<version>/"),
    "models": Variable(
        "EVAL_MODELS", "", "YAML file of the models that are tracked; by default all of EVAL_REGISTRY"
    ),
    "cache": Variable(
        "EVAL_CACHE", ".cache/models", "folder for copies of models whose registry is not a local folder"
    ),
    "benchmarks": Variable(
        "EVAL_BENCHMARKS", "", "further folders of benchmark YAML files, separated as in PATH"
    ),
    "data_mirror": Variable(
        "EVAL_DATA_MIRROR",
        "data",
        "folder of hub datasets, <hub id>/<config>/<split>.parquet, looked at first",
    ),
    "limit": Variable(
        "EVAL_LIMIT", "", "items of each benchmark to evaluate, chosen by content hash; none for all"
    ),
    "device": Variable("EVAL_DEVICE", "auto", "auto, cpu, cuda or mps"),
    "device_map": Variable(
        "EVAL_DEVICE_MAP", "no", "yes spreads a model over all GPUs of the machine (needs accelerate)"
    ),
    "dtype": Variable(
        "EVAL_DTYPE",
        "auto",
        "auto (float32 on a CPU, the checkpoint's own elsewhere), float32, bfloat16, float16",
    ),
    "threads": Variable("EVAL_THREADS", "", "CPU threads of the engine; by default the cores it may use"),
    "batch_tokens": Variable(
        "EVAL_BATCH_TOKENS",
        "",
        "most tokens that go through the model at a time; by default 2,048 on a CPU, 16,384 on a GPU, "
        "fewer where memory is short",
    ),
    "memory_bytes": Variable(
        "EVAL_MEMORY_GB",
        "",
        "memory that a process may use, weights included; by default most of what is free",
    ),
    "seed": Variable("EVAL_SEED", "1234", "seed of everything random"),
    "bertscore_model": Variable(
        "EVAL_BERTSCORE_MODEL", "", "encoder folder or hub id; by default the mirror's all-MiniLM-L6-v2"
    ),
    "bertscore_layers": Variable(
        "EVAL_BERTSCORE_LAYERS", "6", "hidden layer of the encoder that BERTScore reads"
    ),
    "git_revision": Variable(
        "EVAL_GIT_REVISION", "", "commit that evaluations record; by default the checkout's own"
    ),
    "nightly": Variable("EVAL_NIGHTLY", "02:00", "when what is stale or missing is looked for each night"),
    "timezone": Variable("EVAL_TIMEZONE", "UTC", "the time zone of that, for example Europe/Berlin"),
    "webhook": Variable(
        "EVAL_WEBHOOK", "", "URL that verdicts and give-ups are posted to, as Slack reads them (a secret)"
    ),
    "smtp": Variable(
        "EVAL_SMTP", "", "mail server for e-mail: smtp://user:password@host:587, or smtps:// (a secret)"
    ),
    "email_from": Variable("EVAL_EMAIL_FROM", "evaluation@localhost", "the sender of e-mail"),
    "email_to": Variable(
        "EVAL_EMAIL_TO", "", "addresses, comma-separated, that verdicts and give-ups are mailed to"
    ),
    "ui": Variable("EVAL_UI", "http://127.0.0.1:3000", "where people open Dagster's UI, for links"),
    "report_url": Variable(
        "EVAL_REPORT_URL", "", "where people open the report, for links; by default its file in EVAL_STORE"
    ),
    "accelerators": Variable(
        "EVAL_ACCELERATORS", "", "YAML file of what a Kubernetes cluster offers; by default only CPUs"
    ),
    "queue_timeout": Variable(
        "EVAL_QUEUE_TIMEOUT", "86400", "seconds for which a run may wait for a pod to be scheduled"
    ),
    "cluster_patience": Variable(
        "EVAL_CLUSTER_PATIENCE", "600", "seconds for which a Kubernetes API may be silent before runs fail"
    ),
    "budget": Variable(
        "EVAL_BUDGET",
        "",
        "most that a month's evaluations may cost, in the unit of EVAL_ACCELERATORS' prices",
    ),
    "metrics_cells": Variable(
        "EVAL_METRICS_CELLS",
        "5000",
        "most cells whose scores are exported to Prometheus, some 20 series each",
    ),
    "pushgateway": Variable(
        "EVAL_PUSHGATEWAY", "", "URL of a Pushgateway that runs tell their results; by default none is told"
    ),
    "traces": Variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "",
        "OpenTelemetry collector (OTLP over HTTP) that gets a trace of each run; needs the extra tracing",
    ),
    "log_format": Variable(
        "EVAL_LOG_FORMAT", "text", "text, or json: a JSON object a line of a run's log, with its ids"
    ),
    "pod": Variable("EVAL_POD", "", "what a run's pod is, for its records; set by the run launcher only"),
}
if {f.name for f in fields(Settings)} != set(VARIABLES):  # a new setting must be described
    raise RuntimeError("Settings and VARIABLES name different settings")


@contextmanager
def overridden(**fields: str) -> Iterator[None]:
    """Settings, by their field's name, for all that this process does within, also in runs of Dagster."""
    changes = {VARIABLES[field].name: text for field, text in fields.items()}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text


def _absolute(location: str) -> str:
    return location if "://" in location else str(Path(location).absolute())


def _cores() -> int:
    """The cores that this process may use, where the platform tells; otherwise all."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


@cache
def _checked_out_revision() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except OSError:
        return None
    return answer.stdout.strip() or None
