"""Groups of layers with windows: what they hold, give back, find again and share."""

from __future__ import annotations

import itertools

import pytest

from paged_backend.kv.block_table import BlockTable
from paged_backend.kv.layer_group import NO_BLOCK, LayerGroup
from paged_backend.kv.manager import KVCacheManager

SIZE = 4


def new_manager(num_blocks: int, *windows: int, max_chunk: int = 8) -> KVCacheManager:
    return KVCacheManager(num_blocks, SIZE, groups=[LayerGroup(window, SIZE, max_chunk) for window in windows])


def start(kv: KVCacheManager, tokens: list[int]) -> BlockTable:
    table = kv.new_table(tokens)
    kv.start(table, kv.cached_prefix(table))
    return table


def compute(kv: KVCacheManager, table: BlockTable, end: int, chunk: int = 8) -> None:
    """Computes the table's tokens up to `end` in chunks, and looks at the books after each."""
    while table.num_computed < end:
        upto = min(end, table.num_computed + chunk)
        assert kv.allocate(table, upto)
        kv.commit(table, upto)
        kv.check_invariants()


def held(kv: KVCacheManager, table: BlockTable, group: int) -> list[int]:
    """Which blocks of the sequence a group still has."""
    blocks = table.block_ids[group :: len(kv.groups)]
    return [i for i, block in enumerate(blocks) if block != NO_BLOCK]


@pytest.mark.parametrize("window", [2, 3, 4, 5, 7, 8, 9])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_a_window_holds_what_is_seen_and_no_more(window: int, chunk: int) -> None:
    kv = new_manager(40, window)
    table = start(kv, list(range(100)))
    for end in range(chunk, 100, chunk):
        compute(kv, table, end, chunk)
        first_seen = max(0, end - window + 1)
        assert held(kv, table, 0) == [i for i in range(-(-end // SIZE)) if (i + 1) * SIZE > first_seen]
    assert kv.num_free_blocks >= 40 - (-(-window // SIZE) + 1)


def test_most_blocks_is_reached_and_never_passed() -> None:
    for window, max_chunk, begin in itertools.product(range(2, 10), range(1, 10), range(9)):
        group = LayerGroup(window, SIZE, max_chunk)
        most, position = 0, begin
        while position < 60:
            end = position + max_chunk
            most = max(most, -(-end // SIZE) - group.first_block(position))
            position = end
        assert most <= group.most_blocks(1000)
        assert group.most_blocks(7) == min(2, group.most_blocks(1000))
    reached = LayerGroup(6, SIZE, 4)  # positions 3 to 11, over three blocks
    assert reached.most_blocks(1000) == 3 and -(-12 // SIZE) - reached.first_block(8) == 3


def test_the_longest_sequence_that_fits() -> None:
    for windows in ([0], [5], [0, 5], [0, 0, 3, 9]):
        for num_blocks in range(1, 30):
            kv = new_manager(num_blocks, *windows)
            longest = kv.shape.max_sequence_tokens
            assert kv.blocks_for(longest) <= num_blocks
            assert longest > 2**39 or kv.blocks_for(longest + 1) > num_blocks
    assert new_manager(10, 0).shape.max_sequence_tokens == 40
    assert new_manager(10, 5).shape.max_sequence_tokens > 2**39, "a window's blocks are enough for any length"
    assert new_manager(3, 5).shape.max_sequence_tokens == 12, "but not if they are too few"
    # A step's 8 tokens and the 4 before them lie in up to 4 blocks; 6 are left for the full group.
    assert new_manager(10, 5, 0).shape.max_sequence_tokens == 24


def test_groups_are_served_together_or_not_at_all() -> None:
    kv = new_manager(7, 0, 6)
    table = start(kv, list(range(40)))
    compute(kv, table, 8)
    assert kv.num_free_blocks == 3
    before = list(table.block_ids)
    assert not kv.allocate(table, 16)
    assert table.block_ids == before and kv.num_free_blocks == 3
    assert kv.allocate(table, 12) and kv.num_free_blocks == 1
    kv.commit(table, 12)
    assert held(kv, table, 0) == [0, 1, 2] and held(kv, table, 1) == [1, 2]
    kv.free(table)
    assert kv.num_free_blocks == 7
    kv.check_invariants()


def test_what_was_given_back_is_found_again_until_it_is_needed() -> None:
    kv = new_manager(20, 0, 5)
    tokens = list(range(41))
    table = start(kv, list(tokens))
    compute(kv, table, 41)
    assert held(kv, table, 1) == [9, 10]
    for length in (40, 24, 9):
        prefix = kv.lookup(tokens[: length + 1])
        num_blocks = length // SIZE
        assert len(prefix) == 2 * num_blocks
        assert prefix[::2] == table.block_ids[: 2 * num_blocks : 2]
        seen = [block for block in prefix[1::2] if block != NO_BLOCK]
        assert prefix[1::2] == [NO_BLOCK] * (num_blocks - 1) + seen and len(seen) == 1
    # Of 20 blocks the full group holds 11. The window took two of its own old ones again, the newcomer takes two more.
    compute(kv, start(kv, [77]), 1)
    found = [len(kv.lookup(tokens[: 4 * length + 1])) // 2 for length in range(1, 11)]
    assert sum(length == i + 1 for i, length in enumerate(found)) == 6 and found[-1] == 10


def test_a_hit_is_the_longest_that_all_groups_can_serve() -> None:
    kv = new_manager(40, 5, 0, 9)
    tokens = list(range(49))
    table = start(kv, list(tokens))
    compute(kv, table, 49)
    keys = {(i, g): table.digests[i] + kv._search.suffixes[g] for i in range(12) for g in range(3)}
    assert kv.index is not None
    for missing in itertools.chain(itertools.combinations(keys, 1), itertools.combinations(list(keys)[::2], 2)):
        gone = {keys[place]: kv.index._entries.pop(keys[place]) for place in missing}
        expected = 0
        for length in range(13):
            first = {0: max(0, length * SIZE - 4) // SIZE, 1: 0, 2: max(0, length * SIZE - 8) // SIZE}
            if not any(first[g] <= i < length for i, g in missing):
                expected = length
        prefix = kv.lookup(tokens)
        assert len(prefix) == 3 * expected, missing
        kv.index._entries.update(gone)


def test_a_hit_starts_with_the_window_alone() -> None:
    kv = new_manager(30, 6)
    tokens = list(range(30))
    first = start(kv, list(tokens))
    compute(kv, first, 30)
    kv.free(first)
    second = start(kv, list(tokens))
    assert second.num_computed == 28 and held(kv, second, 0) == [5, 6]
    assert kv.num_free_blocks == 28
    kv.check_invariants()
    compute(kv, second, 30)
    assert kv.stats().prefix_hits == 28


def test_missing_to_start_is_what_a_start_takes_at_most() -> None:
    for windows, length, known in itertools.product(([0], [5], [0, 5], [3, 9]), range(1, 60, 3), range(0, 60, 7)):
        kv = new_manager(60, *windows)
        tokens = list(range(length))
        other = start(kv, tokens[:known])
        compute(kv, other, len(other.token_ids))
        if known % 2:
            kv.free(other)
        table = kv.new_table(tokens)
        prefix = kv.cached_prefix(table)
        missing, num_free = kv.missing_to_start(prefix, length), kv.num_free_blocks
        assert missing <= kv.blocks_for(length), "what fits at all fits into an empty pool"
        kv.start(table, prefix)
        fewest = kv.num_free_blocks
        while table.num_computed < length:
            upto = min(length, table.num_computed + 8)
            assert kv.allocate(table, upto)
            fewest = min(fewest, kv.num_free_blocks)
            kv.commit(table, upto)
        assert num_free - fewest <= missing


def test_forks_part_in_every_group() -> None:
    kv = new_manager(20, 0, 6)
    tokens = list(range(14))
    parent = start(kv, list(tokens))
    compute(kv, parent, 14)
    assert held(kv, parent, 1) == [2, 3]
    child = kv.fork(parent, list(tokens))
    assert child.block_ids == parent.block_ids and kv.num_free_blocks == 20 - 4 - 2
    last = parent.block_ids[-2:]
    parent.token_ids, child.token_ids = [*tokens, 1, 2, 3], [*tokens, 9, 8, 7]
    assert kv.allocate(parent, 15) and kv.allocate(child, 15)
    copies = kv.take_copies()
    assert sorted(copies) == sorted(zip(last, parent.block_ids[-2:], strict=True))
    assert child.block_ids[-2:] == last, "the last holder writes in place"
    for table in (parent, child):
        kv.commit(table, 15)
    kv.check_invariants()
    for table in (parent, child):
        compute(kv, table, 17)
    assert held(kv, parent, 1) == held(kv, child, 1) == [3, 4]
    kv.free(parent)
    kv.check_invariants()
    kv.free(child)
    assert kv.num_free_blocks == 20


def test_a_shared_block_that_one_window_left_stays_for_the_other() -> None:
    kv = new_manager(20, 5)
    tokens = list(range(30))
    slow = start(kv, list(tokens))
    compute(kv, slow, 8)
    fast = start(kv, list(tokens))
    shared = slow.block_ids[1]
    assert fast.block_ids == [NO_BLOCK, shared]
    compute(kv, fast, 24)
    assert shared not in fast.block_ids and kv.pool.ref_counts[shared] == 1
    compute(kv, slow, 24)
    assert kv.pool.ref_counts[shared] == 0


def test_without_prefix_caching() -> None:
    kv = KVCacheManager(6, SIZE, enable_prefix_caching=False, groups=[LayerGroup(5, SIZE, 8)])
    table = start(kv, list(range(200)))
    compute(kv, table, 200)
    assert len(held(kv, table, 0)) <= 2
    kv.free(table)
    assert kv.lookup(list(range(200))) == []


def test_waste_is_the_empty_slots_of_all_groups() -> None:
    kv = new_manager(20, 0, 5, 3)
    table = start(kv, list(range(22)))
    compute(kv, table, 22)
    assert kv.num_empty_slots() == 3 * 2
    kv.fork(table, list(range(22)))
    assert kv.num_empty_slots() == 3 * 2
