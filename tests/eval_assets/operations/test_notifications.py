"""Telling people of verdicts and give-ups: a webhook and a mail server on loopback that refuse, too."""

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from aiosmtpd import smtp
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session

from eval_assets.operations.notifications import notify
from resources.errors import UserError
from resources.settings import Settings
from tests.eval_assets.conftest import Automation
from tests.servers import free_port


class Receiver(ThreadingHTTPServer):
    """A webhook that answers what it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[int] = []
        self.received: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook/secret-part"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.answers.pop(0) if self.server.answers else 200
        if status == 200:
            self.server.received.append(json.loads(body))
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval_assets.operations.notifications._WAIT_SECONDS", 0.01)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("EVAL_WEBHOOK", server.url)
        yield server
        server.shutdown()
        thread.join()


def test_verdicts_and_give_ups_reach_the_webhook_once(receiver: Receiver, automation: Automation) -> None:
    (automation.project.registry / "tiny" / "2" / "tokenizer.json").unlink()
    automation.until_at_rest()
    automation.until_at_rest()
    texts = sorted(message["text"].splitlines()[0] for message in receiver.received)
    assert texts == ["*given up: register tiny@2*", "*tiny@1: first*"]


def test_a_webhook_is_tried_again_and_its_url_is_never_shown(receiver: Receiver) -> None:
    warnings: list[str] = []
    receiver.answers = [503, 500]
    assert notify(Settings.from_environment(), "a title", "a text", "http://ui", warnings.append)
    receiver.answers = [404, 200]
    assert not notify(Settings.from_environment(), "a title", "a text", "http://ui", warnings.append)
    assert len(receiver.received) == 1
    assert warnings == ["the webhook of EVAL_WEBHOOK was not reached (it answered 404): a title"]


def test_a_webhook_that_is_down_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setenv("EVAL_WEBHOOK", "http://127.0.0.1:1/secret-part")
    assert not notify(Settings.from_environment(), "a title", "a text", "http://ui", warnings.append)
    assert "secret-part" not in warnings[0]


class Mailbox:
    """A mail server's handler that keeps what it takes, and answers RCPT and DATA with what it is told to."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.refused: set[str] = set()
        self.messages: list[Envelope] = []
        self.logins: list[tuple[bytes, bytes]] = []

    async def handle_RCPT(  # noqa: N802 (aiosmtpd's name)
        self, server: smtp.SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: smtp.SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        answer = self.answers.pop(0) if self.answers else "250 OK"
        if answer.startswith("250"):
            self.messages.append(envelope)
        return answer

    def login(
        self, server: smtp.SMTP, session: Session, envelope: Envelope, kind: str, data: object
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"p@ss/word")


def _text(message: Envelope) -> str:
    assert isinstance(message.content, bytes)
    return message.content.decode()


def _with_mail(
    monkeypatch: pytest.MonkeyPatch, url: str, to: str = "a@example.org, b@example.org"
) -> Settings:
    monkeypatch.setenv("EVAL_SMTP", url)
    monkeypatch.setenv("EVAL_EMAIL_TO", to)
    return Settings.from_environment()


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def mail_server(mailbox: Mailbox) -> Iterator[str]:
    controller = Controller(mailbox, hostname="127.0.0.1", port=free_port())
    controller.start()
    yield f"127.0.0.1:{controller.port}"
    controller.stop()


def test_a_verdict_is_mailed_to_everyone(
    monkeypatch: pytest.MonkeyPatch, mailbox: Mailbox, mail_server: str
) -> None:
    settings = _with_mail(monkeypatch, f"smtp://{mail_server}")
    assert notify(settings, "tiny@2:\r\nBcc: c@example.org", "wörse on squad", "http://ui/x", print)
    [sent] = mailbox.messages
    assert sent.rcpt_tos == ["a@example.org", "b@example.org"]
    text = _text(sent)
    assert "Subject: tiny@2: Bcc: c@example.org\r\n" in text  # a title can add no header
    assert "Open in Dagster: http://ui/x" in text


def test_a_mail_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    monkeypatch: pytest.MonkeyPatch, mailbox: Mailbox, mail_server: str
) -> None:
    settings = _with_mail(monkeypatch, f"smtp://{mail_server}")
    warnings: list[str] = []
    mailbox.answers = ["451 try again", "452 full"]
    assert notify(settings, "title", "text", "http://ui", warnings.append)
    mailbox.answers = ["554 spam", "250 OK"]
    assert not notify(settings, "title", "text", "http://ui", warnings.append)
    mailbox.answers.clear()
    mailbox.refused = {"b@example.org"}
    assert not notify(settings, "title", "text", "http://ui", warnings.append)
    mailbox.refused.add("a@example.org")
    assert not notify(settings, "title", "text", "http://ui", warnings.append)
    assert warnings == [
        f"the mail server of EVAL_SMTP was not reached ({reason}): title"
        for reason in ("it answered 554", "it refused b@example.org", "it refused every recipient with 550")
    ]
    assert len(mailbox.messages) == 2


def test_a_mail_server_that_is_down_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    settings = _with_mail(monkeypatch, "smtp://someone:secret-part@127.0.0.1:1")
    assert not notify(settings, "title", "text", "http://ui", warnings.append)
    assert warnings == ["the mail server of EVAL_SMTP was not reached (ConnectionRefusedError): title"]


def test_a_password_is_sent_encrypted_only(
    monkeypatch: pytest.MonkeyPatch, mailbox: Mailbox, tmp_path: Path
) -> None:
    """STARTTLS where it is offered; where it is not, no password leaves for another machine."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_side)
    controller = Controller(
        mailbox, hostname="127.0.0.1", port=free_port(), tls_context=server_side, require_starttls=True,
        authenticator=mailbox.login, auth_required=True,
    )  # fmt: skip
    controller.start()
    warnings: list[str] = []
    try:
        settings = _with_mail(monkeypatch, f"smtp://me:p%40ss%2Fword@localhost:{controller.port}")
        assert not notify(settings, "title", "text", "http://ui", warnings.append)  # who signed that?
        assert not mailbox.logins
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert notify(settings, "title", "text", "http://ui", warnings.append), warnings
        wrong = _with_mail(monkeypatch, f"smtp://me:wrong@localhost:{controller.port}")
        assert not notify(wrong, "title", "text", "http://ui", warnings.append)
    finally:
        controller.stop()
    assert set(mailbox.logins) == {(b"me", b"p@ss/word"), (b"me", b"wrong")}
    assert "(its certificate is not trusted)" in warnings[0]
    assert "(it hung up at the user name and password)" in warnings[1]
    assert "wrong" not in warnings[1]


def test_no_password_goes_to_a_server_without_encryption(
    monkeypatch: pytest.MonkeyPatch, mailbox: Mailbox, mail_server: str
) -> None:
    monkeypatch.setattr("eval_assets.operations.notifications._is_loopback", lambda _: False)
    warnings: list[str] = []
    settings = _with_mail(monkeypatch, f"smtp://me:secret-part@{mail_server}")
    assert not notify(settings, "title", "text", "http://ui", warnings.append)
    assert "it offers no encryption, and the password is not sent without" in warnings[0]
    assert not mailbox.messages


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"EVAL_EMAIL_TO": "a@b.org"}, "EVAL_SMTP is not: name the mail server"),
        (
            {"EVAL_EMAIL_TO": "Anna", "EVAL_SMTP": "smtp://host"},
            "EVAL_EMAIL_TO='Anna': expected an e-mail address",
        ),
        (
            {"EVAL_EMAIL_TO": "a@b.org\nBcc: c@d.org", "EVAL_SMTP": "smtp://host"},
            "expected an e-mail address",
        ),
        ({"EVAL_SMTP": "https://me:secret-part@host"}, "EVAL_SMTP: expected smtp://"),
        ({"EVAL_SMTP": "smtp://me:secret-part@host:port"}, "EVAL_SMTP: expected smtp://"),
    ],
)
def test_a_mistake_in_the_mail_settings_is_one_line(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Settings.from_environment(environment)
    assert "secret-part" not in str(error.value)
