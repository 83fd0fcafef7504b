"""Who asks for the same prefix again is answered without a search, as long as the answer is the same."""

from __future__ import annotations

from random import Random

import pytest

from paged_backend.config import SchedulerConfig
from paged_backend.kv.block_table import BlockTable
from paged_backend.kv.layer_group import LayerGroup
from paged_backend.kv.manager import KVCacheManager
from paged_backend.kv.prefix_index import PrefixIndex
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import StepResult
from paged_backend.scheduler.scheduler import Scheduler

SIZE = 4


class Finds:
    """Counts what is asked of all indexes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        find = PrefixIndex.find

        def counted(index: PrefixIndex, digest: bytes, parent: bytes, tokens: bytes) -> int | None:
            self.count += 1
            return find(index, digest, parent, tokens)

        monkeypatch.setattr(PrefixIndex, "find", counted)


def new_manager(num_blocks: int, *windows: int) -> KVCacheManager:
    return KVCacheManager(num_blocks, SIZE, groups=[LayerGroup(window, SIZE, 8) for window in windows])


def compute(kv: KVCacheManager, tokens: list[int]) -> BlockTable:
    """A sequence whose tokens are all computed, what is not found of them."""
    table = kv.new_table(tokens)
    kv.start(table, kv.cached_prefix(table))
    while table.num_computed < len(tokens):
        upto = min(len(tokens), table.num_computed + 8)
        assert kv.allocate(table, upto)
        kv.commit(table, upto)
    return table


@pytest.mark.parametrize("windows", [(5,), (5, 9), (0,), (0, 5)])
def test_only_what_has_come_or_gone_makes_a_search(windows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    kv, finds = new_manager(30, *windows), Finds(monkeypatch)
    tokens = list(range(40))
    asks = kv.new_table(tokens)
    assert kv.cached_prefix(asks) == []
    once = finds.count
    assert once == (1 if 0 in windows else 9 * len(windows))
    kv.free(compute(kv, [1000 + i for i in range(20)]))  # somebody else's
    finds.count = 0
    assert kv.cached_prefix(asks) == []
    assert finds.count == once, "a start makes it forget"
    finds.count = 0
    other = kv.new_table([2000 + i for i in range(20)])
    kv.start(other, [])
    assert kv.cached_prefix(asks) == []
    before = finds.count
    for end in range(4, 20, 4):  # blocks of others come
        assert kv.allocate(other, end)
        kv.commit(other, end)
        assert kv.cached_prefix(asks) == []
    assert finds.count == before
    kv.free(other)
    mine = kv.new_table(tokens[:10])
    kv.start(mine, [])
    kv.cached_prefix(asks)
    for end in (4, 8):  # its own come
        assert kv.allocate(mine, end)
        kv.commit(mine, end)
        assert len(kv.cached_prefix(asks)) == end // SIZE * len(windows)
    kv.free(mine)
    while kv.pool.num_free > 1:  # they go
        kv._allocate_block()
        kv.cached_prefix(asks)
        assert kv._remembered is not None
        kv._remembered.check_invariants()


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_is_what_a_search_finds(seed: int) -> None:
    draw = Random(seed)
    kv = new_manager(14, *draw.choice([(0,), (5,), (0, 5)]))
    texts = [[draw.randrange(2) for _ in range(4)] * 6 for _ in range(2)]
    asks = [kv.new_table(text[: draw.randint(5, 24)]) for text in texts]
    running: list[BlockTable] = []
    for _ in range(300):
        if draw.random() < 0.6:
            table = draw.choice(asks)
            assert kv.cached_prefix(table) == kv._search.longest(table, kv.index.find if kv.index else lambda *_: None)
        elif running and draw.random() < 0.5:
            kv.free(running.pop(draw.randrange(len(running))))
        elif kv.num_free_blocks >= 6 * len(kv.groups):
            running.append(compute(kv, draw.choice(texts)[: draw.randint(1, 20)]))
        kv.check_invariants()


def test_a_model_of_windows_only_does_not_search_at_each_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt waits for blocks; others run, and fill blocks of their own."""
    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64)
    kv = KVCacheManager(30, SIZE, groups=[LayerGroup(32, SIZE, 64)])
    scheduler = Scheduler(config, kv, 500)
    for i in range(2):
        scheduler.add(f"runs{i}", [i], SamplingParams(max_tokens=120), seed=i)
    for _ in range(40):
        scheduler.commit(StepResult([7] * len(scheduler.plan().sequences)))
    scheduler.add("waits", list(range(100, 500 - 4)), SamplingParams(max_tokens=4), seed=9)
    scheduler.commit(StepResult([7] * len(scheduler.plan().sequences)))
    finds = Finds(monkeypatch)
    for _ in range(60):
        scheduler.commit(StepResult([7] * len(scheduler.plan().sequences)))
        assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)
    assert finds.count == 0
