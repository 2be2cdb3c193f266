"""The MLflow registry against a real MLflow server, and a proxy in front of it where it has to fail."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import AliasMovedError, RegistryUnavailableError
from resources.registries import mlflow as module
from resources.registries.mlflow import MlflowRegistry
from resources.registries.verify import measure
from tests.conftest import ROOT
from tests.resources.registries.mlflow_server import MlflowServer, Proxy
from tests.resources.registries.test_registry_contract import MlflowShelf

WEIGHTS = "model.safetensors"


@pytest.fixture
def shelf(mlflow: MlflowServer, tmp_path: Path) -> MlflowShelf:
    return MlflowShelf(mlflow, tmp_path / "cache")


@pytest.fixture
def proxy(mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """With the client's retries, but none of their waiting."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setattr("resources.registries.copies._PAUSE_SECONDS", 0)
    server = Proxy(mlflow.url)
    yield server
    server.close()


def _through(proxy: Proxy, shelf: MlflowShelf, cache: Path) -> MlflowRegistry:
    return MlflowRegistry(proxy.url, cache, names=f"{shelf.prefix}-*")


# Versions and cursors


def test_more_versions_than_a_page_are_all_listed_oldest_first(
    shelf: MlflowShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies behind the first page would never be evaluated."""
    monkeypatch.setattr(module, "_PAGE", 100)
    keys = [shelf.register("many") for _ in range(320)]
    assert shelf.registry.versions().keys == tuple(keys)
    assert [key.version for key in keys] == [str(number) for number in range(1, 321)]


def test_a_cursor_reads_only_the_newest_pages(
    shelf: MlflowShelf, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 versions at every tick would keep the server busy for nothing."""
    monkeypatch.setattr(module, "_PAGE", 10)
    monkeypatch.setattr(module, "_OVERLAP_MS", 0)
    for _ in range(35):
        shelf.register("many")
    registry = _through(proxy, shelf, tmp_path)
    cursor = registry.versions().cursor
    whole = len(proxy.seen)
    new = shelf.register("many")
    proxy.seen.clear()
    listing = registry.versions(cursor)
    assert new in listing.keys
    assert len(listing.keys) < 12
    assert (whole, len(proxy.seen)) == (4, 1)


def test_a_version_of_a_server_whose_clock_is_behind_is_still_new(
    shelf: MlflowShelf, mlflow: MlflowServer, tmp_path: Path
) -> None:
    """Two servers behind one address, one five minutes behind: what it registers is older than the cursor."""
    shelf.register("tiny")
    of, changed, whole = json.loads(shelf.registry.versions().cursor)
    key = shelf.register("tiny")
    ahead = json.dumps([of, changed + 300_000, whole])
    assert key in shelf.registry.versions(ahead).keys
    far = json.dumps([of, changed + 10**9, whole])
    assert shelf.registry.versions(far).keys == ()


@pytest.mark.parametrize("moved", [3_601, -5])
def test_after_an_hour_and_after_a_clock_turned_back_everything_is_listed(
    shelf: MlflowShelf, monkeypatch: pytest.MonkeyPatch, moved: float
) -> None:
    """The one way to find what a jump of the server's clock has hidden."""
    key = shelf.register("tiny")
    of, changed, whole = json.loads(shelf.registry.versions().cursor)
    cursor = json.dumps([of, changed + 10**9, whole])
    assert shelf.registry.versions(cursor).keys == ()
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + moved)
    assert shelf.registry.versions(cursor).keys == (key,)


def test_a_cursor_of_another_pattern_lists_everything(
    shelf: MlflowShelf, mlflow: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is tracked from today on has versions that are older than yesterday's cursor."""
    monkeypatch.setattr(module, "_OVERLAP_MS", 0)
    old = shelf.register("other")
    shelf.register("tiny")
    narrow = MlflowRegistry(mlflow.url, tmp_path, names=f"{shelf.prefix}-tiny")
    cursor = narrow.versions().cursor
    assert old not in narrow.versions().keys
    assert old in shelf.registry.versions(cursor).keys


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{p}-*", {"tiny", "tiny_2", "TINY-big"}),
        ("{p}-tiny", {"tiny"}),
        ("{p}-tiny_*", {"tiny_2"}),
        ("{p}-t?ny", {"tiny"}),
        ("{p}-[tT]*", {"tiny", "tiny_2", "TINY-big"}),
        ("*-{p}", set()),
        ("{p}'; drop table model_versions; --*", set()),
    ],
)
def test_only_models_whose_names_match_the_pattern_are_listed(
    shelf: MlflowShelf, mlflow: MlflowServer, tmp_path: Path, pattern: str, names: set[str]
) -> None:
    for name in ("tiny", "tiny_2", "TINY-big"):
        shelf.register(name)
    registry = MlflowRegistry(mlflow.url, tmp_path, names=pattern.replace("{p}", shelf.prefix))
    assert {key.name for key in registry.versions().keys} == {f"{shelf.prefix}-{name}" for name in names}


def test_names_that_are_no_legal_keys_are_skipped_and_told(shelf: MlflowShelf) -> None:
    """MLflow allows spaces; a partition key doesn't. Silence would leave the user guessing."""
    shelf.register("my model")
    key = shelf.register("tiny")
    listing = shelf.registry.versions()
    assert listing.keys == (key,)
    assert [entry.place for entry in listing.skipped] == [f"{shelf.prefix}-my model@1"]
    assert "expected name@version" in listing.skipped[0].reason


def test_prompts_which_mlflow_keeps_among_the_models_are_no_versions(shelf: MlflowShelf) -> None:
    shelf.client.register_prompt(f"{shelf.prefix}-prompt", "Answer {{question}}")
    assert shelf.registry.versions().keys == ()


def test_a_version_that_is_not_ready_is_listed_once_it_is(shelf: MlflowShelf, mlflow: MlflowServer) -> None:
    """Its files are still on their way; and when they are there, the cursor has long gone on."""
    key = shelf.register("tiny")
    shelf.rewrite(key, status="PENDING_REGISTRATION")
    listing = shelf.registry.versions()
    assert listing.keys == ()
    assert [entry.reason for entry in listing.skipped] == ["its status in MLflow is PENDING_REGISTRATION"]
    with pytest.raises(UserError, match="its status in MLflow is PENDING_REGISTRATION"):
        shelf.registry.fetch(key)
    later = shelf.register("tiny")
    of, changed, whole = json.loads(shelf.registry.versions(listing.cursor).cursor)
    assert changed == int(shelf.client.get_model_version(key.name, key.version).last_updated_timestamp)
    shelf.rewrite(key, status="READY")
    assert shelf.registry.versions(json.dumps([of, changed, whole])).keys == (key, later)


def test_an_unknown_version_is_told_with_the_closest(shelf: MlflowShelf) -> None:
    key = shelf.register("tiny")
    for version in ("2", "01", "x", "1.0"):
        with pytest.raises(UserError) as error:
            shelf.registry.revision(ModelKey(key.name, version))
        assert str(error.value) == (
            f"model {key.name}@{version}: not in MLflow at {shelf.registry.root} (closest: {key})"
        )


# Files


def _same(folder: Path, model: Path) -> bool:
    return all((folder / path.name).read_bytes() == path.read_bytes() for path in model.iterdir())


def test_a_model_of_the_transformers_flavor_is_put_together_in_one_folder(
    shelf: MlflowShelf, mlflow: MlflowServer, tiny_model: Path
) -> None:
    """MLflow keeps the tokenizer apart from the model: neither alone can be evaluated."""
    import mlflow as client
    import mlflow.transformers as flavor
    from transformers import AutoModelForCausalLM, AutoTokenizer

    components = {
        "model": AutoModelForCausalLM.from_pretrained(tiny_model),
        "tokenizer": AutoTokenizer.from_pretrained(tiny_model),
    }
    client.set_tracking_uri(mlflow.url)
    with client.start_run(experiment_id=shelf.experiment):
        info = flavor.log_model(
            components,
            name="model",
            task="text-generation",
            pip_requirements=["transformers"],
            registered_model_name=f"{shelf.prefix}-flavor",
        )
    assert info.model_uri.startswith("models:/m-")
    key = ModelKey(f"{shelf.prefix}-flavor", "1")
    folder = shelf.registry.fetch(key)
    facts = measure(key, folder)
    assert facts.weight_bytes == measure(key, tiny_model).weight_bytes
    assert not (folder / "MLmodel").exists()
    assert not (folder / "model").exists()


def test_each_kind_of_source_is_fetched(shelf: MlflowShelf, tiny_model: Path, tmp_path: Path) -> None:
    """Whatever a team's own registering code has put there."""
    run = shelf.client.create_run(shelf.experiment).info
    shelf.client.log_artifacts(run.run_id, str(tiny_model), "deep/er")
    shutil.copytree(tiny_model, tmp_path / "volume" / "model")
    root = f"memory://{shelf.prefix}/models/7"
    for path in tiny_model.iterdir():
        fsspec.filesystem("memory").pipe(f"{root}/{path.name}", path.read_bytes())
    first = shelf.register("runs", f"runs:/{run.run_id}/deep/er", run.run_id)
    sources = {
        "runs": first,
        "above": shelf.register("above", f"{run.artifact_uri}/deep", run.run_id),
        "models": shelf.register("models", f"models:/{first.name}/{first.version}"),
    }
    for name, source in (("file", (tmp_path / "volume").as_uri()), ("store", root)):
        # The server allows local sources only inside its own artifacts; older ones allowed them all.
        key = shelf.register(name)
        shelf.rewrite(key, source=source, storage_location=source)
        sources[name] = key
    for name, key in sources.items():
        assert _same(shelf.registry.fetch(key), tiny_model), name
        assert shelf.registry.revision(key) == shelf.registry.revision(key), name
    before = {name: shelf.registry.revision(sources[name]) for name in ("file", "store")}
    config = tmp_path / "volume" / "model" / "config.json"
    os.utime(config, ns=(0, config.stat().st_mtime_ns + 1))
    fsspec.filesystem("memory").pipe(f"{root}/config.json", (tiny_model / "config.json").read_bytes())
    assert all(shelf.registry.revision(sources[name]) != revision for name, revision in before.items())


def test_a_version_without_a_hugging_face_folder_is_one_line(
    shelf: MlflowShelf, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "MLmodel").write_text("flavors: {}")
    (tmp_path / "pickled" / "model.pkl").write_bytes(b"")
    (tmp_path / "pickled" / "config.json").write_text("{}")
    with pytest.raises(UserError) as error:
        shelf.registry.fetch(shelf.add("pickled", "1", tmp_path / "pickled"))
    assert str(error.value) == (
        f"model {shelf.prefix}-pickled@1: its artifacts hold no Hugging Face folder (config.json beside "
        "*.safetensors), but MLmodel, config.json; log the folder that save_pretrained wrote, or use "
        "MLflow's transformers flavor"
    )
    with pytest.raises(UserError, match="but nothing that a load can read"):
        shelf.registry.fetch(shelf.register("nothing"))
    gone = shelf.register("gone")
    shelf.rewrite(gone, source="/nowhere/at/all", storage_location="/nowhere/at/all")
    with pytest.raises(UserError, match="its source /nowhere/at/all is no folder of this machine"):
        shelf.registry.fetch(gone)


def test_a_link_in_a_local_source_that_leads_out_is_refused(
    shelf: MlflowShelf, tiny_model: Path, tmp_path: Path
) -> None:
    """Whoever may register a model could have any file of the pod shipped along."""
    folder = shutil.copytree(tiny_model, tmp_path / "volume")
    (folder / "extra.json").symlink_to("/etc/hosts")
    key = shelf.register("file")
    shelf.rewrite(key, source=folder.as_uri(), storage_location=folder.as_uri())
    with pytest.raises(UserError, match="link that leaves the version's folder"):
        shelf.registry.fetch(key)


@pytest.mark.parametrize("path", ["../../../escaped.json", "/etc/escaped.json", "a/../../escaped.json"])
def test_an_artifact_path_that_leads_out_is_refused(
    shelf: MlflowShelf, proxy: Proxy, tiny_model: Path, tmp_path: Path, path: str
) -> None:
    key = shelf.add("tiny", "1", tiny_model)
    files = [{"path": name, "is_dir": False, "file_size": 2} for name in ("config.json", WEIGHTS, path)]
    proxy.faults["mlflow-artifacts/artifacts?"] = (200, json.dumps({"files": files}).encode())
    with pytest.raises(UserError) as error:
        _through(proxy, shelf, tmp_path / "a" / "b" / "cache").fetch(key)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_connection_that_is_cut_costs_that_file_only(
    shelf: MlflowShelf, proxy: Proxy, tiny_model: Path, tmp_path: Path
) -> None:
    key = shelf.add("tiny", "1", tiny_model)
    registry = _through(proxy, shelf, tmp_path / "other")
    proxy.faults[WEIGHTS] = "cut"
    with pytest.raises(RegistryUnavailableError) as error:
        registry.fetch(key)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "other" / str(key)).exists()
    proxy.faults.clear()
    proxy.seen.clear()
    assert _same(registry.fetch(key), tiny_model)
    fetched = [line.rsplit("/", 1)[1] for line in proxy.seen if "artifacts/" in line and "?" not in line]
    assert fetched[0] == WEIGHTS
    assert "config.json" not in fetched


# Aliases and notes


def test_who_moves_the_alias_right_after_us_wins_and_we_are_told(
    shelf: MlflowShelf, proxy: Proxy, tmp_path: Path
) -> None:
    """MLflow has no compare-and-set: reading back is what tells a promotion that it did not hold."""
    one, two, three = (shelf.register("tiny") for _ in range(3))
    shelf.registry.move_alias(one.name, "champion", one.version, None)
    proxy.after["registered-models/alias"] = lambda: shelf.client.set_registered_model_alias(
        one.name, "champion", three.version
    )
    with pytest.raises(AliasMovedError, match="is at version '3'"):
        _through(proxy, shelf, tmp_path).move_alias(one.name, "champion", two.version, one.version)
    assert shelf.registry.aliases(one.name) == {"champion": "3"}


@pytest.mark.parametrize("alias", ["", "latest", "v1", "a b", "x" * 300])
def test_an_alias_that_mlflow_refuses_is_one_line(shelf: MlflowShelf, alias: str) -> None:
    key = shelf.register("tiny")
    with pytest.raises(UserError) as error:
        shelf.registry.move_alias(key.name, alias, key.version, None)
    assert not isinstance(error.value, RegistryUnavailableError)
    assert "\n" not in str(error.value)


def test_a_long_note_is_cut(shelf: MlflowShelf) -> None:
    key = shelf.register("tiny")
    shelf.registry.annotate(key, {"verdict": "x" * 200_000})
    note = shelf.notes(key)["verdict"]
    assert len(note) == 5_000
    assert note.endswith("x…")


# Failures


ASKS: dict[str, Any] = {
    "versions": lambda registry, _: registry.versions(),
    "revision": lambda registry, key: registry.revision(key),
    "fetch": lambda registry, key: registry.fetch(key),
    "aliases": lambda registry, key: registry.aliases(key.name),
    "move_alias": lambda registry, key: registry.move_alias(key.name, "champion", key.version, None),
    "annotate": lambda registry, key: registry.annotate(key, {"verdict": "better"}),
}


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("ask", ASKS)
def test_a_server_that_fails_is_asked_three_times_and_then_unavailable(
    shelf: MlflowShelf, proxy: Proxy, tmp_path: Path, ask: str, status: int
) -> None:
    """Retry-After is an hour here: a tick of 30 s must not wait for it, the next one asks again anyway."""
    key = shelf.register("tiny")
    registry = _through(proxy, shelf, tmp_path)
    proxy.faults["/"] = status
    with pytest.raises(
        RegistryUnavailableError, match=rf"^MLflow at {proxy.url} can't .* now: HTTP {status};"
    ):
        ASKS[ask](registry, key)
    assert len(proxy.seen) == 3


def test_one_failure_among_answers_is_not_noticed(shelf: MlflowShelf, proxy: Proxy, tmp_path: Path) -> None:
    key = shelf.register("tiny")
    proxy.faults["model-versions/search"] = "once"
    assert _through(proxy, shelf, tmp_path).versions().keys == (key,)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("ask", ASKS)
def test_a_token_that_is_missing_or_expired_is_told_and_never_shown(
    shelf: MlflowShelf, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: str, status: int
) -> None:
    key = shelf.register("tiny")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cr3t-token")
    registry = _through(proxy, shelf, tmp_path)
    proxy.faults["/"] = status
    with pytest.raises(UserError, match=rf"\(HTTP {status}\): token missing or expired; set") as error:
        ASKS[ask](registry, key)
    assert not isinstance(error.value, RegistryUnavailableError)
    assert "MLFLOW_TRACKING_TOKEN" in str(error.value)
    assert set(proxy.authorizations) == {"Bearer s3cr3t-token"}
    assert len(proxy.seen) == 2  # the second to learn the status, which MLflow's error has not
    assert "s3cr3t" not in f"{error.value!r} {registry!r} {vars(error.value)}"
    assert error.value.__suppress_context__


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, "You are not authenticated. Please see the documentation"),  # MLflow's own basic-auth
        (403, "Permission denied"),
        (401, '{"error_code": "UNAUTHENTICATED", "message": "no"}'),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}'),
        (401, "<html>\n<body>401 Authorization Required</body></html>"),
    ],
)
def test_however_the_server_says_it_a_refusal_is_about_the_token(
    shelf: MlflowShelf, proxy: Proxy, tmp_path: Path, status: int, body: str
) -> None:
    registry = _through(proxy, shelf, tmp_path)
    proxy.faults["/"] = (status, body.encode())
    with pytest.raises(UserError, match=rf"\(HTTP {status}\): token missing or expired") as error:
        registry.versions()
    assert "\n" not in str(error.value)


def test_a_password_in_the_url_is_used_and_never_shown(
    shelf: MlflowShelf, proxy: Proxy, tmp_path: Path
) -> None:
    shelf.register("tiny")
    url = proxy.url.replace("://", "://ann:s3cr3t@")
    registry = MlflowRegistry(url, tmp_path, names=f"{shelf.prefix}-*")
    assert len(registry.versions().keys) == 1
    assert proxy.authorizations[0].startswith("Basic ")
    assert registry.root == proxy.url
    faults: dict[int | tuple[int, bytes], str] = {
        400: "can't list model versions: no",
        401: "HTTP 401",
        404: "can't list model versions: no",
        500: "HTTP 500",
        (200, b"<html>Please log in</html>"): "its answer is not MLflow's; check the URL and the token",
        (200, b'{"model_versions": 3}'): "its answer is not MLflow's; check the URL and the token",
    }
    for fault, line in faults.items():
        proxy.faults["/"] = fault
        with pytest.raises(UserError, match=f"^MLflow at {proxy.url}.*{line}") as error:
            registry.versions()
        assert "s3cr3t" not in str(error.value)
        assert "\n" not in str(error.value)


def test_a_server_that_is_down_is_unavailable(tmp_path: Path, proxy: Proxy) -> None:
    registry = MlflowRegistry("http://ann:s3cr3t@127.0.0.1:9", tmp_path)
    with pytest.raises(RegistryUnavailableError) as error:
        registry.versions()
    assert str(error.value) == (
        "MLflow at http://127.0.0.1:9 can't list model versions now: connection refused; "
        "it is asked again later"
    )


def test_a_server_that_hangs_is_given_up_in_time(
    shelf: MlflowShelf, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default three times 6 s; a user who wants to wait longer says so in MLflow's own variables."""
    seconds, retries = (
        module._CLIENT_SETTINGS[f"MLFLOW_HTTP_REQUEST_{n}"] for n in ("TIMEOUT", "MAX_RETRIES")
    )
    assert int(seconds) * (int(retries) + 1) + 2 + 3 < 30
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    proxy.faults["/"] = "hang"
    started = time.monotonic()
    with pytest.raises(RegistryUnavailableError, match="timed out"):
        _through(proxy, shelf, tmp_path).versions()
    assert time.monotonic() - started < 10


def test_the_timeout_is_long_while_files_come_and_short_again_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", module._CLIENT_SETTINGS["MLFLOW_HTTP_REQUEST_TIMEOUT"])
    with module._patience():
        with module._patience():
            assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "300"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "300"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "6"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    with module._patience():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


# The client


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False, env=environment, timeout=120,
    )  # fmt: skip


def test_a_missing_client_is_one_line() -> None:
    done = _python(
        "import sys; sys.modules['mlflow'] = None\n"
        "from pathlib import Path; from resources.registries.mlflow import MlflowRegistry\n"
        "from resources.errors import UserError\n"
        "try: MlflowRegistry('http://127.0.0.1:9', Path('x')).versions()\n"
        "except UserError as error: print(error)"
    )
    assert re.fullmatch(
        r"MLflow at http://127\.0\.0\.1:9 needs MLflow's client \(.*\): "
        r"install the extra 'mlflow' \(pip install -c constraints\.txt -e '\.\[mlflow\]'\)\n",
        done.stdout,
    ), done.stderr


def test_the_client_is_silent_sends_no_telemetry_and_brings_no_torch(
    shelf: MlflowShelf, mlflow: MlflowServer
) -> None:
    """It is loaded in a daemon: what it prints fills logs, and what it sends leaves the company."""
    shelf.register("tiny")
    done = _python(
        "import sys; from pathlib import Path; from resources.registries.mlflow import MlflowRegistry\n"
        "before = 'mlflow' in sys.modules\n"
        "listing = MlflowRegistry(sys.argv[1], Path('x'), sys.argv[2]).versions()\n"
        # Not is_telemetry_disabled(): below pytest and in CI it is true anyway.
        "from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY as disabled\n"
        "print(before, len(listing.keys), disabled.get(), 'torch' in sys.modules)",
        mlflow.url,
        f"{shelf.prefix}-*",
    )
    assert (done.stdout, done.stderr) == ("False 1 True False\n", "")
