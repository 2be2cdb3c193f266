"""The catalogue's file: what is wrong with it is one line, with file, field and rule."""

from pathlib import Path

import pytest

from resources.errors import UserError
from resources.pods.catalogue import load_catalogue
from tests.resources.pods.catalogues import shipped


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("accelerators: {a: {resource: x/y}}", "accelerators.a.memory_gib: Field required"),
        ("accelerators: {a: {memory_gib: 8}}", "accelerators.a: give exactly one of"),
        ("accelerators: {a: {resource: x/y, memory_gib: -1}}", "accelerators.a.memory_gib: .*greater than 0"),
        ("accelerators: {a: {resource: x/y, memory_gib: 8, per_pot: 2}}", "a.per_pot: unknown field"),
        ("accelerators: {cpu: {resource: x/y, memory_gib: 8}}", "accelerators: 'cpu' is the class without"),
        ("unknown: a100", "'unknown' names the class 'a100', which isn't in the file"),
        ("cpu: [1", "not valid YAML"),
        ("- a", "Input should be"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_file_field_and_rule(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "accelerators.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"accelerators.yaml: .*{line}") as error:
        load_catalogue(path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named_with_its_variable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"EVAL_ACCELERATORS: .*none.yaml can't be read"):
        load_catalogue(tmp_path / "none.yaml")


def test_the_shipped_catalogue_is_valid_and_has_gpus_slices_and_another_maker() -> None:
    resources = {offer.resource for offer in shipped().accelerators.values()}
    assert {"nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "amd.com/gpu"} <= resources
