"""How large a pod a model needs, and which class of the catalogue that is. Pure: numbers in, numbers out.

An estimate counts the weights, the keys and values of the texts that are read and written at once, one
batch's activations and output scores, and a margin. What happened before corrects it: an evaluation that ran
within some memory needs no more than that and a bit, one that was killed for want of memory needs more than
it had.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from resources.errors import UserError
from resources.pods.catalogue import CPU, AcceleratorClass, Catalogue, CpuClass
from resources.registries import ModelVersion

GIB = 1 << 30
MARGIN = 0.1
"""Of everything that is estimated: fragmentation, and layers that don't divide evenly between devices."""
DEVICE_GIB = 1.0
"""What a CUDA or ROCm context takes of each device before anything is computed."""
PROCESS_GIB = 2.5
"""Python, torch, Dagster, the metric models and the samples of a benchmark, in the host's memory."""
STORAGE_GIB = 8
"""Of the node's disk: logs, and what libraries put into /tmp."""
CACHED_TOKENS = {False: 32_768, True: 65_536}
"""Planned room for keys and values, in tokens, on a CPU and on an accelerator (`engines.memory`)."""
BATCH_TOKENS = {False: 2_048, True: 8_192}
_SCORED_POSITIONS = 1_024
_HEADROOM = 1.2
"""Above a peak that was measured."""
_AFTER_OOM = 1.5
"""Times the memory in which a pod was killed."""
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Experience:
    """What earlier pods of this model showed: bytes of the host's and the devices' memory.

    `host_peak` and `device_peak` are what finished evaluations took, `host_killed` what a pod had that was
    killed for want of memory; None where that never happened. (A device that is full kills nothing: the
    engine takes smaller batches.) `evictions`: how often in a row its pods were evicted. `seconds`: the
    longest that one evaluation of a cell would have taken on all its items.
    """

    host_peak: int | None = None
    device_peak: int | None = None
    host_killed: int | None = None
    evictions: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class PodSize:
    """What a pod asks for, and why.

    `accelerator` is a class of the catalogue ("cpu" for none), `count` how many devices. Memory and storage
    are in bytes. `why` has a line for each number that it rests on. `price` is per hour, None where unknown.
    """

    accelerator: str
    count: int
    cores: float
    memory: int
    storage: int
    spot: bool
    price: float | None
    deadline_seconds: int
    why: Mapping[str, str] = field(default_factory=dict)


Offer: TypeAlias = CpuClass | AcceleratorClass

_DEADLINE_SECONDS = (3_600, 7 * 86_400)
_UNKNOWN_DEADLINE_SECONDS = 86_400
_LATE = 5.0
"""Times the longest evaluation so far: a pod that takes longer hangs."""


def size_of_fetching(catalogue: Catalogue, model_bytes: int | None = None) -> PodSize:
    """A pod that fetches, measures or judges: never on an accelerator, and small."""
    storage = STORAGE_GIB * GIB + (0 if catalogue.shared_cache or model_bytes is None else model_bytes)
    return PodSize(
        CPU, 0, min(2.0, catalogue.cpu.cores), min(4, int(catalogue.cpu.memory_gib)) * GIB, storage,
        spot=False, price=_price(catalogue.cpu, 2.0), deadline_seconds=_UNKNOWN_DEADLINE_SECONDS,
        why={"class": "cpu: it runs no model"},
    )  # fmt: skip


def size_of_evaluating(
    model: ModelVersion | None,
    catalogue: Catalogue,
    experience: Experience | None = None,
    *,
    dtype: str = "auto",
    cells: int = 1,
) -> PodSize:
    """The pod for evaluating a model on so many benchmarks.

    `model` is None where it was never measured: it gets the class that the catalogue gives to the unknown.
    Raises UserError where no class is large enough, naming the need and the largest offer.
    """
    known = experience or Experience()
    deadline = _deadline(known, cells)
    if model is None:
        return _unknown(catalogue, deadline)
    fits: list[tuple[float, int, PodSize]] = []
    if model.parameters <= catalogue.cpu.models_up_to:
        need, why = host_need(model, known, dtype)
        if need <= catalogue.cpu.memory_gib * GIB:
            fits.append((0.0, 0, _on_cpu(model, catalogue, known, need, why, deadline)))
    for place, (name, offer) in enumerate(catalogue.accelerators.items(), 1):
        size = _on_accelerator(model, name, offer, catalogue, known, dtype, deadline)
        if size is not None:
            fits.append((size.price if size.price is not None else math.inf, place, size))
    if not fits:
        raise UserError(_too_large(model, catalogue, known, dtype))
    return min(fits, key=lambda fit: fit[:2])[2]


def device_need(model: ModelVersion, known: Experience, dtype: str) -> tuple[int, dict[str, str]]:
    """Bytes that a model takes of its devices in all, without their contexts, and why."""
    weights = _weights(model, dtype, on_accelerator=True)
    return _need(model, weights, on_accelerator=True, peak=known.device_peak, killed=None)


def host_need(model: ModelVersion, known: Experience, dtype: str) -> tuple[int, dict[str, str]]:
    """Bytes that a model takes in the host's memory where it is evaluated on the CPU, and why."""
    weights = _weights(model, dtype, on_accelerator=False)
    return _need(model, weights, on_accelerator=False, peak=known.host_peak, killed=known.host_killed)


def _need(
    model: ModelVersion, weights: int, *, on_accelerator: bool, peak: int | None, killed: int | None
) -> tuple[int, dict[str, str]]:
    width = weights / max(model.parameters, 1)  # bytes a parameter, as computed in
    stored = model.weight_bytes / max(model.parameters, 1)
    tokens = CACHED_TOKENS[on_accelerator]
    cache = int(tokens * model.kv_bytes_per_token * width / max(stored, 0.5))
    # A layer of a transformer has about 12 h^2 parameters, and a token 24 h numbers in its widest moment.
    hidden = math.sqrt(model.parameters / max(model.layers, 1) / 12)
    batch = int(BATCH_TOKENS[on_accelerator] * 24 * hidden * width)
    scores = int(_SCORED_POSITIONS * model.vocabulary * 4)
    process = 0 if on_accelerator else int(PROCESS_GIB * GIB)
    estimate = int((weights + cache + batch + scores) * (1 + MARGIN)) + process
    why = {
        "weights": f"{gib(weights)} ({model.parameters / 1e6:,.0f} M parameters, {width:g} bytes each)",
        "keys and values": f"{gib(cache)} for {tokens:,} tokens",
        "a batch": f"{gib(batch)} for {BATCH_TOKENS[on_accelerator]:,} tokens, {gib(scores)} for its scores",
        "estimate": f"{gib(estimate)}, {MARGIN:.0%} of margin in it",
    }
    need = estimate
    if peak is not None and int(peak * _HEADROOM) < need:
        need = int(peak * _HEADROOM)
        why["experience"] = f"{gib(need)}: earlier evaluations took {gib(peak)}"
    if killed is not None and int(killed * _AFTER_OOM) > need:
        need = int(killed * _AFTER_OOM)
        why["experience"] = f"{gib(need)}: a pod with {gib(killed)} ran out of memory"
    return need, why


def _weights(model: ModelVersion, dtype: str, *, on_accelerator: bool) -> int:
    if dtype == "auto":
        return model.weight_bytes if on_accelerator else 4 * model.parameters
    return _DTYPE_BYTES[dtype] * model.parameters


def _on_cpu(
    model: ModelVersion,
    catalogue: Catalogue,
    known: Experience,
    need: int,
    why: dict[str, str],
    deadline: int,
) -> PodSize:
    offer = catalogue.cpu
    cores = min(offer.cores, 2.0 if model.parameters < 2e8 else 4.0 if model.parameters < 1e9 else 8.0)
    spot = _spot(offer, catalogue, known)
    why = {"class": f"cpu: up to {offer.models_up_to:,} parameters are evaluated there", **why}
    return PodSize(
        CPU,
        0,
        cores,
        need,
        _storage(model, catalogue),
        spot,
        _price(offer, cores, spot=spot),
        deadline,
        why,
    )


def _on_accelerator(
    model: ModelVersion,
    name: str,
    offer: AcceleratorClass,
    catalogue: Catalogue,
    known: Experience,
    dtype: str,
    deadline: int,
) -> PodSize | None:
    need, why = device_need(model, known, dtype)
    usable = offer.memory_gib - DEVICE_GIB
    if usable <= 0:
        return None
    count = max(1, math.ceil(need / (usable * GIB)))
    if count > offer.per_pod:
        return None
    spot = _spot(offer, catalogue, known)
    host = int((_weights(model, dtype, on_accelerator=True) + 4 * GIB) * (1 + MARGIN))
    if known.host_killed is not None:
        host = max(host, int(known.host_killed * _AFTER_OOM))
    if host > offer.host_memory_gib * count * GIB:
        return None
    why = {
        "class": f"{name} x {count}: {gib(need)} of {count} x {usable:g} GiB that are free on such a device",
        **why,
    }
    return PodSize(
        name, count, offer.cores * count, host, _storage(model, catalogue), spot,
        _price(offer, count, spot=spot), deadline, why,
    )  # fmt: skip


def _unknown(catalogue: Catalogue, deadline: int) -> PodSize:
    why = {"class": f"{catalogue.unknown}: the model was never measured (register it first)"}
    if catalogue.unknown == CPU:
        cpu = catalogue.cpu
        memory = int(cpu.memory_gib * GIB)
        price = _price(cpu, cpu.cores)
        return PodSize(
            CPU,
            0,
            cpu.cores,
            memory,
            STORAGE_GIB * GIB,
            spot=False,
            price=price,
            deadline_seconds=deadline,
            why=why,
        )
    offer = catalogue.accelerators[catalogue.unknown]
    return PodSize(
        catalogue.unknown, 1, offer.cores, int(offer.host_memory_gib * GIB), STORAGE_GIB * GIB, spot=False,
        price=_price(offer, 1), deadline_seconds=deadline, why=why,
    )  # fmt: skip


def _spot(offer: Offer, catalogue: Catalogue, known: Experience) -> bool:
    return offer.spot is not None and known.evictions < catalogue.spot_tries


def _price(offer: Offer, amount: float, *, spot: bool = False) -> float | None:
    price = offer.spot.price if spot and offer.spot is not None else None
    price = offer.price if price is None else price
    return None if price is None else price * amount


def _storage(model: ModelVersion, catalogue: Catalogue) -> int:
    return STORAGE_GIB * GIB + (0 if catalogue.shared_cache else int(model.weight_bytes * (1 + MARGIN)))


def _deadline(known: Experience, cells: int) -> int:
    if known.seconds is None:
        return _UNKNOWN_DEADLINE_SECONDS
    shortest, longest = _DEADLINE_SECONDS
    return int(min(max(known.seconds * cells * _LATE, shortest), longest))


def _too_large(model: ModelVersion, catalogue: Catalogue, known: Experience, dtype: str) -> str:
    need, _ = device_need(model, known, dtype)
    offers = [
        (offer.per_pod * (offer.memory_gib - DEVICE_GIB), f"{offer.per_pod} x {name}")
        for name, offer in catalogue.accelerators.items()
    ]
    if not offers:
        need, _ = host_need(model, known, dtype)
        limit = catalogue.cpu.models_up_to
        return (
            f"model {model.key} needs {gib(need)} and has {model.parameters:,} parameters; the catalogue has "
            f"no accelerators, and its CPU class takes models up to {limit:,} parameters and "
            f"{catalogue.cpu.memory_gib:g} GiB: raise that, or add a class to EVAL_ACCELERATORS"
        )
    most, name = max(offers)
    return (
        f"model {model.key} needs {gib(need)} of accelerator memory; the largest offer is {name} with "
        f"{most:g} GiB: add a class to EVAL_ACCELERATORS, or set a smaller dtype for the model in EVAL_MODELS"
    )


def largest(sizes: Sequence[PodSize]) -> PodSize:
    """The pod for several models one after the other: the most of everything."""
    if not sizes:
        raise ValueError("no sizes")
    return max(sizes, key=lambda size: (size.accelerator != CPU, size.price or 0.0, size.count, size.memory))


def gib(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / GIB:,.1f} GiB"
