"""A catalogue for tests, and model versions of any size."""

from pathlib import Path
from typing import Any

from resources.pods.catalogue import Catalogue, load_catalogue
from resources.registries import ModelVersion
from tests.conftest import ROOT

SHIPPED = ROOT / "deployments" / "kubernetes" / "base" / "accelerators.yaml"


def shipped() -> Catalogue:
    """The catalogue that the manifests deploy."""
    return load_catalogue(SHIPPED)


def catalogue(**changes: Any) -> Catalogue:
    """CPU pods up to 16 GiB, one small GPU class and one large one with eight devices."""
    return Catalogue.model_validate(
        {
            "cpu": {"cores": 4, "memory_gib": 16, "models_up_to": 500_000_000},
            "accelerators": {
                "small": {
                    "resource": "nvidia.com/gpu", "memory_gib": 24, "per_pod": 2, "price": 1.0,
                    "node_selector": {"gpu": "small"},
                    "spot": {"price": 0.4, "node_selector": {"spot": "yes"}},
                },
                "large": {
                    "resource": "nvidia.com/gpu", "memory_gib": 80, "per_pod": 8, "price": 4.0, "capacity": 8,
                    "host_memory_gib": 128, "node_selector": {"gpu": "large"},
                    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
                },
            },
            **changes,
        }
    )  # fmt: skip


def model(
    parameters: float, *, bytes_each: float = 2, layers: int = 32, heads: int = 8, vocabulary: int = 128_000
) -> ModelVersion:
    """A measured version: `heads` of 128 numbers for keys and as many for values in each layer."""
    kv = int(2 * layers * heads * 128 * bytes_each)
    return ModelVersion(
        f"m{parameters / 1e9:g}b@1", "digest", str(Path("/models")), "Llama", int(parameters),
        int(parameters * bytes_each), {}, 8192, vocabulary, layers, kv, chat_template=True,
    )  # fmt: skip
