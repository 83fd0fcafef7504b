"""Layers of several groups in one step: each finds its own slots and block tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from paged_backend.errors import KernelError
from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.interface import Kernels, Rows, StepInputs
from tests.kernels.implementations import IMPLEMENTATIONS
from tests.kernels.step_case import make_cache, make_inputs

backends = pytest.mark.parametrize("kernels", [IMPLEMENTATIONS[name][0] for name in ("reference", "auto")])
BLOCKS, WIDTH, VOCAB, WINDOW = 30, 16, 50, 5
ROWS, CONTEXTS = [1, 7, 0, 1], [30, 25, 4, 1]


def group_inputs(group: int) -> StepInputs:
    """The same step, its blocks elsewhere in each group."""
    inputs = make_inputs(ROWS, CONTEXTS, num_blocks=BLOCKS, num_tokens=VOCAB, seed=group)
    return replace(inputs, token_ids=torch.arange(sum(ROWS)))


def together(*groups: StepInputs) -> StepInputs:
    return replace(
        groups[0],
        slot_mapping=torch.cat([inputs.slot_mapping for inputs in groups]),
        block_tables=torch.cat([inputs.block_tables for inputs in groups]),
    )


def model(kernels: Kernels, caches: list[LayerCache]) -> Callable[[Kernels, StepInputs], Rows]:
    """A layer for each cache; those of group 1 have a window."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCAB, WIDTH, generator=generator)
    qkv = [kernels.pack_linear(torch.randn(48, WIDTH, generator=generator)) for _ in caches]
    out = [kernels.pack_linear(torch.randn(WIDTH, 16, generator=generator)) for _ in caches]

    def step(kernels: Kernels, inputs: StepInputs) -> Rows:
        x = kernels.embedding(table, "token_ids", inputs)
        for cache, into, back in zip(caches, qkv, out, strict=True):
            query = kernels.qkv_to_cache(kernels.linear(x, into), cache, inputs, num_heads=2)
            window = WINDOW if cache.group == 1 else 0
            mixed = kernels.paged_attention(query, cache, inputs, scale=0.1, sliding_window=window)
            x = kernels.linear(mixed, back, residual=x)
        return x

    return step


def cache_of(group: int, seed: int) -> LayerCache:
    """A cache of small numbers, the same for the same seed."""
    cache = make_cache("float32", BLOCKS)
    cache.key_numbers().normal_(generator=torch.Generator().manual_seed(seed))
    cache.value_numbers().normal_(generator=torch.Generator().manual_seed(seed + 1))
    return replace(cache, group=group)


@backends
def test_a_layer_uses_its_groups_slots_and_tables(kernels: Kernels) -> None:
    step = together(*(group_inputs(group) for group in range(3)))
    qkv = torch.randn(sum(ROWS), 48)
    for group in range(3):
        results = []
        for inputs, own in ((step, group), (group_inputs(group), 0)):
            cache = cache_of(own, 7)
            query = kernels.qkv_to_cache(qkv.clone(), cache, inputs, num_heads=2)
            out = kernels.paged_attention(query.clone(), cache, inputs, scale=0.2, sliding_window=WINDOW)
            results.append((query, out, cache.keys, cache.values))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@backends
def test_a_step_of_layers_of_two_groups(kernels: Kernels) -> None:
    """One after the other in two pools, or all in the one: group 0's blocks of a pool are not group 1's."""
    inputs = together(group_inputs(0), group_inputs(1))
    mixed = kernels.compile(model(kernels, [cache_of(group, layer) for layer, group in enumerate((0, 1, 0, 1))]))
    result = mixed(inputs).clone()
    # The same with one group, where each layer's blocks have been moved to where group 0 has them.
    moved = []
    for layer, group in enumerate((0, 1, 0, 1)):
        cache, from_blocks = cache_of(group, layer), group_inputs(group).block_tables
        other = cache_of(0, 100 + layer)
        to_blocks = group_inputs(0).block_tables
        for index, context in enumerate(CONTEXTS):
            count = -(-context // cache.block_size)
            for tensor, source in ((other.keys, cache.keys), (other.values, cache.values)):
                tensor[to_blocks[index, :count].long()] = source[from_blocks[index, :count].long()]
        moved.append(replace(other, group=group))
    same = kernels.compile(model(kernels, moved))(together(group_inputs(0), group_inputs(0)))
    assert torch.equal(result, same)


@backends
def test_a_group_that_the_step_does_not_have(kernels: Kernels) -> None:
    before = cache_of(2, 0)
    cache = cache_of(2, 0)
    inputs = together(group_inputs(0), group_inputs(1))
    for refused in (
        lambda: kernels.qkv_to_cache(torch.randn(sum(ROWS), 48), cache, inputs, num_heads=2),
        lambda: kernels.paged_attention(torch.randn(sum(ROWS), 32), cache, inputs, scale=0.2),
        lambda: kernels.compile(model(kernels, [cache]))(inputs),
    ):
        with pytest.raises(KernelError, match=r"slot_mapping|block_tables"):
            refused()
    assert torch.equal(cache.keys, before.keys)


@backends
def test_slots_and_tables_must_be_of_as_many_groups(kernels: Kernels) -> None:
    two, one = together(group_inputs(0), group_inputs(1)), group_inputs(0)
    for inputs in (replace(two, block_tables=one.block_tables), replace(two, slot_mapping=one.slot_mapping)):
        with pytest.raises(KernelError, match="block_tables must have"):
            kernels.paged_attention(torch.randn(sum(ROWS), 32), cache_of(0, 0), inputs, scale=0.2)


@pytest.mark.parametrize("group", [-1, True, 1.0, None, 2**16])
def test_groups_that_cannot_be(group: object) -> None:
    with pytest.raises(KernelError, match=r"^group must be"):
        replace(make_cache("float32", 3), group=group)
