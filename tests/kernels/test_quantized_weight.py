"""What a quantized weight means, and what is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paged_backend.errors import KernelError
from paged_backend.kernels.quantized_weight import QuantizedWeight


@pytest.mark.parametrize(("num_inputs", "group_size"), [(6, 6), (6, 3), (7, 3), (1, 1)])
def test_dequantized(num_inputs: int, group_size: int) -> None:
    values = torch.randint(-8, 8, (4, num_inputs), dtype=torch.int8)
    scales = torch.randn(4, -(-num_inputs // group_size))
    wide = QuantizedWeight(values, scales, 4, group_size).dequantized()
    for row in range(4):
        for column in range(num_inputs):
            assert wide[row, column] == values[row, column].float() * scales[row, column // group_size]


def test_dequantized_float8() -> None:
    """Every finite number of the format, times its row's scale."""
    numbers = [byte for byte in range(256) if byte & 127 != 127]
    values = torch.tensor([numbers, numbers], dtype=torch.uint8).view(torch.float8_e4m3fn)
    scales = torch.tensor([[1.0], [0.3]])
    quantized = QuantizedWeight(values, scales, 8, len(numbers))
    assert quantized.is_float8
    assert torch.equal(quantized.dequantized(), values.float() * scales)
    assert quantized.dequantized()[0].max() == 448.0


_ROWS = {"scales": torch.ones(4, 1), "group_size": 8}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bits", {"bits": 3}),
        ("values", {"values": torch.zeros(4, 8)}),
        ("values", {"values": torch.zeros(8, dtype=torch.int8)}),
        ("values", {"values": torch.zeros(0, 8, dtype=torch.int8)}),
        ("values", {"values": torch.zeros(8, 4, dtype=torch.int8).T}),
        ("values", {"values": torch.full((4, 8), -128, dtype=torch.int8)}),
        ("values", {"values": torch.full((4, 8), 8, dtype=torch.int8), "bits": 4}),
        ("values", {"values": torch.full((4, 8), -9, dtype=torch.int8), "bits": 4}),
        ("values", {"values": torch.zeros(4, 8).to(torch.float8_e4m3fn), "bits": 4}),
        ("values", {"values": torch.full((4, 8), torch.nan).to(torch.float8_e4m3fn), **_ROWS}),
        ("group_size", {"values": torch.zeros(4, 8).to(torch.float8_e4m3fn)}),
        ("group_size", {"group_size": 0}),
        ("group_size", {"group_size": 9}),
        ("scales", {"scales": torch.ones(4, 1)}),
        ("scales", {"scales": torch.ones(4, 2).half()}),
        ("scales", {"scales": torch.ones(2, 4).T}),
        ("scales", {"scales": torch.full((4, 2), torch.inf)}),
        ("scales", {"scales": torch.full((4, 2), torch.nan)}),
    ],
)
def test_wrong_parts_are_refused(name: str, change: dict[str, Any]) -> None:
    parts = {"values": torch.zeros(4, 8, dtype=torch.int8), "scales": torch.ones(4, 2), "bits": 8, "group_size": 4}
    QuantizedWeight(**parts)
    with pytest.raises(KernelError, match=rf"^{name}\b"):
        QuantizedWeight(**{**parts, **change})
