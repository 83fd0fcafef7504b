"""Rows by their indices: the embedding and the choice of rows."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from paged_backend.errors import KernelError
from paged_backend.kernels.interface import Kernels, StepInputs
from paged_backend.kernels.triton.rows import embedding
from tests.kernels.rounding import assert_within, unit
from tests.kernels.step_case import make_inputs
from tests.kernels.triton.dtypes import DTYPES
from tests.kernels.triton.placed import placed_inputs


def inputs_on(device: torch.device, logits_rows: torch.Tensor | None = None) -> StepInputs:
    inputs = make_inputs([3, 1, 2], [5, 40, 7], num_tokens=60, logits_rows=logits_rows)
    return placed_inputs(inputs, device)


@pytest.mark.parametrize("table_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("indices", "width"), [("token_ids", 24), ("positions", 1), ("token_ids", 1100)])
@pytest.mark.parametrize("with_add", [False, True])
def test_embedding(
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device,
    table_dtype: torch.dtype,
    indices: Literal["token_ids", "positions"],
    width: int,
    with_add: bool,
) -> None:
    inputs = inputs_on(device)
    table = torch.randn(60, width).to(device, table_dtype)
    add = torch.randn(6, width).to(device, dtype) if with_add else None
    out = kernels.embedding(table, indices, inputs, add)
    assert out.dtype == dtype
    exact = table.double()[getattr(inputs, indices)] + (0.0 if add is None else add.double())
    assert_within(out, exact, unit(torch.float32) * exact.abs() if with_add else 0.0)


@pytest.mark.parametrize("rows", [[], [4], [5, 3, 3, 0]], ids=str)
def test_select_rows(kernels: Kernels, dtype: torch.dtype, device: torch.device, rows: list[int]) -> None:
    chosen = torch.tensor(rows, dtype=torch.int64, device=device)
    for x in (torch.randn(6, 24).to(device, dtype), torch.randn(24, 6).to(device, dtype).T):
        assert torch.equal(kernels.select_rows(x, inputs_on(device, chosen)), x[chosen])


def test_all_rows(kernels: Kernels, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(6, 24).to(device, dtype)
    assert torch.equal(kernels.select_rows(x, inputs_on(device)), x)


def test_no_memory_outside_the_table_is_read(device: torch.device) -> None:
    """A GPU's indices are not looked at before the launch."""
    table = torch.randn(9, 8).to(device)[3:6]
    out = embedding(table, torch.tensor([0, -1, 3, 2], device=device), None, torch.float32)
    assert torch.equal(out[[0, 3]], table[[0, 2]])
    assert out[[1, 2]].isnan().all()


def test_the_cpus_indices_are_checked(kernels: Kernels, dtype: torch.dtype, device: torch.device) -> None:
    if device.type == "cpu":
        with pytest.raises(KernelError, match=r"token_ids must be in 0\.\.2"):
            kernels.embedding(torch.zeros(3, 8), "token_ids", inputs_on(device))
