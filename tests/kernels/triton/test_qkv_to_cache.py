"""Head norms, rotation and the cache's write in Triton, against the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.kernels.triton.kernels import TritonKernels
from paged_backend.kernels.triton.qkv_to_cache import qkv_to_cache
from tests.kernels.rounding import unit
from tests.kernels.step_case import make_cache, make_inputs
from tests.kernels.triton.placed import placed_cache, placed_inputs

NUM_HEADS, NUM_KV_HEADS = 6, 2
CACHE_DTYPES = ("float32", "float16", "int8", "fp8_e4m3")


def both(
    device: torch.device, qkv: Tensor, cache: LayerCache, rows: list[int], contexts: list[int], **options: Any
) -> tuple[tuple[Tensor, LayerCache], tuple[Tensor, LayerCache]]:
    """What Triton and the reference give, and what each leaves of a copy of the cache."""
    inputs = placed_inputs(make_inputs(rows, contexts, num_blocks=cache.num_blocks), device)
    results = []
    for kernels in (TritonKernels(device, qkv.dtype), ReferenceKernels(qkv.dtype)):
        copy = placed_cache(cache, device)
        out = kernels.qkv_to_cache(qkv.to(device), copy, inputs, **options)
        results.append((out.cpu(), placed_cache(copy, torch.device("cpu"))))
    return results[0], results[1]


def angles(num_positions: int, num_rotated: int) -> tuple[Tensor, Tensor]:
    """Any numbers will do; both halves differ, so that it matters which is whose."""
    return torch.randn(num_positions, num_rotated), torch.randn(num_positions, num_rotated)


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
@pytest.mark.parametrize(
    ("dtype", "head_size", "num_rotated", "with_norms"),
    [(torch.float16, 64, 64, True), (torch.float32, 80, 32, False), (torch.float32, 24, 0, True)],
)
def test_norms_and_turn(
    device: torch.device, cache_dtype: str, dtype: torch.dtype, head_size: int, num_rotated: int, with_norms: bool
) -> None:
    cache = make_cache(cache_dtype, 20, NUM_KV_HEADS, head_size=head_size, token_major_keys=True)
    qkv = torch.randn(7, (NUM_HEADS + 2 * NUM_KV_HEADS) * head_size).to(dtype)
    options: dict[str, Any] = {"num_heads": NUM_HEADS, "norm_eps": 1e-6}
    if num_rotated:
        cos, sin = angles(30, num_rotated)
        options["rotary"] = (cos.to(device), sin.to(device))
    if with_norms:
        options["query_norm"], options["key_norm"] = (torch.randn(2, head_size) + 1).to(device).unbind()
    (out, stored), (wanted, reference) = both(device, qkv, cache, [1, 5, 1], [30, 5, 17], **options)
    assert out.dtype == dtype
    near = 64 * head_size * unit(torch.float32)
    torch.testing.assert_close(out.float(), wanted.float(), rtol=4 * unit(dtype) + near, atol=near)
    assert torch.equal(stored.values, reference.values), "values are rounded alike, and nothing else is written"
    assert_same_heads(stored, reference)


def assert_same_heads(stored: LayerCache, reference: LayerCache) -> None:
    """Keys are equal but for a last bit of float32 and what rounding to the cache's dtype makes of it: one number
    next to the right one, now and then."""
    keys, wanted = stored.key_numbers(), reference.key_numbers()
    same_size = {1: torch.int8, 2: torch.int16, 4: torch.int32}[keys.dtype.itemsize]
    steps = (keys.contiguous().view(same_size).int() - wanted.contiguous().view(same_size).int()).abs()
    if keys.dtype == torch.float32:
        broken = ~torch.isclose(keys, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
        assert not broken.any()
    else:
        assert int(steps.max()) <= 1 and int((steps > 0).sum()) <= steps.numel() // 100
    if stored.has_scales:
        torch.testing.assert_close(stored.key_scales(), reference.key_scales(), rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("cache_dtype", ["int8", "fp8_e4m3"])
def test_heads_to_the_bit(device: torch.device, cache_dtype: str) -> None:
    """Ties, next to nothing, and what is no number: every byte as the reference has it, keys and values."""
    grid = torch.arange(-8, 8) / 2
    heads = torch.stack(
        [
            torch.cat((grid, torch.tensor([127.0]))).repeat(2)[:32],
            torch.cat((grid * 2.0**-10, torch.tensor([448.0]))).repeat(2)[:32],
            torch.zeros(32),
            torch.full((32,), 1e-37),
            torch.full((32,), 2e-36),
            torch.tensor([1.0, torch.nan]).repeat(16),
            torch.tensor([-torch.inf, 1.0]).repeat(16),
            torch.full((32,), 3e38),
            *torch.randn(4, 32) * torch.tensor([1e-3, 1.0, 17.0, 1e6]).unsqueeze(1),
        ]
    )
    cache = make_cache(cache_dtype, 4, num_kv_heads=1, head_size=32, token_major_keys=True)
    qkv = torch.cat((torch.zeros(12, 32), heads, heads.flip(1)), dim=1)
    (_, stored), (_, reference) = both(device, qkv, cache, [12], [12], num_heads=1)
    for kept, wanted in ((stored.keys, reference.keys), (stored.values, reference.values)):
        assert torch.equal(kept, wanted) or torch.equal(*(x.view(torch.float32).nan_to_num(7) for x in (kept, wanted)))


def test_rows_with_strides_and_tokens_that_are_none(device: torch.device) -> None:
    inputs = placed_inputs(make_inputs([3], num_blocks=4), device)
    qkv = torch.randn(3, 6 * 8 + 8, device=device)
    cache = placed_cache(make_cache("float32", 4, token_major_keys=True), device)
    wanted = placed_cache(cache, device)
    reference = ReferenceKernels()
    kept = dataclasses.replace(
        inputs, **{name: getattr(inputs, name)[:2] for name in ("token_ids", "positions", "slot_mapping")}
    )
    queries = reference.qkv_to_cache(qkv[:2, :48], wanted, kept, num_heads=2)
    slots = inputs.slot_mapping.clone()
    slots[2] = -1
    out = qkv_to_cache(qkv[:, :48], cache, inputs.positions, slots, 2, None, None, None, 0.0)
    assert torch.equal(out[:2], queries)
    assert torch.equal(cache.keys, wanted.keys) and torch.equal(cache.values, wanted.values)


def test_what_is_outside_touches_no_memory(device: torch.device) -> None:
    """Checked on the CPU, but not on a GPU: slots past the cache are left out, positions past the angles give NaN."""
    wide = placed_cache(make_cache("float32", 3, 1, head_size=4, token_major_keys=True), device)
    for blocks in (wide.keys, wide.values):
        blocks.zero_()
    cache = dataclasses.replace(wide, keys=wide.keys[1:2], values=wide.values[1:2])
    positions, slots = torch.tensor([0, 1, 2, -1]).to(device), torch.tensor([1, 4, 3, 2]).to(device)
    angles = torch.ones(2, 4, device=device)
    qkv = torch.ones(4, 12, device=device)
    out = qkv_to_cache(qkv, cache, positions, slots, 1, (angles, angles), None, None, 0.0)
    assert out.isnan().all(dim=1).tolist() == out.isnan().any(dim=1).tolist() == [False, False, True, True]
    keys, values = cache.key_numbers()[0, 0].T, cache.value_numbers()[0, 0]
    assert keys.isnan().any(dim=1).tolist() == [False, False, True, True] and keys[1].any()
    assert values.any(dim=1).tolist() == [False, True, True, True]
    for blocks in (wide.keys, wide.values):
        assert not blocks[0].any() and not blocks[2].any()


def test_turned_keys_are_refused(device: torch.device) -> None:
    with pytest.raises(KernelError, match="token_major_keys must be true"):
        both(device, torch.randn(1, 48), make_cache("float32", 3), [1], [1], num_heads=2)
