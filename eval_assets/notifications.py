"""Telling people: a webhook that gets verdicts and give-ups as Slack and its likes read them."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime

import dagster as dg

from eval_assets.partitions import cell_key
from eval_assets.reconciling import Decision, Failures, Task, Work
from resources.results import ResultsStore
from resources.settings import Settings

TRIES = 3
TIMEOUT_SECONDS = 5.0
_WAIT_SECONDS = 0.5


def notify(settings: Settings, title: str, text: str, link: str, on_warning: Callable[[str], object]) -> bool:
    """Post to ``EVAL_WEBHOOK``, if there is one; whether it arrived.

    A receiver that is down is tried again a few times, then warned of and left: a message must not fail the
    work that it speaks of. The URL is a secret and is never shown.
    """
    if settings.webhook is None:
        return False
    body = json.dumps({"text": f"*{title}*\n{text}\n<{link}|Open in Dagster>"}).encode()
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(_WAIT_SECONDS * 2**attempt)
        try:
            request = urllib.request.Request(
                settings.webhook, body, {"Content-Type": "application/json"}, method="POST"
            )
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                response.read()
            return True
        except urllib.error.HTTPError as error:
            reason = f"it answered {error.code}"
            if error.code < 500 and error.code != 429:
                break
        except (OSError, ValueError) as error:
            reason = type(error).__name__
    on_warning(f"the webhook of EVAL_WEBHOOK was not reached ({reason}): {title}")
    return False


def report_given_up(
    settings: Settings, store: ResultsStore, decision: Decision, on_warning: Callable[[str], object]
) -> list[dg.AssetObservation]:
    """Say once of each task that it is given up: as an event in the UI, in the store and by the webhook."""
    events: list[dg.AssetObservation] = []
    for task, failed in decision.given_up.items():
        record = {
            "work": task.work.value,
            "model": task.model,
            "dataset": task.dataset,
            "fingerprint": task.fingerprint,
            "tries": failed.times,
            "reason": failed.reason,
            "at": datetime.now(UTC).isoformat(),
        }
        if not store.note_given_up(record):
            continue
        events.append(_event(task, failed))
        title = f"given up: {task.work} {' on '.join(part for part in (task.model, task.dataset) if part)}"
        text = f"{failed.reason} (tries: {failed.times}). Put it right, or: {how_to_retry(task)}"
        notify(settings, title, text, settings.ui, on_warning)
    return events


def how_to_retry(task: Task) -> str:
    """The command that has a task tried again."""
    what = task.model or task.dataset
    return f"python -m eval_assets retry '{what}'"


def _event(task: Task, failed: Failures) -> dg.AssetObservation:
    asset, partition = {
        Work.REGISTER: ("model_version", task.model),
        Work.PREPARE: ("benchmark", task.dataset),
        Work.EVALUATE: ("evaluation", str(cell_key(task.dataset, task.model)) if task.dataset else ""),
        Work.JUDGE: ("promotion", task.model),
    }[task.work]
    return dg.AssetObservation(
        asset_key=asset,
        partition=partition,
        description=f"given up: {failed.reason}",
        metadata={"reason": failed.reason, "tries": failed.times, "try_again": how_to_retry(task)},
    )
