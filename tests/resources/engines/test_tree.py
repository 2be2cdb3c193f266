"""The two halves of a model: the output layer for few rows."""

import pytest
import torch

from resources.engines.tree import _FewRows


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", range(1, 11))
def test_few_rows_give_what_the_layer_itself_gives(rows: int, bias: bool) -> None:
    """A text that is written alone, or the last of a batch, would get other tokens than its neighbours."""
    torch.manual_seed(rows)
    linear = torch.nn.Linear(48, 320, bias=bias)
    hidden = torch.randn(1, rows, 48)
    with torch.inference_mode():
        found, expected = _FewRows(linear)(hidden), linear(hidden)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)
