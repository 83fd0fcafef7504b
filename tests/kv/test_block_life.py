"""Lives of blocks, on a clock that only the test moves."""

from __future__ import annotations

from paged_backend.kv.block_life import BlockLife, BlockWatch
from paged_backend.kv.manager import KVCacheManager


class Clock:
    """Says what `now_s` says."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_life_from_its_first_use_to_its_end() -> None:
    clock, ended = Clock(), []
    watch = BlockWatch(1.0, lambda life, now_s: ended.append((life, now_s)), clock_s=clock)
    kv = KVCacheManager(2, 2, watch=watch)

    def run(tokens: list[int]) -> None:
        table = kv.new_table(tokens)
        kv.start(table, kv.cached_prefix(table))
        assert kv.allocate(table, len(tokens))
        kv.commit(table, len(tokens))
        clock.now_s += 1
        kv.free(table)
        clock.now_s += 10

    run([1, 2, 3])  # at 100: blocks for (1, 2) and for (3)
    run([1, 2, 4])  # at 111: finds the first, and (3), which nobody can find, ends
    run([5, 6, 7, 8])  # at 122: both end
    assert [now_s for _, now_s in ended] == [111.0, 122.0, 122.0]
    lives = [(life.born_s, list(life.uses_s)) for life, _ in ended]
    assert sorted(lives) == [(100.0, []), (100.0, [111.0]), (111.0, [])]


def test_of_many_uses_the_last_are_kept() -> None:
    life = BlockLife(1.0)
    assert life.last_use_s == 1.0
    life.uses_s.extend(range(2, 1000))
    assert life.last_use_s == 999 and len(life.uses_s) < 100


def test_a_part_is_watched() -> None:
    ended: list[BlockLife] = []
    watch = BlockWatch(0.1, lambda life, _: ended.append(life))
    for _ in range(2):
        for block in range(1000):
            watch.take(block)
    assert 50 < len(ended) < 200
