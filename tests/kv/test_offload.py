"""Host memory below the pool: what goes there, what comes back, who holds what."""

from __future__ import annotations

from paged_backend.kv.block_table import BlockTable
from paged_backend.kv.host_tier import NO_TRANSFERS, Transfers
from paged_backend.kv.manager import KVCacheManager
from paged_backend.kv.prefix_index import BlockKey

SIZE = 4


def new_manager(num_blocks: int = 4, num_slots: int = 8, *, caching: bool = True, disk: bool = False) -> KVCacheManager:
    return KVCacheManager(num_blocks, SIZE, caching, num_host_slots=num_slots, keeps_on_disk=disk)


def anywhere(key: BlockKey) -> bool:
    """A disk that has all blocks there are."""
    return True


def compute(kv: KVCacheManager, tokens: list[int], salt: str | None = None) -> BlockTable:
    """A table whose tokens are all computed, by way of what pool and host memory have."""
    table = kv.new_table(tokens, salt)
    kv.start(table, kv.cached_prefix(table))
    assert kv.allocate(table, len(tokens))
    kv.commit(table, len(tokens))
    return table


def end_step(kv: KVCacheManager, *started: BlockTable, done: bool = True) -> Transfers:
    """Takes what a step moves, and commits the tables that it started."""
    kv.take_copies()
    transfers = kv.take_transfers()
    kv.settle_transfers(done)
    for table in started:
        kv.commit(table, table.num_computed)
    kv.check_invariants()
    return transfers


def fill_pool(kv: KVCacheManager, first: int = 1000) -> None:
    """Evicts everything that nobody holds."""
    kv.free(compute(kv, list(range(first, first + SIZE * kv.num_free_blocks))))


def test_evicted_blocks_come_back() -> None:
    kv = new_manager()
    tokens = list(range(13))
    first = compute(kv, tokens[:12])
    blocks = list(first.block_ids)
    kv.free(first)
    assert end_step(kv) is NO_TRANSFERS
    fill_pool(kv)
    outs = end_step(kv).swap_outs
    assert [block for block, _ in outs] == blocks[::-1], "the tail goes first"
    table = kv.new_table(tokens)
    assert kv.cached_prefix(table) == []
    kv.start(table, [])
    assert table.num_computed == 12 and table.num_writable == 12
    transfers = end_step(kv, table)
    slot_of = dict(outs)
    assert transfers.swap_ins == tuple((slot_of[old], new) for old, new in zip(blocks, table.block_ids, strict=True))
    stats = kv.stats()
    assert (stats.prefix_hits, stats.offload.queries, stats.offload.hits) == (0, 12 + 16 + 13, 12)


def test_the_pools_own_prefix_is_not_loaded() -> None:
    kv = new_manager()
    tokens = list(range(13))
    kv.free(compute(kv, tokens[:12]))
    kv.free(compute(kv, list(range(50, 58))))  # takes one block that was never used, and the tail
    end_step(kv)
    table = kv.new_table(tokens)
    prefix = kv.cached_prefix(table)
    assert len(prefix) == 2
    kv.start(table, prefix)
    assert table.num_computed == 12 and len(end_step(kv, table).swap_ins) == 1
    assert len(kv.lookup(tokens)) == 3, "what came back is found in the pool again"


def test_salts_do_not_meet_in_host_memory() -> None:
    kv = new_manager()
    tokens = list(range(9))
    kv.free(compute(kv, tokens[:8], "a"))
    fill_pool(kv)
    end_step(kv)
    for salt, found in ((None, 0), ("b", 0), ("", 0), ("a", 8)):
        table = kv.new_table(tokens, salt)
        kv.start(table, kv.cached_prefix(table))
        assert table.num_computed == found
        end_step(kv, table)
        kv.free(table)


def test_host_memory_forgets_what_was_used_longest_ago() -> None:
    kv = new_manager(num_blocks=2, num_slots=2)
    for first in (0, 100, 200):
        kv.free(compute(kv, list(range(first, first + 8))))
        end_step(kv)
    assert kv.stats().offload.num_filled_slots == 2
    for first, found in ((0, 0), (100, 8)):
        table = kv.new_table([*range(first, first + 8), 0])
        kv.cached_prefix(table)
        assert kv.offload is not None
        assert len(kv.missing_prefix(table.token_ids, None, anywhere)) == (8 - found) // SIZE


def test_a_swapped_table_comes_back_with_its_half_full_block() -> None:
    for caching in (True, False):
        kv = new_manager(caching=caching)
        tokens = list(range(10))
        table = compute(kv, tokens)
        blocks = list(table.block_ids)
        tokens.append(10)
        assert kv.swap_out(table)
        assert not table.active and kv.num_free_blocks == 4 and kv.stats().offload.num_swapped == 1
        outs = end_step(kv).swap_outs
        assert [block for block, _ in outs] == blocks
        fill_pool(kv)
        assert not end_step(kv).swap_outs or not caching
        kv.start(table, kv.cached_prefix(table), count=False)
        assert table.num_computed == 10 and table.num_writable == 12 and table.swapped is None
        transfers = end_step(kv, table)
        assert [slot for slot, _ in transfers.swap_ins] == [slot for _, slot in outs]
        assert kv.stats().offload.num_swapped == 0
        kv.free(table)
        kv.check_invariants()


def test_what_the_pool_still_has_of_a_swapped_table_is_not_loaded() -> None:
    kv = new_manager()
    tokens = list(range(11))
    table = compute(kv, tokens[:10])
    table.token_ids = tokens
    kv.swap_out(table)
    end_step(kv)
    kv.start(table, kv.cached_prefix(table), count=False)
    assert table.num_computed == 10 and len(end_step(kv, table).swap_ins) == 1


def test_a_table_that_does_not_fit_is_not_swapped() -> None:
    kv = new_manager(num_slots=3)
    first, second = compute(kv, list(range(8))), compute(kv, list(range(50, 58)))
    assert kv.swap_out(first)
    before = list(second.block_ids)
    assert not kv.swap_out(second)
    assert second.active and second.block_ids == before
    end_step(kv)
    kv.free(first)  # aborted while it waits
    assert kv.swap_out(second), "its slots are free again, though what they hold can be found"
    end_step(kv)
    assert kv.stats().offload.num_swapped == 1
    empty = KVCacheManager(2, SIZE)
    assert not empty.swap_out(compute(empty, [1, 2]))


def test_swapped_siblings_share_their_full_blocks() -> None:
    kv = new_manager(num_slots=4)
    parent = compute(kv, list(range(10)))
    child = kv.fork(parent, list(range(10)))
    assert kv.swap_out(parent) and kv.swap_out(child)
    assert kv.num_free_blocks == 4
    outs = end_step(kv).swap_outs
    assert len(outs) == 4, "two full blocks once, two half full ones"
    kv.free(parent)
    kv.check_invariants()
    kv.free(child)
    kv.check_invariants()


def test_held_slots_are_not_overwritten_by_evictions() -> None:
    kv = new_manager(num_slots=2)
    table = compute(kv, list(range(8)))
    table.token_ids = list(range(9))
    kv.swap_out(table)
    end_step(kv)
    fill_pool(kv, 100)
    end_step(kv)
    fill_pool(kv, 200)
    assert end_step(kv).swap_outs == (), "no slot is free: what is evicted is lost"
    kv.start(table, kv.cached_prefix(table), count=False)
    assert table.num_computed == 8
    end_step(kv, table)


def test_a_slot_that_is_read_in_a_step_is_not_filled_in_it() -> None:
    kv = new_manager(num_blocks=2, num_slots=2)
    kv.free(compute(kv, list(range(8))))
    end_step(kv)
    kv.free(compute(kv, list(range(50, 58))))
    end_step(kv)
    table = kv.new_table([*range(8), 0])
    prefix = kv.cached_prefix(table)
    kv.start(table, prefix)  # both blocks are taken, and their content finds no room in host memory
    transfers = end_step(kv, table)
    assert len(transfers.swap_ins) == 2 and transfers.swap_outs == ()


def test_a_failed_step_makes_its_swaps_void() -> None:
    kv = new_manager()
    tokens = list(range(10))
    table = compute(kv, tokens[:9])
    table.token_ids = tokens
    kv.swap_out(table)
    end_step(kv, done=False)
    assert table.swapped is None and kv.stats().offload.num_filled_slots == 0
    fill_pool(kv)
    end_step(kv, done=False)
    kv.start(table, kv.cached_prefix(table), count=False)
    assert table.num_computed == 0 and end_step(kv, table).swap_ins == ()


def test_a_swap_of_a_planned_copy_takes_its_source() -> None:
    kv = new_manager(num_blocks=6)
    parent = compute(kv, [1, 2])
    child = kv.fork(parent, [1, 2])
    shared = parent.block_ids[0]
    assert kv.allocate(parent, 3)  # a copy, which is never made: it is preempted in the same plan
    assert kv.swap_out(parent)
    assert kv.take_copies() == ()
    assert [block for block, _ in kv.take_transfers().swap_outs] == [shared]
    kv.settle_transfers(True)
    kv.free(child)
    kv.check_invariants()


def test_saves_are_what_is_evicted_and_what_is_found_again() -> None:
    kv = new_manager(disk=True)
    tokens = list(range(9))
    first = compute(kv, tokens)
    assert end_step(kv).saves == ()
    second = compute(kv, list(tokens))
    saves = end_step(kv).saves
    assert [block for block, _ in saves] == first.block_ids[:2]
    assert [key for _, key in saves] == [first.key(0), first.key(1)]
    kv.free(first)
    kv.free(second)
    assert {block for block, _ in kv.indexed_blocks()} == {0, 1}
    fill_pool(kv)
    assert {key for _, key in end_step(kv).saves} == {key for _, key in saves}


def test_what_comes_from_disk_is_found_as_far_as_it_came() -> None:
    kv = new_manager(disk=True)
    tokens = list(range(13))
    keys = kv.missing_prefix(tokens, None, anywhere)
    assert len(keys) == 3, "one token is left to compute"
    assert kv.offload is not None
    slots = kv.offload.reserve(3)
    kv.check_invariants()
    kv.offload.fill(slots, keys[:2])
    kv.check_invariants()
    assert kv.missing_prefix(tokens, None, anywhere) == keys[2:]
    table = kv.new_table(tokens)
    kv.start(table, kv.cached_prefix(table))
    assert table.num_computed == 8 and [slot for slot, _ in end_step(kv, table).swap_ins] == slots[:2]
    assert kv.missing_prefix(tokens, None, keys[:2].__contains__) == []
    assert len(kv.offload.reserve(99)) == 8
    assert kv.offload.reserve(1) == []


def test_without_host_memory_nothing_moves() -> None:
    kv = KVCacheManager(2, SIZE)
    kv.free(compute(kv, list(range(8))))
    kv.free(compute(kv, list(range(50, 58))))
    assert end_step(kv) is NO_TRANSFERS
    assert kv.missing_prefix(list(range(9)), None, anywhere) == []
    assert kv.stats().offload.num_slots == 0
