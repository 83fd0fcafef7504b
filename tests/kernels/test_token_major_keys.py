"""Keys may lie as values do, and numbers may be fp8: the reference serves both, to the same bits; C++ refuses them."""

from __future__ import annotations

import pytest
import torch

from paged_backend.errors import KernelError
from paged_backend.kernels.cache_layout import CACHE_DTYPES, LayerCache, block_bytes, smallest_head
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.kernels.registry import select_kernels
from tests.kernels.paged_case import make_case
from tests.kernels.rounding import assert_within
from tests.kernels.step_case import aligned, make_cache, make_inputs

ROWS, CONTEXTS = [1, 30, 0, 7], [40, 30, 5, 95]


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
def test_attention_sees_the_same_numbers(cache_dtype: str) -> None:
    outs = []
    for token_major_keys in (False, True):
        case = make_case(ROWS, CONTEXTS, cache_dtype=cache_dtype, token_major_keys=token_major_keys, sliding_window=50)
        outs.append(case.run(ReferenceKernels()))
    assert torch.equal(*outs)
    assert_within(outs[0], *case.exact())


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
def test_the_same_heads_are_stored(cache_dtype: str) -> None:
    inputs = make_inputs([1, 9, 4], [30, 9, 17], num_blocks=20)
    qkv = torch.randn(14, 6 * 8)
    stored = []
    for token_major_keys in (False, True):
        cache = make_cache(cache_dtype, 20, token_major_keys=token_major_keys)
        ReferenceKernels().qkv_to_cache(qkv.clone(), cache, inputs, num_heads=2)
        blocks, offsets = inputs.slot_mapping // 4, inputs.slot_mapping % 4
        numbers = cache.key_numbers()[blocks, :, :, offsets], cache.value_numbers()[blocks, :, offsets]
        scales = (cache.key_scales(), cache.value_scales()) if cache.has_scales else ()
        stored.append([*(part.float() for part in numbers), *(part[blocks, :, offsets] for part in scales)])
    assert all(torch.equal(*pair) for pair in zip(*stored, strict=True))


def test_where_a_token_major_key_lies() -> None:
    """Its numbers are bs * D apart for heads, D for tokens, 1 for themselves."""
    size = block_bytes("int8", 2, 5, 7)
    cache = LayerCache(
        keys=aligned(torch.zeros(3, size, dtype=torch.uint8)),
        values=aligned(torch.zeros(3, size, dtype=torch.uint8)),
        dtype="int8",
        num_kv_heads=2,
        block_size=5,
        head_size=7,
        token_major_keys=True,
    )
    cache.keys[1, (1 * 5 + 3) * 7 + 6] = 11
    assert cache.key_numbers().nonzero().tolist() == [[1, 1, 6, 3]]


def test_fp8_heads_to_the_bit() -> None:
    """The largest number becomes 448; ties go to even; next to nothing is 0, and what is no number NaN."""
    heads = torch.tensor(
        [
            [448.0, 17.0, 19.0, -17.0, 2.0**-9, 2.0**-10, 3 * 2.0**-10, 0.3],
            [-44.8, 4.48, 0, 0, 0, 0, 0, 0],
            [smallest_head("fp8_e4m3") / 2, 0, 0, 0, 0, 0, 0, 0],
            [1.0, torch.nan, 0, 0, 0, 0, 0, 0],
            [torch.inf, 1.0, 0, 0, 0, 0, 0, 0],
        ]
    )
    numbers = [
        [448, 16, 20, -16, 2.0**-9, 0, 2.0**-8, 0.3125],
        [-448, 44, 0, 0, 0, 0, 0, 0],  # 44.8 lies between 44 and 48
        *[[0.0] * 8] * 3,
    ]
    cache = make_cache("fp8_e4m3", 3, num_kv_heads=1)
    inputs = make_inputs([5], num_blocks=3)
    ReferenceKernels().qkv_to_cache(torch.cat((torch.zeros(5, 8), heads, heads), dim=1), cache, inputs, num_heads=1)
    blocks, offsets = inputs.slot_mapping // 4, inputs.slot_mapping % 4
    assert cache.value_numbers()[blocks, 0, offsets].tolist() == numbers
    assert cache.key_numbers()[blocks, 0, :, offsets].tolist() == numbers
    largest = torch.tensor([448.0, 44.8, 0, torch.nan, torch.nan])
    assert torch.equal(cache.key_scales()[blocks, 0, offsets].nan_to_num(-1), (largest / 448).nan_to_num(-1))


def test_cpp_kernels_refuse_what_they_cannot_read() -> None:
    kernels = select_kernels("cpu", num_threads=1)
    with pytest.raises(KernelError, match="token_major_keys must be false"):
        make_case([1], [5], token_major_keys=True).run(kernels)
    with pytest.raises(KernelError, match=r"cache dtype must be .*, got fp8_e4m3"):
        make_case([1], [5], cache_dtype="fp8_e4m3").run(kernels)
    with pytest.raises(KernelError, match="token_major_keys"):
        make_case([1], [5], token_major_keys=1)  # type: ignore[arg-type]
