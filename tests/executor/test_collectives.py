"""Sums over ranks are the same bits whatever stands beside a row, and the ranks' order is theirs."""

from __future__ import annotations

from functools import reduce
from itertools import product

import torch
from torch import Tensor

from paged_backend.models.shard import Shard
from tests.models.thread_ranks import on_each_rank

SIZE = 3


def rows_of(shard: Shard, num_rows: int, dtype: torch.dtype) -> Tensor:
    """Numbers whose sum depends on its order, for almost all of them."""
    generator = torch.Generator().manual_seed(shard.rank)
    exponents = torch.randint(-8, 8, (num_rows, 5), generator=generator)
    return (torch.randn(num_rows, 5, generator=generator) * 2.0**exponents).to(dtype)


def test_a_rows_sum_does_not_depend_on_the_others() -> None:
    for dtype, size in product((torch.float32, torch.bfloat16), (2, SIZE)):
        for num_rows in (1, 255, 256, 601):  # both ways of adding up

            def sums(shard: Shard, num_rows: int = num_rows, dtype: torch.dtype = dtype) -> Tensor:
                assert shard.sum is not None
                return shard.sum(rows_of(shard, 601, dtype)[:num_rows])

            parts = on_each_rank(size, sums)
            terms = [rows_of(Shard(rank=rank), 601, dtype)[:num_rows].float() for rank in range(size)]
            expected = reduce(torch.add, terms).to(dtype)
            assert all(torch.equal(part, expected) for part in parts)


def test_rows_are_joined_in_the_order_of_ranks() -> None:
    def joined(shard: Shard) -> Tensor:
        assert shard.join is not None
        assert shard.join.num_outputs(5) == 15
        return shard.join(rows_of(shard, 4, torch.float32))

    expected = torch.cat([rows_of(Shard(rank=rank), 4, torch.float32) for rank in range(SIZE)], 1)
    assert all(torch.equal(part, expected) for part in on_each_rank(SIZE, joined))
