"""Blocks are counted right, and taken least recently used first."""

from __future__ import annotations

import pytest

from paged_backend.kv.block_pool import BlockPool


def release(pool: BlockPool, block: int, *, keep: bool) -> None:
    if pool.drop(block):
        pool.retire(block, keep=keep)


def test_blocks_are_handed_out_once() -> None:
    pool = BlockPool(4)
    assert [pool.allocate() for _ in range(4)] == [0, 1, 2, 3]
    assert pool.num_free == 0
    with pytest.raises(AssertionError, match="empty pool"):
        pool.allocate()


def test_kept_blocks_are_taken_least_recently_used_first() -> None:
    pool = BlockPool(3)
    for _ in range(3):
        pool.allocate()
    for block in (2, 0, 1):
        release(pool, block, keep=True)
    assert pool.free_blocks() == [2, 0, 1]
    assert [pool.allocate() for _ in range(3)] == [2, 0, 1]


def test_blocks_without_content_are_taken_before_kept_ones() -> None:
    pool = BlockPool(3)
    for _ in range(3):
        pool.allocate()
    release(pool, 0, keep=True)
    release(pool, 1, keep=True)
    release(pool, 2, keep=False)
    assert pool.free_blocks() == [2, 0, 1]


def test_a_hold_takes_a_free_block_out_of_the_queue() -> None:
    pool = BlockPool(2)
    pool.hold(1)
    assert pool.free_blocks() == [0] and pool.ref_counts == [0, 1]
    pool.hold(1)
    assert not pool.drop(1)
    assert pool.drop(1)
    pool.retire(1, keep=True)
    assert pool.free_blocks() == [0, 1]


def test_a_holder_cannot_let_go_twice() -> None:
    pool = BlockPool(1)
    pool.allocate()
    release(pool, 0, keep=True)
    with pytest.raises(AssertionError, match="no holder"):
        pool.drop(0)
