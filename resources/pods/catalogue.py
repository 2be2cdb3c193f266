"""What a cluster offers: classes of accelerators, and the CPU; the YAML file that EVAL_ACCELERATORS names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from resources.declared import load_declared

Text: TypeAlias = Annotated[str, Field(min_length=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
CPU = "cpu"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Nodes(_Strict):
    """Which nodes, and what an hour of one device (of one core in the CPU class) costs there."""

    node_selector: Mapping[Text, str] = {}
    tolerations: tuple[Mapping[str, Any], ...] = ()
    price: Annotated[float, Field(ge=0)] | None = None


class AcceleratorClass(Nodes):
    """One kind of accelerator: a GPU, a slice of one, on nodes of its own.

    `resource` is what Kubernetes calls it (``nvidia.com/gpu``, ``nvidia.com/mig-1g.10gb``, ``amd.com/gpu``).
    With `claim_template`, a name in which ``{count}`` is replaced, devices are asked for by Dynamic Resource
    Allocation instead. `memory_gib` is of one device. A pod may have up to `per_pod` of them, beside `cores`
    and `host_memory_gib` for each. `capacity` is how many devices there are in all, as far as they are ours:
    runs beyond it wait in Dagster instead of as pods. `autoscaled`: nodes may be added for a pod that
    waits. `tflops` is a device's dense peak in the dtype of most weights, for the first estimate of a model's
    cost. `spot`: nodes that can be taken away; they are tried first.
    """

    resource: Text | None = None
    claim_template: Text | None = None
    memory_gib: Positive
    per_pod: Count = 1
    cores: Positive = 4
    host_memory_gib: Positive = 32
    tflops: Positive = 50
    capacity: Count | None = None
    autoscaled: bool = False
    spot: Nodes | None = None

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> "AcceleratorClass":
        if (self.resource is None) == (self.claim_template is None):
            raise ValueError("give exactly one of 'resource' and 'claim_template'")
        return self


class CpuClass(Nodes):
    """Pods without an accelerator: the largest there can be, and which models are evaluated there.

    `models_up_to` is in parameters; 0 sends every model to an accelerator. `spot` as for accelerators.
    """

    cores: Positive = 4
    memory_gib: Positive = 16
    models_up_to: Annotated[int, Field(ge=0)] = 0
    autoscaled: bool = False
    spot: Nodes | None = None


class Catalogue(_Strict):
    """The whole file.

    Of the classes that a model fits into, the one with the lowest price for the devices that it takes is
    chosen; without prices, the first. A model of which nothing is known yet gets the class `unknown`. After
    `spot_tries` evictions a run asks for nodes that stay. `kueue_queue` hands every Job to that queue of
    Kueue. `priority_classes` are those of runs that a person waits for, of new versions, and of the
    night's. `spread` is a topology key that pods are spread over where possible. `shared_cache` says that
    models come from a volume that pods share and take no ephemeral storage.
    """

    cpu: CpuClass = CpuClass()
    accelerators: Mapping[Text, AcceleratorClass] = {}
    unknown: Text = CPU
    spot_tries: Annotated[int, Field(ge=0)] = 2
    kueue_queue: Text | None = None
    priority_classes: tuple[Text, Text, Text] | None = None
    spread: Text | None = None
    shared_cache: bool = True

    @field_validator("accelerators")
    @classmethod
    def _not_cpu(cls, value: Mapping[str, AcceleratorClass]) -> Mapping[str, AcceleratorClass]:
        if CPU in value:
            raise ValueError(f"{CPU!r} is the class without an accelerator; choose another name")
        return value

    @model_validator(mode="after")
    def _known(self) -> "Catalogue":
        if self.unknown != CPU and self.unknown not in self.accelerators:
            raise ValueError(f"'unknown' names the class {self.unknown!r}, which isn't in the file")
        return self

    def capacity(self, name: str) -> int | None:
        """How many devices of a class there are; None where that isn't said, and for the CPU class."""
        found = self.accelerators.get(name)
        return found.capacity if found is not None else None


def load_catalogue(path: Path) -> Catalogue:
    """Read the file. Raises UserError for a mistake, naming file, field and rule."""
    return load_declared(path, Catalogue, "EVAL_ACCELERATORS")
