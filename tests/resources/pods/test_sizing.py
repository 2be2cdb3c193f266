"""Which pod a model gets: large enough, not larger than it must be, and corrected by what happened."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.errors import UserError
from resources.pods.catalogue import CPU
from resources.pods.sizing import (
    GIB,
    Experience,
    device_need,
    host_need,
    largest,
    size_of_evaluating,
    size_of_fetching,
)
from tests.resources.pods.catalogues import catalogue, model, shipped


@pytest.mark.parametrize(
    ("parameters", "layers", "accelerator", "count"),
    [
        (135e6, 30, CPU, 0), (1.2e9, 16, "small", 1), (8e9, 32, "small", 2), (32e9, 64, "large", 2),
        (70e9, 80, "large", 3),
    ],
)  # fmt: skip
def test_a_model_gets_the_cheapest_class_that_holds_it(
    parameters: float, layers: int, accelerator: str, count: int
) -> None:
    size = size_of_evaluating(model(parameters, layers=layers), catalogue())
    assert (size.accelerator, size.count) == (accelerator, count)


def test_a_model_too_large_for_every_class_is_refused_with_need_and_largest_offer() -> None:
    with pytest.raises(
        UserError, match=r"^model m1000b@1 needs .* GiB .* largest offer is 8 x large with 632 GiB"
    ):
        size_of_evaluating(model(1e12, layers=128), catalogue())


def test_a_cluster_without_accelerators_says_what_its_cpus_take() -> None:
    none = catalogue(accelerators={})
    assert size_of_evaluating(model(135e6), none).accelerator == CPU
    with pytest.raises(
        UserError, match="has no accelerators, and its CPU class takes models up to 500,000,000"
    ):
        size_of_evaluating(model(7e9), none)


@given(
    st.floats(1e8, 1e11), st.sampled_from([2.0, 4.0]), st.integers(8, 128),
    st.sampled_from(["auto", "float32", "float16"]),
)  # fmt: skip
def test_what_is_given_holds_the_weights_and_every_need_is_positive(
    parameters: float, bytes_each: float, layers: int, dtype: str
) -> None:
    """A pod that can't even hold the weights fails after minutes of loading."""
    version = model(parameters, bytes_each=bytes_each, layers=layers)
    try:
        size = size_of_evaluating(version, shipped(), dtype=dtype)
    except UserError:
        return
    width = {"auto": bytes_each, "float32": 4, "float16": 2}[dtype]
    if size.accelerator == CPU:
        assert size.memory > 4 * parameters if dtype == "auto" else width * parameters
    else:
        offer = shipped().accelerators[size.accelerator]
        assert offer.memory_gib * size.count * GIB > width * parameters
        assert size.count <= offer.per_pod
        assert size.memory > width * parameters
    assert size.cores > 0
    assert size.storage > 0


def test_a_pod_that_was_killed_for_want_of_memory_is_followed_by_a_larger_one() -> None:
    version = model(135e6, heads=2)
    before = size_of_evaluating(version, catalogue())
    after = size_of_evaluating(version, catalogue(), Experience(host_killed=before.memory))
    assert after.memory == int(1.5 * before.memory)
    assert "ran out of memory" in after.why["experience"]
    again = size_of_evaluating(version, catalogue(), Experience(host_killed=int(0.9 * 16 * GIB)))
    assert again.accelerator == "small"  # larger than the CPU class has


def test_an_evaluation_that_took_little_makes_the_next_pod_smaller_but_never_larger() -> None:
    """An engine fills the memory that it finds: what it took is an upper bound of its need, not the need."""
    version = model(8e9)
    need, _ = device_need(version, Experience(), "auto")
    assert device_need(version, Experience(device_peak=need // 2), "auto")[0] == int(need // 2 * 1.2)
    assert device_need(version, Experience(device_peak=10 * need), "auto")[0] == need
    host, _ = host_need(version, Experience(host_peak=GIB), "auto")
    assert host == int(1.2 * GIB)


def test_spot_nodes_are_tried_first_and_left_after_evictions() -> None:
    version, offers = model(1.2e9, layers=16), catalogue()
    first = size_of_evaluating(version, offers)
    assert (first.spot, first.price) == (True, 0.4)
    assert size_of_evaluating(version, offers, Experience(evictions=1)).spot
    last = size_of_evaluating(version, offers, Experience(evictions=2))
    assert (last.spot, last.price) == (False, 1.0)


def test_the_deadline_comes_from_the_longest_evaluation_so_far() -> None:
    version = model(135e6)
    assert size_of_evaluating(version, catalogue()).deadline_seconds == 86_400
    known = Experience(seconds=1000.0)
    assert size_of_evaluating(version, catalogue(), known, cells=4).deadline_seconds == 20_000
    assert size_of_evaluating(version, catalogue(), Experience(seconds=1.0)).deadline_seconds == 3_600
    assert size_of_evaluating(version, catalogue(), Experience(seconds=1e9)).deadline_seconds == 7 * 86_400


def test_a_model_of_which_nothing_is_known_gets_the_class_for_the_unknown() -> None:
    assert size_of_evaluating(None, catalogue()).accelerator == CPU
    size = size_of_evaluating(None, catalogue(unknown="large"))
    assert (size.accelerator, size.count) == ("large", 1)
    assert "never measured" in size.why["class"]


def test_fetching_and_judging_take_no_accelerator() -> None:
    size = size_of_fetching(catalogue())
    assert (size.accelerator, size.count) == (CPU, 0)


def test_a_cache_of_its_own_is_counted_as_storage() -> None:
    shared = size_of_evaluating(model(8e9), catalogue())
    own = size_of_evaluating(model(8e9), catalogue(shared_cache=False))
    assert own.storage - shared.storage >= 16e9


def test_of_several_models_the_largest_decides() -> None:
    sizes = [size_of_evaluating(model(p), catalogue()) for p in (135e6, 70e9, 8e9)]
    assert largest(sizes).accelerator == "large"
