"""Every environment variable that this project reads, in one place."""

import json
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from resources.errors import UserError


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable: its name, the default ("" for none), what it does, and how its text is read.

    `read` raises ValueError with what it expects. The text of one that may be `secret` is in no message.
    """

    name: str
    default: str
    meaning: str
    read: Callable[[str], Any] = str
    secret: bool = False

    def value(self, environ: Mapping[str, str]) -> Any:
        """What it is set to. Raises UserError, naming it, where that can't be used."""
        text = environ.get(self.name, "").strip() or self.default
        try:
            return self.read(text)
        except ValueError as error:
            shown = self.name if self.secret else f"{self.name}={text!r}"
            raise UserError(f"{shown}: expected {error}; correct it or unset it") from None


def _whole_number(text: str) -> int:
    number = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0
    if number < 1:
        raise ValueError("a positive whole number")
    return number


def _seed(text: str) -> int:
    return 0 if text == "0" else _whole_number(text)


def _limit(text: str) -> int | None:
    return None if text in ("", "none") else _whole_number(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    return number if math.isfinite(number) else -1.0


def _gigabytes(text: str) -> int:
    number = _number(text)
    if number <= 0:
        raise ValueError("a positive number of GB")
    return int(number * 2**30)


def _amount(text: str) -> float:
    number = _number(text)
    if number < 0:
        raise ValueError("an amount like 250")
    return number


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return read


def _switch(text: str) -> bool:
    return _one_of("yes", "no")(text) == "yes"


def _time_of_day(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
    if match is None:
        raise ValueError("a time like 02:00")
    return int(match[1]), int(match[2])


def _time_zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError("a time zone like Europe/Berlin") from None
    return text


def _pod(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("a JSON object, which the run launcher sets")
    return found


def _server(text: str, *schemes: str) -> SplitResult | None:
    """A URL of one of these schemes with a host; None for anything else."""
    try:
        url = urlsplit(text)
        return url if url.scheme in schemes and url.hostname and url.port != 0 else None
    except ValueError:
        return None


def _gateway(text: str) -> str:
    url = _server(text, "http", "https")
    if url is None or "@" in url.netloc or url.query or url.fragment:
        raise ValueError("a URL like http://pushgateway:9091, without a password")
    return text.rstrip("/")


def _mail_server(text: str) -> str:
    if text and _server(text, "smtp", "smtps") is None:
        raise ValueError("smtp://user:password@host:587 or smtps://host")
    return text


def _address(text: str) -> str:
    if not re.fullmatch(r"[^@\s,<>]+@[^@\s,<>]+", text):
        raise ValueError("an e-mail address like evaluation@example.com")
    return text


def _addresses(text: str) -> tuple[str, ...]:
    return tuple(_address(part.strip()) for part in text.split(",") if part.strip())


def _location(text: str) -> str:
    return text if "://" in text else str(Path(text).absolute())


def _without_slash(text: str) -> str:
    return text.rstrip("/")


def _folder(text: str) -> Path:
    return Path(text).absolute()


def _folders(text: str) -> tuple[Path, ...]:
    return tuple(_folder(part) for part in text.split(os.pathsep) if part)


def _threads(text: str) -> int:
    """By default the cores that this process may use, where the platform tells; otherwise all."""
    if text:
        return _whole_number(text)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _optional(read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: read(text) if text else None


def _setting(
    name: str, meaning: str, read: Callable[[str], Any] = str, *, default: str = "", secret: bool = False
) -> Any:
    return field(metadata={"variable": Variable(name, default, meaning, read, secret)})


LOCAL_ENCODER = "encoders/all-MiniLM-L6-v2"


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be set from outside, each by one variable; docs/configuration.md is held to it by a test."""

    store: str = _setting("EVAL_STORE", "folder or URL of the results store", _location, default=".eval")
    registry: str = _setting(
        "EVAL_REGISTRY", "folder of the model registry: <name>/<version>/", _location, default="models"
    )
    models: Path | None = _setting(
        "EVAL_MODELS",
        "YAML file of the models that are tracked; by default all of EVAL_REGISTRY",
        _optional(_folder),
    )
    cache: Path = _setting(
        "EVAL_CACHE",
        "folder for copies of models whose registry is not a local folder",
        _folder,
        default=".cache/models",
    )
    benchmarks: tuple[Path, ...] = _setting(
        "EVAL_BENCHMARKS", "further folders of benchmark YAML files, separated as in PATH", _folders
    )
    data_mirror: Path = _setting(
        "EVAL_DATA_MIRROR",
        "folder of hub datasets, <hub id>/<config>/<split>.parquet, looked at first",
        _folder,
        default="data",
    )
    limit: int | None = _setting(
        "EVAL_LIMIT", "items of each benchmark to evaluate, chosen by content hash; none for all", _limit
    )
    device: str = _setting("EVAL_DEVICE", "auto, cpu, cuda or mps", default="auto")
    device_map: bool = _setting(
        "EVAL_DEVICE_MAP",
        "yes spreads a model over all GPUs of the machine (needs accelerate)",
        _switch,
        default="no",
    )
    dtype: str = _setting(
        "EVAL_DTYPE",
        "auto (float32 on a CPU, the checkpoint's own elsewhere), float32, bfloat16, float16",
        default="auto",
    )
    threads: int = _setting(
        "EVAL_THREADS", "CPU threads of the engine; by default the cores it may use", _threads
    )
    batch_tokens: int | None = _setting(
        "EVAL_BATCH_TOKENS",
        "most tokens that go through the model at a time; by default 2,048 on a CPU, 16,384 on a GPU, "
        "fewer where memory is short",
        _optional(_whole_number),
    )
    memory_bytes: int | None = _setting(
        "EVAL_MEMORY_GB",
        "memory that a process may use, weights included; by default most of what is free",
        _optional(_gigabytes),
    )
    seed: int = _setting("EVAL_SEED", "seed of everything random", _seed, default="1234")
    bertscore_model: str = _setting(
        "EVAL_BERTSCORE_MODEL", "encoder folder or hub id; by default the mirror's all-MiniLM-L6-v2"
    )
    bertscore_layers: int | None = _setting(
        "EVAL_BERTSCORE_LAYERS",
        "hidden layer of the encoder that BERTScore reads",
        _optional(_whole_number),
        default="6",
    )
    git_revision: str | None = _setting(
        "EVAL_GIT_REVISION", "commit that evaluations record; by default the checkout's own", _optional(str)
    )
    nightly: tuple[int, int] = _setting(
        "EVAL_NIGHTLY",
        "when what is stale or missing is looked for each night",
        _time_of_day,
        default="02:00",
    )
    timezone: str = _setting(
        "EVAL_TIMEZONE", "the time zone of that, for example Europe/Berlin", _time_zone, default="UTC"
    )
    sensor_seconds: int = _setting(
        "EVAL_SENSOR_SECONDS",
        "seconds from one look at the registries and at what is missing to the next",
        _whole_number,
        default="15",
    )
    webhook: str | None = _setting(
        "EVAL_WEBHOOK",
        "URL that verdicts and give-ups are posted to, as Slack reads them (a secret)",
        _optional(str),
        secret=True,
    )
    smtp: str = _setting(
        "EVAL_SMTP",
        "mail server for e-mail: smtp://user:password@host:587, or smtps:// (a secret)",
        _mail_server,
        secret=True,
    )
    email_from: str = _setting(
        "EVAL_EMAIL_FROM", "the sender of e-mail", _address, default="evaluation@localhost"
    )
    email_to: tuple[str, ...] = _setting(
        "EVAL_EMAIL_TO", "addresses, comma-separated, that verdicts and give-ups are mailed to", _addresses
    )
    ui: str = _setting(
        "EVAL_UI",
        "where people open Dagster's UI, for links",
        _without_slash,
        default="http://127.0.0.1:3000",
    )
    report_url: str = _setting(
        "EVAL_REPORT_URL", "where people open the report, for links; by default its file in EVAL_STORE"
    )
    accelerators: Path | None = _setting(
        "EVAL_ACCELERATORS",
        "YAML file of what a Kubernetes cluster offers; by default only CPUs",
        _optional(_folder),
    )
    queue_timeout: int = _setting(
        "EVAL_QUEUE_TIMEOUT",
        "seconds for which a run may wait for a pod to be scheduled",
        _whole_number,
        default="86400",
    )
    cluster_patience: int = _setting(
        "EVAL_CLUSTER_PATIENCE",
        "seconds for which a Kubernetes API may be silent before runs fail",
        _whole_number,
        default="600",
    )
    pod: Mapping[str, Any] | None = _setting(
        "EVAL_POD",
        "what a run's pod is, for its records; set by the run launcher only",
        _optional(_pod),
        secret=True,
    )
    budget: float | None = _setting(
        "EVAL_BUDGET",
        "most that a month's evaluations may cost, in the unit of EVAL_ACCELERATORS' prices",
        _optional(_amount),
    )
    metrics_cells: int = _setting(
        "EVAL_METRICS_CELLS",
        "most cells whose scores are exported to Prometheus, some 20 series each",
        _whole_number,
        default="5000",
    )
    pushgateway: str | None = _setting(
        "EVAL_PUSHGATEWAY",
        "URL of a Pushgateway that runs tell their results; by default none is told",
        _optional(_gateway),
        secret=True,
    )
    traces: str | None = _setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OpenTelemetry collector (OTLP over HTTP) that gets a trace of each run; needs the extra tracing",
        _optional(str),
    )
    log_format: str = _setting(
        "EVAL_LOG_FORMAT",
        "text, or json: a JSON object a line of a run's log, with its ids",
        _one_of("text", "json"),
        default="text",
    )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the variables; relative paths start at the current folder.

        Raises UserError naming the variable where a value can't be used.
        """
        env = os.environ if environ is None else environ
        settings = cls(**{name: variable.value(env) for name, variable in VARIABLES.items()})
        if settings.email_to and not settings.smtp:
            raise UserError("EVAL_EMAIL_TO is set, but EVAL_SMTP is not: name the mail server")
        encoder = settings.bertscore_model or str(settings.data_mirror / LOCAL_ENCODER)
        return replace(
            settings,
            bertscore_model=encoder,
            git_revision=settings.git_revision or _checked_out_revision(),
        )


VARIABLES: Mapping[str, Variable] = {one.name: one.metadata["variable"] for one in fields(Settings)}
"""The variable of each setting, by the setting's name."""


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
