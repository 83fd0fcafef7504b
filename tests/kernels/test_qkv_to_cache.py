"""Head norms, rotation and the cache's write in one, against float64, token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.interface import Kernels
from tests.kernels.implementations import IMPLEMENTATIONS, implementations
from tests.kernels.rounding import assert_within, unit
from tests.kernels.step_case import make_cache, make_inputs, stored_heads

CACHE_DTYPES = ("float32", "bfloat16", "float16", "int8")
cache_dtypes = pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
EPS = 1e-6
ROWS, CONTEXTS = [1, 9, 4], [30, 9, 17]


def angles(num_positions: int, num_rotated: int) -> tuple[Tensor, Tensor]:
    frequency = 10000.0 ** -(torch.arange(0, num_rotated, 2) / num_rotated)
    angle = torch.arange(num_positions).unsqueeze(1) * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair as a complex number, multiplied with e^(i * angle)."""
    half = cos.shape[-1] // 2
    pairs = torch.complex(x[..., :half], x[..., half : 2 * half])
    product = pairs * torch.complex(cos[:, :half].double(), sin[:, :half].double()).unsqueeze(1)
    return torch.cat((product.real, product.imag, x[..., 2 * half :]), dim=-1)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def assert_stored(stored: Tensor, exact: Tensor, error: Tensor, cache_dtype: str) -> None:
    """What the cache holds is the exact head, but for the float32 error and the rounding to the cache's dtype."""
    if cache_dtype == "int8":
        # Half a step, where a step is the largest number / 127; and the error of both, of the quotient included.
        largest = exact.abs().amax(-1, keepdim=True)
        half_step = (largest + error.amax(-1, keepdim=True)) / 254 * (1 + 300 * unit(torch.float32))
        assert bool(((stored - exact).abs() <= 2 * error.amax(-1, keepdim=True) + half_step).all())
    else:
        rounded = unit(getattr(torch, cache_dtype)) * (exact.abs() + error) + 2.0**-24
        assert bool(((stored - exact).abs() <= error + rounded).all())


@implementations
@cache_dtypes
@pytest.mark.parametrize(
    ("head_size", "num_rotated", "with_norms"),
    [(2, 2, False), (16, 16, True), (80, 32, False), (64, 64, True), (64, 0, False), (24, 0, True), (5, 4, False)],
)
def test_qkv_to_cache(
    kernels: Kernels, dtype: torch.dtype, cache_dtype: str, head_size: int, num_rotated: int, with_norms: bool
) -> None:
    num_heads, num_kv_heads = 6, 2
    inputs = make_inputs(ROWS, CONTEXTS, num_blocks=20)
    cache = make_cache(cache_dtype, 20, num_kv_heads, head_size=head_size)
    before = cache.keys.clone(), cache.values.clone()
    qkv = torch.randn(sum(ROWS), (num_heads + 2 * num_kv_heads) * head_size).to(dtype)
    rotary = angles(40, num_rotated) if num_rotated else None
    norms = torch.randn(2, head_size) + 1 if with_norms else None
    out = kernels.qkv_to_cache(
        qkv.clone(),
        cache,
        inputs,
        num_heads=num_heads,
        rotary=rotary,
        query_norm=None if norms is None else norms[0].clone(),
        key_norm=None if norms is None else norms[1].clone(),
        norm_eps=EPS,
    )
    heads = qkv.double().view(sum(ROWS), -1, head_size)
    query, key, value = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if norms is not None:
        query, key = normed(query, norms[0]), normed(key, norms[1])
    if rotary is not None:
        cos, sin = (table[inputs.positions] for table in rotary)
        query, key = turned(query, cos, sin), turned(key, cos, sin)
    # The norm errs by half the head's size in roundings and some; the rotation mixes two numbers of a head.
    roundings = (head_size / 2 + 8 if with_norms else 0) + (8 if num_rotated else 0)

    def error(exact: Tensor) -> Tensor:
        return (exact.abs().amax(-1, keepdim=True) * roundings * unit(torch.float32)).expand_as(exact)

    assert out.dtype == dtype and out.shape == (sum(ROWS), num_heads * head_size)
    assert_within(out, query.flatten(1), error(query).flatten(1))
    keys, values = stored_heads(cache, inputs.slot_mapping)
    assert_stored(keys, key, error(key), cache_dtype)
    assert_stored(values, value, torch.zeros_like(value), cache_dtype)
    if cache_dtype != "int8":
        wanted = value.to(getattr(torch, cache_dtype)).double()
        assert torch.equal(values, wanted)

    # Writing back what was there must restore every byte: nothing beside the slots was touched.
    blocks, offsets = inputs.slot_mapping // 4, inputs.slot_mapping % 4
    old = type(cache)(
        keys=_like(cache.keys, before[0]),
        values=_like(cache.values, before[1]),
        dtype=cache_dtype,
        num_kv_heads=num_kv_heads,
        block_size=4,
        head_size=head_size,
    )
    views = [(cache.key_numbers(), old.key_numbers(), (blocks, slice(None), slice(None), offsets))]
    views += [(cache.value_numbers(), old.value_numbers(), (blocks, slice(None), offsets))]
    if cache_dtype == "int8":
        views += [(cache.key_scales(), old.key_scales(), (blocks, slice(None), offsets))]
        views += [(cache.value_scales(), old.value_scales(), (blocks, slice(None), offsets))]
    for new, was, index in views:
        new[index] = was[index]
    assert torch.equal(cache.keys, before[0]) and torch.equal(cache.values, before[1])


def _like(tensor: Tensor, content: Tensor) -> Tensor:
    """The content in memory that is laid out and aligned like the tensor."""
    buffer = torch.empty(content.numel() + 64, dtype=torch.uint8)
    return buffer[-buffer.data_ptr() % 64 :][: content.numel()].view(tensor.shape).copy_(content)


@pytest.mark.parametrize("name", ["reference", "auto"])
def test_int8_heads_to_the_bit(name: str) -> None:
    """All implementations round alike: ties to even, next to nothing to 0, and what is no number to NaN."""
    kernels, _ = IMPLEMENTATIONS[name]
    cache = make_cache("int8", 3, num_kv_heads=1, head_size=8)
    heads = torch.tensor(
        [
            [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 3.0],
            [0.0] * 8,
            [1e-37, -1e-37, 0, 0, 0, 0, 0, 0],
            [2e-36, -2e-36, 0, 0, 0, 0, 0, 0],
            [1.0, torch.nan, 0, 0, 0, 0, 0, 0],
            [torch.inf, 1.0, 0, 0, 0, 0, 0, 0],
            [3e38, 1.5e38, 0, 0, 0, 0, 0, 0],
        ]
    )
    inputs = make_inputs([7], num_blocks=3)
    qkv = torch.cat((torch.zeros(7, 8), heads, heads), dim=1)
    kernels.qkv_to_cache(qkv, cache, inputs, num_heads=1)
    blocks, offsets = inputs.slot_mapping // 4, inputs.slot_mapping % 4
    numbers = [
        [127, 0, 2, 2, 0, -2, -126, 3],
        [0] * 8,
        [0] * 8,
        [127, -127, 0, 0, 0, 0, 0, 0],
        [0] * 8,
        [0] * 8,
        [127, 64, 0, 0, 0, 0, 0, 0],
    ]
    assert cache.value_numbers()[blocks, 0, offsets].tolist() == numbers
    assert cache.key_numbers()[blocks, 0, :, offsets].tolist() == numbers
    largest = torch.tensor([127.0, 0, 0, 2e-36, torch.nan, torch.nan, 3e38])
    for scales in (cache.key_scales(), cache.value_scales()):
        assert torch.equal(scales[blocks, 0, offsets].nan_to_num(-1), (largest / 127).nan_to_num(-1))


@implementations
@pytest.mark.parametrize("slot", [-1, 12])
def test_slots_outside_the_cache_are_refused(kernels: Kernels, dtype: torch.dtype, slot: int) -> None:
    cache = make_cache("float32", 3)
    before = cache.keys.clone()
    inputs = make_inputs([2], num_blocks=3)
    inputs.slot_mapping[1] = slot
    with pytest.raises(KernelError, match="slot_mapping"):
        kernels.qkv_to_cache(torch.ones(2, 6 * 8).to(dtype), cache, inputs, num_heads=2)
    assert torch.equal(cache.keys, before)


@implementations
@pytest.mark.parametrize("position", [-1, 5])
def test_positions_outside_the_tables_are_refused(kernels: Kernels, dtype: torch.dtype, position: int) -> None:
    inputs = make_inputs([2], num_blocks=3)
    inputs.positions[1] = position
    with pytest.raises(KernelError, match="positions"):
        kernels.qkv_to_cache(
            torch.ones(2, 6 * 8).to(dtype), make_cache("float32", 3), inputs, num_heads=2, rotary=angles(5, 8)
        )
