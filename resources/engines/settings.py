"""How an engine is to run. Importable without torch: definitions and sensors read it too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resources.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Where and how a model runs.

    `device` "auto" is the first that exists of cuda, mps and cpu. `dtype` "auto" is float32 on a CPU, where
    bfloat16 is many times slower, and the checkpoint's own elsewhere. `threads` are the CPU threads of one
    operation (None leaves torch's choice). `batch_tokens` are the most tokens that go through the model at a
    time and `memory_bytes` the most that the process may use, weights included; None: as many as the device
    is fastest with, within what is free. `device_map` spreads a model over all GPUs (needs the package
    accelerate). Raises UserError for a name that does not exist.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    batch_tokens: int | None = None
    memory_bytes: int | None = None
    device_map: bool = False
    seed: int = 1234

    def __post_init__(self) -> None:
        for name, value, allowed in (("device", self.device, DEVICES), ("dtype", self.dtype, DTYPES)):
            if value not in allowed:
                raise UserError(f"engine {name} {value!r} does not exist; use one of {', '.join(allowed)}")
        for name, number in (
            ("threads", self.threads),
            ("batch_tokens", self.batch_tokens),
            ("memory_bytes", self.memory_bytes),
        ):
            if number is not None and number < 1:
                raise UserError(f"engine {name} {number}: use a whole number from 1 on")


def fingerprint_fields(settings: EngineSettings) -> Mapping[str, Any]:
    """The settings that may change a score by more than rounding: the engine and the dtype of its weights.

    A pure function of the settings, so that whoever plans an evaluation and whoever runs it, on machines
    that may differ, name it alike. For that reason "auto" on device "auto" stays "auto": where CPUs and GPUs
    work for one results store, set the device or the dtype. What it came to is in `Engine.description`.
    Device, batch size and threads move a log-likelihood by rounding only, about 1e-5 a token in float32.
    """
    dtype = settings.dtype
    if dtype == "auto" and settings.device != "auto":
        dtype = "float32" if settings.device == "cpu" else "checkpoint"
    return {"engine": "transformers", "dtype": dtype}
