"""A safetensors header is read without loading the file, and believed only where it adds up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from resources.errors import UserError
from resources.registries.safetensors_header import MAX_HEADER_BYTES, read_tensors


def _file(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def _tensor(shape: object, offsets: object, dtype: object = "F32") -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(["float32", "float16", "int64", "uint8", "bool", "float64"]),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        max_size=6,
    )
)
def test_names_shapes_and_sizes_are_those_the_library_wrote(
    tmp_path_factory: pytest.TempPathFactory, spec: dict[str, tuple[str, list[int]]]
) -> None:
    arrays = {name: np.zeros(shape, dtype) for name, (dtype, shape) in spec.items()}
    path = tmp_path_factory.mktemp("s") / "model.safetensors"
    path.write_bytes(save(arrays, metadata={"format": "np"}))
    read = {tensor.name: tensor for tensor in read_tensors(path, "model m@1")}
    assert {name: (t.shape, t.elements, t.size) for name, t in read.items()} == {
        name: (array.shape, array.size, array.nbytes) for name, array in arrays.items()
    }


@pytest.mark.parametrize(
    ("header", "data", "length", "line"),
    [
        (b"", b"", 2**63, f"not a safetensors file: it claims a header of {2**63:,} bytes"),
        (b"", b"", MAX_HEADER_BYTES + 1, "not a safetensors file: it claims a header of 100,000,001 bytes"),
        (b"{}", b"", 900, "truncated: its header has 900 bytes, the file 10; copy it again"),
        (b"{", b"", None, "not a safetensors file: its header can't be read"),
        (b"[1]", b"", None, r"not a safetensors file: its header can't be read \(no JSON object\)"),
        (b"[" * 100_000, b"", None, "not a safetensors file: its header can't be read"),
        (b"\xff\xfe\xfd", b"", None, "not a safetensors file: its header can't be read"),
        ({"w": 3}, b"", None, "not a safetensors file: its header can't be read"),
        ({"w": {"dtype": "F32"}}, b"", None, "not a safetensors file: its header can't be read"),
        (_tensor([1], [0, 4], "F99"), b"1234", None, "tensor 'w' has the unknown dtype 'F99'"),
        (_tensor([1], [0, 4], ["F32"]), b"1234", None, "tensor 'w' has the unknown dtype"),
        (_tensor([-1], [0, 4]), b"1234", None, "tensor 'w' has a wrong shape or wrong offsets"),
        (_tensor([True], [0, 4]), b"1234", None, "tensor 'w' has a wrong shape or wrong offsets"),
        (_tensor([1], [0, 4, 8]), b"1234", None, "tensor 'w' has a wrong shape or wrong offsets"),
        (_tensor([1], [0, 8]), b"12345678", None, "damaged: tensor 'w' should take 4 bytes from 0, its"),
        (_tensor([1], [4, 8]), b"12345678", None, "damaged: tensor 'w' should take 4 bytes from 0, its"),
        (_tensor([2], [0, 8]), b"1234567", None, "truncated: 7 bytes of tensors, its header names 8"),
        (_tensor([1], [0, 4]), b"12345", None, "damaged: 5 bytes of tensors, its header names 4"),
    ],
)
def test_a_header_that_does_not_add_up_is_refused(
    tmp_path: Path, header: Any, data: bytes, length: int | None, line: str
) -> None:
    """A hostile length must not allocate gigabytes, and a half-copied file must not be scored."""
    path = _file(tmp_path, header, data, length)
    with pytest.raises(UserError, match=f"^model m@1: model.safetensors is .*{line}|{line}") as error:
        read_tensors(path, "model m@1")
    assert "\n" not in str(error.value)


def test_an_almost_empty_file_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"123")
    with pytest.raises(UserError, match=r"is truncated: 3 bytes; copy it again"):
        read_tensors(path, "model m@1")
