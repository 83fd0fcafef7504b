"""Block tables: growth, sharing, copy-on-write, prefixes and eviction."""

from __future__ import annotations

import pytest

from paged_backend.kv.block_table import BlockTable
from paged_backend.kv.manager import KVCacheManager

SIZE = 4


def compute(kv: KVCacheManager, tokens: list[int], salt: str | None = None) -> BlockTable:
    """A table whose tokens are all computed, by way of what the index has."""
    table = kv.new_table(tokens, salt)
    kv.start(table, kv.cached_prefix(table))
    assert kv.allocate(table, len(tokens))
    kv.commit(table, len(tokens))
    return table


def grow(kv: KVCacheManager, table: BlockTable, *new: int) -> bool:
    """Appends tokens and computes them, if there is room."""
    assert isinstance(table.token_ids, list)
    if not kv.allocate(table, table.num_computed + len(new)):
        return False
    table.token_ids.extend(new)
    kv.commit(table, table.num_computed + len(new))
    return True


def test_a_table_grows_by_blocks() -> None:
    kv = KVCacheManager(4, SIZE)
    table = compute(kv, [1, 2, 3])
    assert table.block_ids == [0]
    assert grow(kv, table, 4) and table.block_ids == [0]
    assert grow(kv, table, 5) and table.block_ids == [0, 1]
    assert grow(kv, table, *range(9)) and len(table.block_ids) == 4
    kv.check_invariants()


def test_allocation_is_all_or_nothing() -> None:
    kv = KVCacheManager(3, SIZE)
    table = compute(kv, list(range(5)))
    before = list(table.block_ids)
    assert not kv.allocate(table, 13)
    assert table.block_ids == before and kv.num_free_blocks == 1
    assert kv.allocate(table, 12) and len(table.block_ids) == 3


def test_a_prefix_is_found_while_held_and_after() -> None:
    kv = KVCacheManager(8, SIZE)
    tokens = list(range(10))
    first = compute(kv, list(tokens))
    assert kv.lookup(tokens) == first.block_ids[:2]
    held = list(first.block_ids)
    kv.free(first)
    assert kv.num_free_blocks == 8
    second = compute(kv, list(tokens))
    assert second.block_ids[:2] == held[:2]
    assert kv.num_free_blocks == 5
    kv.check_invariants()


def test_one_token_is_left_to_compute() -> None:
    kv = KVCacheManager(8, SIZE)
    tokens = list(range(8))
    compute(kv, list(tokens))
    assert len(kv.lookup(tokens)) == 1
    assert len(kv.lookup([*tokens, 8])) == 2
    assert kv.lookup(tokens[:4]) == [] and kv.lookup([0]) == []


def test_salts_do_not_meet() -> None:
    kv = KVCacheManager(8, SIZE)
    tokens = list(range(9))
    compute(kv, list(tokens), "a")
    assert len(kv.lookup(tokens, "a")) == 2
    assert kv.lookup(tokens, "b") == kv.lookup(tokens, "") == kv.lookup(tokens) == []


def test_a_changed_token_cuts_the_prefix() -> None:
    kv = KVCacheManager(8, SIZE)
    compute(kv, list(range(13)))
    assert len(kv.lookup([*range(4), 99, *range(5, 13)])) == 1
    assert kv.lookup([99, *range(1, 13)]) == []


def test_only_computed_blocks_are_found() -> None:
    kv = KVCacheManager(8, SIZE)
    tokens = list(range(12))
    table = kv.new_table(tokens)
    kv.start(table, kv.cached_prefix(table))
    kv.allocate(table, 12)
    assert kv.lookup(tokens) == []
    kv.commit(table, 7)
    assert kv.lookup(tokens) == table.block_ids[:1]
    kv.commit(table, 12)
    assert kv.lookup(tokens) == table.block_ids[:2]


def test_a_twin_stays_unindexed_and_is_evicted_first() -> None:
    kv = KVCacheManager(4, SIZE)
    tokens = list(range(8))
    tables = [kv.new_table(list(tokens)) for _ in range(2)]
    for table in tables:  # both start before either is computed
        kv.start(table, kv.cached_prefix(table))
        kv.allocate(table, 8)
    for table in tables:
        kv.commit(table, 8)
    assert kv.stats().num_indexed_blocks == 2
    twin = list(tables[1].block_ids)
    for table in tables:
        kv.free(table)
    assert set(kv.pool.free_blocks()[:2]) == set(twin)
    assert len(kv.lookup([*tokens, 0])) == 2
    kv.check_invariants()


def test_the_tail_is_evicted_before_the_head() -> None:
    kv = KVCacheManager(3, SIZE)
    tokens = list(range(12))
    kv.free(compute(kv, list(tokens)))
    other = compute(kv, [50])
    assert len(kv.lookup([*tokens, 0])) == 2
    grow(kv, other, *range(51, 56))
    assert len(kv.lookup([*tokens, 0])) == 1
    grow(kv, other, *range(60, 64))
    assert kv.lookup([*tokens, 0]) == []
    kv.check_invariants()


def test_a_hit_makes_a_block_recently_used() -> None:
    kv = KVCacheManager(2, SIZE)
    old, new = [*range(4), 0], [*range(10, 14), 0]
    for tokens in (old, new):
        kv.free(compute(kv, tokens[:4]))
    table = kv.new_table(list(old))
    kv.start(table, kv.cached_prefix(table))
    kv.free(table)
    compute(kv, [99])
    assert len(kv.lookup(old)) == 1 and kv.lookup(new) == []


def test_a_start_needs_the_free_blocks_that_it_finds() -> None:
    kv = KVCacheManager(4, SIZE)
    tokens = list(range(9))
    table = compute(kv, list(tokens))
    prefix = kv.lookup(tokens)
    assert kv.missing_to_start(prefix, 9) == 1
    kv.free(table)
    assert kv.missing_to_start(kv.lookup(tokens), 9) == 3
    assert kv.missing_to_start([], 9) == 3


def test_a_fork_shares_until_it_writes() -> None:
    kv = KVCacheManager(8, SIZE)
    parent = compute(kv, list(range(6)))
    shared = list(parent.block_ids)
    children = [kv.fork(parent, list(range(6))) for _ in range(2)]
    assert kv.num_free_blocks == 6 and kv.pool.ref_counts[:2] == [3, 3]
    for table in (parent, *children):
        assert grow(kv, table, 7)
    copies = kv.take_copies()
    assert [source for source, _ in copies] == [shared[1], shared[1]]
    assert {d for _, d in copies} == {parent.block_ids[1], children[0].block_ids[1]}
    assert children[1].block_ids == shared, "the last holder writes in place"
    assert kv.take_copies() == ()
    kv.check_invariants()


def test_a_fork_at_a_block_boundary_copies_nothing() -> None:
    kv = KVCacheManager(8, SIZE)
    parent = compute(kv, list(range(8)))
    child = kv.fork(parent, list(range(8)))
    assert grow(kv, parent, 1) and grow(kv, child, 2)
    assert kv.take_copies() == ()
    assert parent.block_ids[:2] == child.block_ids[:2] and parent.block_ids[2] != child.block_ids[2]
    kv.check_invariants()


def test_a_copy_needs_a_free_block() -> None:
    kv = KVCacheManager(1, SIZE)
    parent = compute(kv, [1, 2])
    child = kv.fork(parent, [1, 2])
    assert not grow(kv, parent, 3)
    kv.free(child)
    assert grow(kv, parent, 3) and kv.take_copies() == ()


def test_a_copys_source_is_not_handed_out_in_the_same_step() -> None:
    kv = KVCacheManager(4, SIZE)
    parent = compute(kv, [1, 2])
    child = kv.fork(parent, [1, 2])
    shared = parent.block_ids[0]
    assert grow(kv, parent, 3)
    kv.free(child)  # preempted in the same plan: nobody holds the source now
    others = [kv.new_table([9, 9, 9]) for _ in range(2)]
    for other in others:
        kv.start(other, [])
        assert kv.allocate(other, 3)
        assert other.block_ids[0] != shared
    assert kv.num_free_blocks == 0
    assert kv.take_copies() == ((shared, parent.block_ids[0]),)
    assert kv.num_free_blocks == 1 and kv.pool.free_blocks() == [shared]
    for other in others:
        kv.commit(other, 3)
    kv.check_invariants()


def test_a_copy_to_a_freed_block_is_dropped() -> None:
    kv = KVCacheManager(3, SIZE)
    parent = compute(kv, [1, 2])
    child = kv.fork(parent, [1, 2])
    grow(kv, parent, 3)
    destination = parent.block_ids[0]
    kv.free(parent)  # preempted in the same plan: its copy is for nobody
    other = kv.new_table([9])
    kv.start(other, [])
    assert kv.allocate(other, 1) and other.block_ids == [destination]
    assert kv.take_copies() == ()
    kv.commit(other, 1)
    assert grow(kv, child, 4) and kv.take_copies() == ()
    kv.check_invariants()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_the_source_of_copies_that_nobody_wants_is_free_at_once(order: tuple[int, ...]) -> None:
    """Whoever is left in the plan has all that those held who gave way to it."""
    kv = KVCacheManager(4, SIZE)
    parent = compute(kv, [1, 2])
    family = [parent, kv.fork(parent, [1, 2]), kv.fork(parent, [1, 2])]
    for table in family:
        assert grow(kv, table, 3)
    for place in order:
        kv.free(family[place])
    assert kv.num_free_blocks == 4 and kv.take_copies() == ()
    kv.check_invariants()


def test_forks_index_their_own_continuations() -> None:
    kv = KVCacheManager(8, SIZE)
    parent = compute(kv, [1, 2, 3])
    child = kv.fork(parent, [1, 2, 3])
    grow(kv, parent, 4, 0)
    grow(kv, child, 5, 0)
    kv.take_copies()
    assert kv.lookup([1, 2, 3, 4, 0]) == parent.block_ids[:1]
    assert kv.lookup([1, 2, 3, 5, 0]) == child.block_ids[:1]
    kv.check_invariants()


def test_freeing_twice_is_freeing_once() -> None:
    kv = KVCacheManager(2, SIZE)
    table = compute(kv, [1])
    kv.free(table)
    kv.free(table)
    assert kv.num_free_blocks == 2
    kv.check_invariants()


def test_without_prefix_caching_nothing_is_found() -> None:
    kv = KVCacheManager(4, SIZE, enable_prefix_caching=False)
    tokens = list(range(9))
    kv.free(compute(kv, list(tokens)))
    assert kv.lookup(tokens) == []
    stats = kv.stats()
    assert (stats.num_indexed_blocks, stats.prefix_queries, stats.prefix_hits) == (0, 0, 0)
    kv.check_invariants()


def test_statistics() -> None:
    kv = KVCacheManager(8, SIZE)
    first = compute(kv, list(range(9)))
    second = compute(kv, list(range(10)))
    stats = kv.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (19, 8)
    assert (stats.num_used_blocks, stats.num_free_blocks, stats.num_indexed_blocks) == (4, 4, 2)
    assert kv.num_empty_slots() == 3 + 2
    kv.fork(second, list(range(10)))
    assert kv.num_empty_slots() == 3 + 2, "a shared block's empty slots count once"
    kv.free(first)
    resumed = kv.new_table(list(range(9)))
    kv.start(resumed, kv.cached_prefix(resumed), count=False)
    assert kv.stats().prefix_queries == 19
