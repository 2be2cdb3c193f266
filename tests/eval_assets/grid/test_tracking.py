"""What is tracked is one file; every mistake in it is one line with file, field and rule."""

from pathlib import Path

import pytest

from eval_assets.grid.tracking import tracking
from eval_assets.partitions import SUITE
from resources.errors import UserError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return path


WHOLE = """
models:
  - registry: {folder: weights}
    names: "a-*"
    benchmarks: [hellaswag, "tag:reading", "mmlu*"]
    baseline: {version: "7"}
    tolerances: {hellaswag: 0.05}
    chat: true
    dtype: bfloat16
    resources: {nvidia.com/gpu: "1"}
  - registry: {mlflow: "http://127.0.0.1:5000"}
"""


def test_a_model_belongs_to_the_first_entry_that_matches(tmp_path: Path) -> None:
    tracked = tracking(written(tmp_path, WHOLE), "models", SUITE)
    first, second = tracked.entry("a-model"), tracked.entry("b-model")
    assert first is not None
    assert second is not None
    assert first.registry.folder == str(tmp_path / "weights")
    assert first.datasets(SUITE) == ["hellaswag", "mmlu", "mmlu_0shot", "squad", "squad_v2"]
    assert (first.tolerance_of("hellaswag"), first.tolerance_of("squad")) == (0.05, 0.02)
    assert second.registry.mlflow == "http://127.0.0.1:5000"
    assert second.datasets(SUITE) == list(SUITE)
    assert (second.baseline.alias, second.promote, second.staged) == ("champion", False, False)


def test_without_a_file_every_model_of_the_folder_is_tracked_and_none_promoted() -> None:
    (entry,) = tracking(None, "/models", SUITE).models
    assert (entry.registry.folder, entry.names, entry.promote) == ("/models", "*", False)


def test_a_version_that_no_entry_tracks_is_one_line(tmp_path: Path) -> None:
    only = "models: [{registry: {folder: x}, names: a}]"
    with pytest.raises(UserError, match="model version b@1: no entry of EVAL_MODELS has a pattern"):
        tracking(written(tmp_path, only), "models", SUITE).entry_of("b@1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: []", "models.yaml: models: Tuple should have at least 1 item"),
        ("models: [{}]", "models.yaml: models[0].registry: Field required"),
        ("models: [{registry: {}}]", "give exactly one of 'folder', 'mlflow' and 'hub'"),
        ("models: [{registry: {hub: {}}}]", "name 'repos' or 'organizations'"),
        ("models: [{registry: {folder: x}, tolerence: 1}]", "models[0].tolerence: unknown field"),
        (
            "models: [{registry: {folder: x}, tolerance: 0}]",
            "models[0].tolerance: Input should be greater than 0",
        ),
        ("models: [{registry: {folder: x}, tolerance: .nan}]", "models[0].tolerance: "),
        ("models: [{registry: {folder: x}, dtype: int4}]", "models[0].dtype: expected one of auto, "),
        ("models: [{registry: {folder: x}, baseline: {}}]", "give exactly one of 'alias' and 'version'"),
        (
            "models: [{registry: {folder: x}, candidate: champion}]",
            "'candidate' and 'baseline' are the same alias, 'champion'",
        ),
        (
            "models: [{registry: {folder: x}, promote: true, baseline: {version: '1'}}]",
            "'promote' needs a baseline alias to move",
        ),
        (
            "models: [{registry: {folder: x}, benchmarks: [helaswag]}]",
            "models[0].benchmarks: 'helaswag' names no benchmark; there are ",
        ),
        (
            "models: [{registry: {folder: x}, benchmarks: ['tag:nothing']}]",
            "models[0].benchmarks: 'tag:nothing' names no benchmark",
        ),
        (
            "models: [{registry: {folder: x}, benchmarks: [squad], tolerances: {mmlu: 0.1}}]",
            "models[0].tolerances: 'mmlu' is none of the entry's benchmarks",
        ),
        ("models: [", "models.yaml: not valid YAML"),
    ],
)
def test_every_mistake_is_one_line_with_file_field_and_rule(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        tracking(written(tmp_path, text), "models", SUITE)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"EVAL_MODELS: .*nowhere.yaml can't be read: No such file"):
        tracking(tmp_path / "nowhere.yaml", "models", SUITE)
