"""Engine settings, and what of them is part of a fingerprint."""

import subprocess
import sys
from typing import Any

import pytest

from resources.engines.settings import EngineSettings, fingerprint_fields
from resources.errors import UserError


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dtype": "float99"}, "engine dtype 'float99' does not exist; use one of auto, float32"),
        ({"device": "gpu"}, "engine device 'gpu' does not exist; use one of auto, cpu, cuda, mps"),
        ({"threads": 0}, "engine threads 0: use a whole number from 1 on"),
        ({"batch_tokens": -1}, "engine batch_tokens -1: use a whole number from 1 on"),
    ],
)
def test_a_setting_that_does_not_exist_is_one_clear_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        EngineSettings(**wrong)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", "auto", "float32"),
        ("cuda", "auto", "checkpoint"),
        ("cuda", "float32", "float32"),
        ("auto", "bfloat16", "bfloat16"),
        ("auto", "auto", "auto"),
    ],
)
def test_the_fingerprint_names_the_dtype(device: str, dtype: str, expected: str) -> None:
    fields = fingerprint_fields(EngineSettings(device=device, dtype=dtype))
    assert fields == {"engine": "transformers", "dtype": expected}


def test_what_only_rounds_differently_is_no_part_of_the_fingerprint() -> None:
    """Otherwise a resumed evaluation on a smaller machine would start again."""
    assert fingerprint_fields(EngineSettings(device="cpu", dtype="float32")) == fingerprint_fields(
        EngineSettings(device="cuda", dtype="float32", threads=3, batch_tokens=7, device_map=True, seed=5)
    )


def test_settings_and_fingerprint_need_no_torch() -> None:
    """The daemon computes fingerprints on every tick; torch would cost it seconds and a gigabyte."""
    program = (
        "import sys; from resources.engines.settings import EngineSettings, fingerprint_fields; "
        "fingerprint_fields(EngineSettings()); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
