"""The bytes of a block: sizes by hand, views that hit the right ones, and caches that do not fit refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paged_backend.errors import KernelError
from paged_backend.kernels.cache_layout import LayerCache, block_bytes, scales_offset
from tests.kernels.step_case import aligned


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        (("float32", 3, 16, 64), 3 * 16 * 64 * 4),
        (("bfloat16", 3, 16, 64), 3 * 16 * 64 * 2),
        (("float16", 1, 1, 1), 64),
        (("int8", 3, 16, 64), 3 * 16 * 64 + 3 * 16 * 4),
        (("int8", 1, 3, 5), 64),  # 15 bytes, 1 to the next multiple of 4, 12 of scales, padding
        (("int8", 2, 16, 3), 256),  # 96 bytes, 128 of scales, padding
    ],
)
def test_block_bytes(arguments: tuple[str, int, int, int], size: int) -> None:
    assert block_bytes(*arguments) == size


def test_scales_begin_at_a_multiple_of_4() -> None:
    assert scales_offset(1, 3, 5) == 16
    assert scales_offset(2, 16, 3) == 96


@pytest.mark.parametrize("arguments", [("int4", 1, 1, 1), ("float32", 0, 1, 1), ("int8", 1, 0, 1), ("int8", 1, 1, -1)])
def test_wrong_sizes_are_refused(arguments: tuple[str, int, int, int]) -> None:
    with pytest.raises(KernelError, match="cache"):
        block_bytes(*arguments)


def test_views_are_where_the_layout_says() -> None:
    """Numbers written byte by byte, as the formulas in the module's text have them."""
    num_blocks, num_heads, block_size, head_size = 3, 2, 5, 7
    size = block_bytes("int8", num_heads, block_size, head_size)
    begin = scales_offset(num_heads, block_size, head_size)
    cache = LayerCache(
        keys=aligned(torch.zeros(num_blocks, size, dtype=torch.uint8)),
        values=aligned(torch.zeros(num_blocks, size, dtype=torch.uint8)),
        dtype="int8",
        num_kv_heads=num_heads,
        block_size=block_size,
        head_size=head_size,
    )
    cache.keys[1, (1 * head_size + 6) * block_size + 3] = 11
    cache.values[2, (1 * block_size + 3) * head_size + 6] = 12
    assert cache.key_numbers().nonzero().tolist() == [[1, 1, 6, 3]]
    assert cache.value_numbers().nonzero().tolist() == [[2, 1, 3, 6]]
    place = begin + 4 * (1 * block_size + 3)
    cache.keys[0, place : place + 4] = torch.tensor([2.5]).view(torch.uint8)
    assert cache.key_scales()[0, 1, 3] == 2.5
    assert cache.num_blocks == num_blocks


@pytest.mark.parametrize(
    "change",
    [
        {"keys": torch.zeros(3, 512)},
        {"keys": torch.zeros(3, 448, dtype=torch.uint8)},
        {"keys": torch.zeros(2, 3, 512, dtype=torch.uint8)},
        {"keys": torch.zeros(512, 3, dtype=torch.uint8).T},
        {"values": torch.zeros(3, 513, dtype=torch.uint8)[:, :512]},
        {"values": torch.zeros(3 * 512 + 1, dtype=torch.uint8)[1:].view(3, 512)},
        {"values": torch.zeros(4, 512, dtype=torch.uint8)},
        {"dtype": "float64"},
        {"head_size": 9},
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    tensors = {name: torch.zeros(3, 512, dtype=torch.uint8) for name in ("keys", "values")}
    arguments = {**tensors, "dtype": "float32", "num_kv_heads": 4, "block_size": 4, "head_size": 8}
    LayerCache(**arguments)
    with pytest.raises(KernelError, match=r"^(keys|values|cache)\b"):
        LayerCache(**{**arguments, **change})
