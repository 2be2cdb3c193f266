"""Results pushed to a real Pushgateway: none collides, none stale stays, none is lost when it is away."""

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from resources.errors import UserError
from resources.records import EvaluationRecord
from resources.telemetry import Pushgateway
from tests.prometheus import program
from tests.resources.test_results import evaluation_record
from tests.servers import free_port, serving

SESSION = uuid4().hex
"""In the names of stores: another session's tests may run on this machine, too."""
RECORD = evaluation_record(
    model_name="org/m", model="org/m@1", finished_at="2026-01-01T00:02:00+00:00",
    metrics={"f1": 0.5, "exact": None}, seconds={"load": 1.0, "prefill": 9.0}, samples=100,
    prompt_tokens=1000, output_tokens=50, cost=0.25, accelerator_seconds=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("pushgateway")
    address = f"127.0.0.1:{free_port()}"
    command = [program("prometheus-pushgateway"), f"--web.listen-address={address}"]
    with serving(command, f"http://{address}/-/ready", folder / "log", folder=folder):
        yield f"http://{address}"


def of(version: str, dataset: str = "squad") -> EvaluationRecord:
    return {**RECORD, "model_version": version, "model": f"org/m@{version}", "dataset": dataset}


def shown(url: str, store: str) -> set[tuple[str, str]]:
    """Version and benchmark of every group of a store."""
    mine = Pushgateway(url, store, warn).group("", "", "")["store"]
    with urllib.request.urlopen(f"{url}/api/v1/metrics", timeout=10) as answer:
        groups = [group["labels"] for group in json.load(answer)["data"]]
    return {(g["model_version"], g["dataset"]) for g in groups if g.get("store") == mine}


def warn(text: str) -> None:
    raise AssertionError(text)


def test_a_cells_results_are_there_with_the_names_of_the_article(url: str) -> None:
    gateway = Pushgateway(url, f"{SESSION}-a", warn)
    gateway.push(RECORD, [])
    mine = gateway.group("", "", "")["store"]
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if f'store="{mine}"' in line]
    [line] = [line for line in lines if line.startswith("llm_evaluation_score{")]
    for label in ('dataset="squad"', 'metric="f1"', 'model_name="org/m"', 'job="llm_evaluation"'):
        assert label in line
    assert line.endswith(" 0.5")
    assert any(line.startswith("llm_evaluation_duration_seconds{") for line in lines)


def test_what_was_superseded_goes_and_production_and_newer_versions_stay(url: str) -> None:
    gateway = Pushgateway(url, f"{SESSION}-b", warn)
    for version in ("1", "2", "3"):
        gateway.push(of(version), keep=["1", "2", "3"])
    gateway.push(of("1", "hellaswag"), keep=[])
    gateway.push(of("2"), keep=["3"])
    assert shown(url, f"{SESSION}-b") == {("2", "squad"), ("3", "squad"), ("1", "hellaswag")}
    gateway.push(of("4"), keep=["2"])
    assert shown(url, f"{SESSION}-b") == {("4", "squad"), ("2", "squad"), ("1", "hellaswag")}


def test_a_cell_that_is_evaluated_again_replaces_what_it_said(url: str) -> None:
    gateway = Pushgateway(url, f"{SESSION}-c", warn)
    gateway.push({**RECORD, "metrics": {"f1": 0.1, "gone": 1.0}}, [])
    gateway.push(RECORD, [])
    mine = gateway.group("", "", "")["store"]
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if f'store="{mine}"' in line]
    assert [line.rsplit(" ", 1)[1] for line in lines if line.startswith("llm_evaluation_score{")] == ["0.5"]


def test_two_stores_with_the_same_cells_do_not_collide(url: str) -> None:
    """Staging and production evaluate the same versions and share a gateway."""
    for store in (f"s3://{SESSION}/staging", f"s3://{SESSION}/production"):
        Pushgateway(url, store, warn).push(RECORD, [])
        Pushgateway(url, store, warn).push(of("2"), ["1"])
    Pushgateway(url, f"s3://{SESSION}/staging", warn).push(of("2"), [])
    assert shown(url, f"s3://{SESSION}/staging") == {("2", "squad")}
    assert shown(url, f"s3://{SESSION}/production") == {("1", "squad"), ("2", "squad")}


def test_many_pods_at_once_lose_nothing_of_each_other(url: str) -> None:
    pods = [
        threading.Thread(
            target=Pushgateway(url, f"{SESSION}-d", warn).push, args=(of("1", f"bench{number}"), [])
        )
        for number in range(16)
    ]
    for pod in pods:
        pod.start()
    for pod in pods:
        pod.join()
    assert shown(url, f"{SESSION}-d") == {("1", f"bench{number}") for number in range(16)}


def test_groups_of_others_are_left_alone(url: str) -> None:
    other = urllib.request.Request(f"{url}/metrics/job/backup/model_name/org", b"x 1\n", method="PUT")
    urllib.request.urlopen(other, timeout=10).close()
    Pushgateway(url, f"{SESSION}-e", warn).push(RECORD, [])
    assert Pushgateway(url, f"{SESSION}-e", warn).forget("org/m@1") == 1
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        assert 'job="backup"' in answer.read().decode()


def test_a_version_that_is_forgotten_is_shown_no_more(url: str) -> None:
    gateway = Pushgateway(url, f"{SESSION}-f", warn)
    for version, dataset in (("1", "squad"), ("1", "hellaswag"), ("2", "squad")):
        gateway.push(of(version, dataset), ["1", "2"])
    assert gateway.forget("org/m@1") == 2
    assert shown(url, f"{SESSION}-f") == {("2", "squad")}


def test_a_gateway_that_is_away_is_told_of_once(tmp_path: Path) -> None:
    warnings: list[str] = []
    gateway = Pushgateway(f"http://127.0.0.1:{free_port()}", "store", warnings.append)
    for _ in range(3):
        gateway.push(RECORD, [])
    [warning] = warnings
    assert "the Pushgateway of EVAL_PUSHGATEWAY was not reached (URLError)" in warning
    with pytest.raises(UserError, match="is still shown there"):
        gateway.forget("org/m@1")


def test_a_gateway_that_never_answers_costs_seconds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation of hours must not wait for a monitoring that hangs, nor once for each cell."""
    monkeypatch.setattr("resources.telemetry.pushgateway.TIMEOUT_SECONDS", 0.3)
    warnings: list[str] = []
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        gateway = Pushgateway(f"http://127.0.0.1:{silent.getsockname()[1]}", "store", warnings.append)
        start = time.monotonic()
        for _ in range(5):
            gateway.push(RECORD, [])
    assert time.monotonic() - start < 3
    assert len(warnings) == 1
