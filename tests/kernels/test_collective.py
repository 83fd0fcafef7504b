"""A step with collectives is computed as if its operations were called one by one, whatever lies between them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cpu.kernels import CpuKernels
from paged_backend.kernels.interface import Kernels, Rows, StepInputs
from tests.kernels.implementations import implementations
from tests.kernels.step_case import make_cache, make_inputs

WIDTH = 32
TABLE = torch.randn(100, WIDTH, generator=torch.Generator().manual_seed(1))
ROWS = torch.tensor([5, 2], dtype=torch.int64)


class Doubled:
    """Rows beside themselves, one more: as if another rank had those."""

    def num_outputs(self, num_inputs: int) -> int:
        return 2 * num_inputs

    def __call__(self, x: Tensor) -> Tensor:
        assert x.stride(1) == 1
        return torch.cat((x, x + 1), 1)


class Halved:
    """The sum of both halves."""

    def num_outputs(self, num_inputs: int) -> int:
        return num_inputs // 2

    def __call__(self, x: Tensor) -> Tensor:
        return x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :]


class Same(Halved):
    """What comes in."""

    def num_outputs(self, num_inputs: int) -> int:
        return num_inputs

    def __call__(self, x: Tensor) -> Tensor:
        return x.clone()


@implementations
@pytest.mark.parametrize("selects", [True, False])
def test_buffers_live_across_collectives(kernels: Kernels, dtype: torch.dtype, selects: bool) -> None:
    """Two collectives in a row, one of them right at the end, residuals from two programs before, selected rows."""
    generator = torch.Generator().manual_seed(2)
    wide = kernels.pack_linear(torch.randn(2 * WIDTH, 2 * WIDTH, generator=generator) / WIDTH)
    narrow = kernels.pack_linear(torch.randn(WIDTH, 2 * WIDTH, generator=generator) / WIDTH)
    qkv = kernels.pack_linear(torch.randn(2 * WIDTH, WIDTH, generator=generator) / WIDTH)
    cache = make_cache("float32", 9)
    cache.key_numbers().zero_()
    cache.value_numbers().zero_()
    ones = torch.ones(2 * WIDTH)

    def step(kernels: Kernels, inputs: StepInputs) -> Rows:
        first = kernels.embedding(TABLE, "token_ids", inputs)
        double = kernels.collective(first, Doubled())
        normed = kernels.rms_norm(double, ones, 1e-5)
        again = kernels.collective(kernels.linear(normed, wide), Doubled())
        half = kernels.collective(again, Halved())
        mixed = kernels.linear(half, narrow, residual=first)
        query = kernels.qkv_to_cache(kernels.linear(mixed, qkv), cache, inputs, num_heads=4)
        seen = kernels.paged_attention(query, cache, inputs, scale=0.3)
        if selects:
            seen, double = kernels.select_rows(seen, inputs), kernels.select_rows(double, inputs)
        last = kernels.collective(seen, Doubled())
        last = kernels.linear(last, wide, residual=kernels.collective(kernels.linear(last, wide), Same()))
        return kernels.collective(kernels.soft_cap(last, 3.0), Doubled())

    compiled = kernels.compile(step)
    for seed in range(3):
        inputs = make_inputs((3, 1, 4), (5, 9, 4), num_blocks=9, logits_rows=ROWS, seed=seed)
        expected = step(kernels, inputs).float()
        assert torch.equal(compiled(inputs), expected)
        assert expected.shape == (2 if selects else 8, 4 * WIDTH)
        assert torch.equal(
            compiled(replace(inputs, logits_rows=None)), step(kernels, replace(inputs, logits_rows=None)).float()
        )


def test_a_recording_says_what_it_cannot_do() -> None:
    kernels = CpuKernels(1)
    weight = kernels.pack_linear(torch.ones(WIDTH, 2 * WIDTH))

    def looks_again(kernels: Kernels, inputs: StepInputs) -> Rows:
        rows = kernels.select_rows(kernels.embedding(TABLE, "token_ids", inputs), inputs)
        return kernels.select_rows(kernels.collective(rows, Doubled()), inputs)

    def mixes(kernels: Kernels, inputs: StepInputs) -> Rows:
        every = kernels.collective(kernels.embedding(TABLE, "token_ids", inputs), Doubled())
        some = kernels.collective(kernels.select_rows(every, inputs), Halved())
        return kernels.linear(every, weight, residual=some)

    with pytest.raises(KernelError, match="inputs cannot be looked at"):
        kernels.compile(looks_again)
    with pytest.raises(KernelError, match="x must have as many rows as what the collective"):
        kernels.compile(mixes)
    with pytest.raises(KernelError, match="x must be the result of an operation of this step"):
        kernels.compile(lambda kernels, inputs: kernels.collective(torch.ones(2, 2), Doubled()))
