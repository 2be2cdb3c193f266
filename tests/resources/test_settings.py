from pathlib import Path

import pytest

from resources.errors import UserError
from resources.settings import VARIABLES, Settings
from tests.conftest import ROOT


def test_the_configuration_page_lists_every_variable_with_its_default() -> None:
    """A variable that nobody can find is a variable that nobody sets."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    for variable in VARIABLES.values():
        default = f"`{variable.default}`" if variable.default else ""
        assert f"| `{variable.name}` | {default} | {variable.meaning} |" in page


def test_environment_variables_are_read_in_one_place_only() -> None:
    readers = {
        path.relative_to(ROOT).as_posix()
        for package in ("eval_assets", "resources")
        for path in (ROOT / package).rglob("*.py")
        if "os.environ" in (text := path.read_text()) or "getenv(" in text
    }
    # The terminal asks for Dagster's own variable, the doctor for that and the hub's; the engine sets (and
    # does not read) CUDA's. Secrets of registries are read where they are used, so that nothing else holds
    # them.
    assert readers <= {
        "resources/settings.py",
        "eval_assets/commands/runs.py",
        "eval_assets/commands/doctor.py",
        "resources/engines/transformers_loading.py",
        "resources/registries/hub_client.py",
        "resources/registries/mlflow.py",
    }


def test_relative_folders_start_at_the_current_one_and_urls_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environment({"EVAL_REGISTRY": "s3://bucket/models"})
    assert settings.store == str(tmp_path / ".eval")
    assert settings.registry == "s3://bucket/models"
    assert settings.limit is None


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
@pytest.mark.parametrize("name", ["EVAL_LIMIT", "EVAL_THREADS", "EVAL_BATCH_TOKENS"])
def test_a_number_that_is_none_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{name}='{value}': expected a positive whole number"):
        Settings.from_environment({name: value})


def test_none_means_no_limit() -> None:
    assert Settings.from_environment({"EVAL_LIMIT": "none"}).limit is None
    assert Settings.from_environment({"EVAL_LIMIT": "25"}).limit == 25


def test_yes_or_no_is_all_that_a_switch_takes() -> None:
    assert Settings.from_environment({"EVAL_DEVICE_MAP": "yes"}).device_map is True
    with pytest.raises(UserError, match="EVAL_DEVICE_MAP='maybe': expected yes or no"):
        Settings.from_environment({"EVAL_DEVICE_MAP": "maybe"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("EVAL_NIGHTLY", "25:00", "expected a time like 02:00"),
        ("EVAL_NIGHTLY", "2", "expected a time like 02:00"),
        ("EVAL_TIMEZONE", "Berlin", "expected a time zone like Europe/Berlin"),
    ],
)
def test_a_night_that_is_none_is_refused_by_name(name: str, value: str, message: str) -> None:
    with pytest.raises(UserError, match=f"{name}='{value}': {message}"):
        Settings.from_environment({name: value})


def test_the_night_is_read_as_hour_and_minute() -> None:
    assert Settings.from_environment({"EVAL_NIGHTLY": "23:45"}).nightly == (23, 45)
