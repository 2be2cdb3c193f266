"""Telling people of verdicts and give-ups: a webhook as Slack and its likes read it, and e-mail."""

import json
import smtplib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

import dagster as dg

from eval_assets.grid.attempts import partition_of
from eval_assets.grid.reconciling import Decision, Failures, Task
from resources.errors import TransientError, UserError
from resources.results import ResultsStore
from resources.settings import Settings

TRIES = 3
TIMEOUT_SECONDS = 5.0
_WAIT_SECONDS = 0.5


def notify(settings: Settings, title: str, text: str, link: str, on_warning: Callable[[str], object]) -> bool:
    """Tell whoever wants to know (``EVAL_WEBHOOK``, ``EVAL_EMAIL_TO``); whether all of them were reached.

    A receiver that is down is tried again a few times, then warned of and left: a message must not fail the
    work that it speaks of. URLs and passwords are secrets and are never shown.
    """
    channels: dict[str, Callable[[], None]] = {}
    if settings.webhook is not None:
        url, body = settings.webhook, {"text": f"*{title}*\n{text}\n<{link}|Open in Dagster>"}
        channels["the webhook of EVAL_WEBHOOK"] = lambda: _post(url, body)
    if settings.email_to:
        message = _message(settings, title, f"{text}\n\nOpen in Dagster: {link}\n")
        channels["the mail server of EVAL_SMTP"] = lambda: _send(settings.smtp, message)
    reasons = {channel: _deliver(send) for channel, send in channels.items()}
    for channel, reason in reasons.items():
        if reason is not None:
            on_warning(f"{channel} was not reached ({reason}): {title}")
    return all(reason is None for reason in reasons.values())


def _deliver(send: Callable[[], None]) -> str | None:
    """Send it, a few times if need be; what was in the way, if something was."""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(_WAIT_SECONDS * 2**attempt)
        try:
            send()
            return None
        except TransientError as error:
            reason = str(error)
        except UserError as error:
            return str(error)
    return reason


def _post(url: str, body: dict[str, str]) -> None:
    try:
        content = json.dumps(body).encode()
        request = urllib.request.Request(url, content, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            response.read()
    except urllib.error.HTTPError as error:
        kind = TransientError if error.code >= 500 or error.code == 429 else UserError
        raise kind(f"it answered {error.code}") from None
    except ValueError:
        raise UserError("it is no URL") from None
    except OSError as error:
        raise TransientError(type(error).__name__) from None


def _message(settings: Settings, title: str, text: str) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = " ".join(title.split())
    message["From"] = settings.email_from
    message["To"] = ", ".join(settings.email_to)
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain="evaluation.invalid")
    message.set_content(text)
    return message


def _send(server: str, message: EmailMessage) -> None:
    """Send by ``smtp://user:password@host:port`` (STARTTLS where it is offered) or ``smtps://`` (TLS first).

    A password never goes over a network in the clear.
    """
    url = urlsplit(server)
    host, encrypted = url.hostname or "", url.scheme == "smtps"
    tls = ssl.create_default_context()
    try:
        # Not as a context manager: that waits for an answer to QUIT after a handshake that failed.
        with closing(
            smtplib.SMTP_SSL(host, url.port or 465, timeout=TIMEOUT_SECONDS, context=tls)
            if encrypted
            else smtplib.SMTP(host, url.port or 587, timeout=TIMEOUT_SECONDS)
        ) as connection:
            connection.ehlo()
            if not encrypted and connection.has_extn("starttls"):
                connection.starttls(context=tls)
                encrypted = True
            if url.username:
                if not (encrypted or _is_loopback(host)):
                    raise UserError("it offers no encryption, and the password is not sent without")
                _log_in(connection, unquote(url.username), unquote(url.password or ""))
            refused = connection.send_message(message)
            with suppress(OSError, smtplib.SMTPException):  # it has the message
                connection.quit()
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        kind = TransientError if all(400 <= code < 500 for code in codes) else UserError
        raise kind(f"it refused every recipient with {codes[0]}") from None
    except smtplib.SMTPResponseException as error:
        kind = TransientError if 400 <= error.smtp_code < 500 else UserError
        raise kind(f"it answered {error.smtp_code}") from None
    except ssl.SSLCertVerificationError:
        raise UserError("its certificate is not trusted") from None
    except (OSError, smtplib.SMTPException) as error:
        raise TransientError(type(error).__name__) from None
    if refused:
        raise UserError(f"it refused {', '.join(refused)}")


def _log_in(connection: smtplib.SMTP, user: str, password: str) -> None:
    try:
        connection.login(user, password)
    except smtplib.SMTPServerDisconnected:  # some cut the connection after the first wrong password
        raise UserError("it hung up at the user name and password") from None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def report_given_up(
    settings: Settings, store: ResultsStore, decision: Decision, on_warning: Callable[[str], object]
) -> list[dg.AssetObservation]:
    """Say once of each task that it is given up: as an event in the UI, in the store and by `notify`."""
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
    asset, partition = partition_of(task)
    return dg.AssetObservation(
        asset_key=asset,
        partition=partition,
        description=f"given up: {failed.reason}",
        metadata={"reason": failed.reason, "tries": failed.times, "try_again": how_to_retry(task)},
    )
