"""Host memory where layers have windows: holes stay holes, and a prefix needs of each group what its window sees."""

from __future__ import annotations

import itertools

from paged_backend.kv.block_table import BlockTable
from paged_backend.kv.host_tier import Transfers
from paged_backend.kv.layer_group import NO_BLOCK, LayerGroup
from paged_backend.kv.manager import KVCacheManager
from paged_backend.kv.prefix_index import DIGEST_BYTES, BlockKey

SIZE = 4
CHUNK = 6


def new_manager(num_blocks: int, *windows: int, num_slots: int = 99, disk: bool = False) -> KVCacheManager:
    groups = [LayerGroup(window, SIZE, CHUNK) for window in windows]
    return KVCacheManager(num_blocks, SIZE, groups=groups, num_host_slots=num_slots, keeps_on_disk=disk)


def compute(kv: KVCacheManager, table: BlockTable, num_tokens: int) -> None:
    """As a scheduler would, in chunks."""
    if not table.active:
        kv.start(table, kv.cached_prefix(table))
        end_step(kv, table)
    while table.num_computed < num_tokens:
        end = min(table.num_computed + CHUNK, num_tokens)
        assert kv.allocate(table, end)
        end_step(kv, table, end)


def end_step(kv: KVCacheManager, table: BlockTable | None = None, num_computed: int = 0) -> Transfers:
    """Takes what a step moves, and commits what it computed of a table, or what came back."""
    kv.take_copies()
    transfers = kv.take_transfers()
    kv.settle_transfers(True)
    if table is not None:
        kv.commit(table, num_computed or table.num_computed)
    kv.check_invariants()
    return transfers


def flush(kv: KVCacheManager) -> None:
    """Evicts everything that nobody holds."""
    tables = [kv.new_table(range(i, i + SIZE)) for i in range(10_000, 10_000 + kv.num_free_blocks)]
    for table in tables[: kv.num_free_blocks // len(kv.groups)]:
        compute(kv, table, 1)
    for table in tables:
        kv.free(table)
    end_step(kv)


def num_held(table: BlockTable) -> int:
    return sum(block != NO_BLOCK for block in table.block_ids)


def test_a_swapped_table_leaves_its_holes_behind() -> None:
    for length in range(1, 45):
        kv = new_manager(60, 0, 9, 5)
        tokens = list(range(length + 1))
        table = kv.new_table(tokens)
        compute(kv, table, length)
        before, held = list(table.block_ids), num_held(table)
        assert table.num_held == held
        assert kv.swap_out(table) and kv.num_free_blocks == 60
        outs = end_step(kv).swap_outs
        assert [block for block, _ in outs] == [block for block in before if block != NO_BLOCK]
        flush(kv)
        needed = kv.missing_to_start(kv.cached_prefix(table), length)
        kv.start(table, kv.cached_prefix(table), count=False)
        assert (table.num_computed, table.swapped) == (length, None)
        assert [block == NO_BLOCK for block in table.block_ids] == [block == NO_BLOCK for block in before]
        assert 60 - kv.num_free_blocks == held <= needed
        ins = end_step(kv, table).swap_ins
        slot_of = dict(outs)
        assert [slot for slot, _ in ins] == [slot_of[block] for block in before if block != NO_BLOCK]
        assert [block for _, block in ins] == [block for block in table.block_ids if block != NO_BLOCK]
        compute(kv, table, length + 1)
        kv.free(table)
        kv.check_invariants()


def test_what_the_pool_has_of_a_swapped_table_is_not_loaded() -> None:
    kv = new_manager(40, 0, 9)
    tokens = list(range(31))
    table = kv.new_table(tokens)
    compute(kv, table, 30)
    held = num_held(table)
    kv.swap_out(table)
    end_step(kv)
    kv.start(table, kv.cached_prefix(table), count=False)
    assert table.num_computed == 30 and num_held(table) == held
    assert len(end_step(kv, table).swap_ins) == 2, "the half full block of each group"


def test_swapped_siblings_share_each_groups_full_blocks() -> None:
    kv = new_manager(60, 0, 9)
    parent = kv.new_table(list(range(19)))
    compute(kv, parent, 18)
    child = kv.fork(parent, list(range(19)))
    blocks = list(parent.block_ids)
    assert kv.swap_out(parent) and kv.swap_out(child)
    assert parent.swapped is not None and child.swapped is not None
    outs = {slot: block for block, slot in end_step(kv).swap_outs}
    for table in (parent, child):
        assert table.swapped is not None
        assert [blocks[place] for place in table.swapped.places] == [outs[slot] for slot in table.swapped.slots]
    assert len(outs) == num_full(blocks) + 2 * 2, "the half full ones of each group twice"
    for table in (parent, child):
        kv.start(table, kv.cached_prefix(table), count=False)
        end_step(kv, table)
        kv.free(table)
    kv.check_invariants()


def num_full(block_ids: list[int]) -> int:
    """Of two groups' blocks, whose last are half full."""
    return sum(block != NO_BLOCK for block in block_ids[:-2])


def test_evicted_windows_come_back_without_what_they_have_passed() -> None:
    kv = new_manager(20, 0, 9)
    tokens = list(range(33))
    first = kv.new_table(tokens)
    compute(kv, first, 33)
    kv.free(first)
    flush(kv)
    second = kv.new_table(tokens)
    assert kv.cached_prefix(second) == []
    assert kv.missing_to_start([], 33) >= 8 + 2
    kv.start(second, [])
    assert second.num_computed == second.num_writable == 32
    assert len(end_step(kv, second).swap_ins) == 8 + 2
    assert second.block_ids[1::2][:6] == [NO_BLOCK] * 6
    assert len(kv.lookup(tokens)) == 2 * 8, "found in the pool again"
    compute(kv, second, 33)
    kv.free(second)
    kv.check_invariants()


def test_a_prefix_is_the_longest_of_pool_and_host_memory_together() -> None:
    """Each block of each group in the pool, in host memory, or nowhere; against trying all lengths."""
    windows, num_places = (0, 5), 4
    for places in itertools.product(("pool", "host", None), repeat=2 * num_places):
        if places.count("pool") != num_places:
            continue  # as many as are tried in good time
        kv = new_manager(30, *windows)
        assert kv.index is not None and kv.offload is not None
        tokens = list(range(SIZE * num_places + 1))
        table = kv.new_table(tokens)
        table.hash_blocks(kv.index, SIZE)
        for i, where in enumerate(places):
            key = table.key(i // 2, kv._search.suffixes[i % 2])
            if where == "pool":
                block = kv.pool.allocate()
                kv.index.add(*key, block)
                kv.pool.drop(block)
                kv.pool.retire(block, keep=True)
            elif where == "host":
                slots = kv.offload.reserve(1)
                kv.offload.fill(slots, [key])
        expected = 0
        for length in range(1, num_places + 1):
            first = max(0, length * SIZE - 4) // SIZE
            if None not in places[: 2 * length : 2] and None not in places[2 * first + 1 : 2 * length : 2]:
                expected = length
        prefix = kv.cached_prefix(table)
        needed, num_free = kv.missing_to_start(prefix, len(tokens)), kv.num_free_blocks
        kv.start(table, prefix)
        assert table.num_computed == expected * SIZE, places
        assert num_free - kv.num_free_blocks <= needed
        used = [places[i] for i, block in enumerate(table.block_ids) if block != NO_BLOCK]
        assert len(end_step(kv, table).swap_ins) == used.count("host")


def test_of_a_disk_only_what_is_seen_is_asked_for() -> None:
    kv = new_manager(40, 9, 0, disk=True)
    tokens = list(range(41))
    keys = kv.missing_prefix(tokens, None, lambda key: True)
    assert len(keys) == len(set(keys)) == 2 + 10
    windowed = [key for key in keys if len(key.digest) == DIGEST_BYTES]
    assert [key.tokens for key in windowed] == [key.tokens for key in keys if key not in windowed][-2:]
    assert kv.offload is not None
    kv.offload.fill(kv.offload.reserve(12), keys)
    table = kv.new_table(tokens)
    kv.start(table, kv.cached_prefix(table))
    assert table.num_computed == 40
    end_step(kv, table)
    kv.free(table)

    def without(gone: BlockKey) -> list[BlockKey]:
        fresh = KVCacheManager(40, SIZE, groups=kv.groups, key=b"k", num_host_slots=99, keeps_on_disk=True)
        return fresh.missing_prefix(
            tokens, None, lambda key: key.tokens != gone.tokens or len(key.digest) != len(gone.digest)
        )

    assert len(without(windowed[-1])) == 2 + 9, "cut before the block that the window needs"
    assert len(without(windowed[0])) == 2 + 8
    assert len(without(keys[0])) == 0


def test_saves_know_their_group() -> None:
    kv = new_manager(40, 0, 9, disk=True)
    tokens = list(range(17))
    table = kv.new_table(tokens)
    compute(kv, table, 17)
    assert kv.index is not None
    again = kv.new_table(list(tokens))
    kv.start(again, kv.cached_prefix(again))
    saves = dict(end_step(kv, again).saves)
    assert saves == {block: kv.index.key_of(block) for block in table.block_ids[:8] if block != NO_BLOCK}
    assert len({key.digest for key in saves.values()}) == len(saves) == 4 + 2
