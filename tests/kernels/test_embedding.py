"""Embedding, the choice of rows, and the soft cap: the operations at a step's two ends."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from paged_backend.errors import KernelError
from paged_backend.kernels.interface import Kernels
from tests.kernels.implementations import implementations
from tests.kernels.rounding import FLOAT_DTYPES, assert_within, unit
from tests.kernels.step_case import make_inputs


@implementations
@pytest.mark.parametrize("table_dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("indices", ["token_ids", "positions"])
@pytest.mark.parametrize("width", [1, 24, 576])
@pytest.mark.parametrize("with_add", [False, True])
def test_embedding(
    kernels: Kernels,
    dtype: torch.dtype,
    table_dtype: torch.dtype,
    indices: Literal["token_ids", "positions"],
    width: int,
    with_add: bool,
) -> None:
    inputs = make_inputs([3, 1, 7], [5, 40, 7], num_tokens=60)
    table = torch.randn(60, width).to(table_dtype)
    add = torch.randn(11, width).to(dtype) if with_add else None
    out = kernels.embedding(table, indices, inputs, None if add is None else add.clone())
    assert out.dtype == dtype
    rows = [table[index] for index in getattr(inputs, indices).tolist()]
    exact = torch.stack(rows).double() + (0.0 if add is None else add.double())
    assert_within(out, exact, unit(torch.float32) * exact.abs() if with_add else 0.0)


@implementations
@pytest.mark.parametrize("token", [-1, 60])
def test_tokens_outside_the_table_are_refused(kernels: Kernels, dtype: torch.dtype, token: int) -> None:
    inputs = make_inputs([4])
    inputs.token_ids[2] = token
    with pytest.raises(KernelError, match="token_ids"):
        kernels.embedding(torch.zeros(60, 8), "token_ids", inputs)


@implementations
@pytest.mark.parametrize("rows", [[], [4], [0, 1, 2, 3, 4], [3, 3, 0]], ids=str)
def test_select_rows(kernels: Kernels, dtype: torch.dtype, rows: list[int]) -> None:
    x = torch.randn(5, 24).to(dtype)
    out = kernels.select_rows(x, make_inputs([2, 3], logits_rows=torch.tensor(rows, dtype=torch.int64)))
    assert out.dtype == dtype and out.shape == (len(rows), 24)
    assert torch.equal(out, x[rows])


@implementations
def test_select_all_rows(kernels: Kernels, dtype: torch.dtype) -> None:
    x = torch.randn(5, 24).to(dtype)
    assert torch.equal(kernels.select_rows(x, make_inputs([5])), x)


@implementations
@pytest.mark.parametrize("row", [-1, 5])
def test_rows_outside_the_step_are_refused(kernels: Kernels, dtype: torch.dtype, row: int) -> None:
    with pytest.raises(KernelError, match="logits_rows"):
        kernels.select_rows(torch.zeros(5, 8).to(dtype), make_inputs([5], logits_rows=torch.tensor([0, row])))


@implementations
@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_soft_cap(kernels: Kernels, dtype: torch.dtype, cap: float) -> None:
    x = torch.linspace(-100, 100, 600).to(dtype).view(6, 100)
    exact = cap * torch.tanh(x.double() / cap)
    assert_within(kernels.soft_cap(x.clone(), cap), exact, 8 * unit(torch.float32) * exact.abs())
