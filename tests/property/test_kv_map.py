"""The map of the KV cache agrees with the requests that were sent, whatever has happened to them."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from paged_backend.config import EngineConfig
from paged_backend.engine.core import EngineCore
from paged_backend.engine.metrics import EngineMetrics
from paged_backend.engine.request import EngineRequest
from paged_backend.engine.stats import KVMap, SequenceBlocks
from paged_backend.sampling_params import SamplingParams
from tests.engine.fake_executor import FakeExecutor, next_token
from tests.engine_driver import new_request

BLOCK_SIZE = FakeExecutor.block_size
TEXTS = [[text] * 6 + list(range(10, 40)) for text in (5, 5, 6)]


class SmallExecutor(FakeExecutor):
    """Whose cache is soon full."""

    num_blocks = 14


class MapMachine(RuleBasedStateMachine):
    """An engine whose requests come, draw, give way, are cut off and fail."""

    core: EngineCore | None = None

    @initialize(policy=st.sampled_from(["fcfs", "priority", "fair"]), budget=st.integers(4, 24))
    def build(self, policy: str, budget: int) -> None:
        config = EngineConfig.from_args(
            skip_tokenizer_init=True, max_num_seqs=4, max_num_batched_tokens=budget, scheduling_policy=policy
        )
        executor = SmallExecutor()
        self.core = EngineCore(config, cast(Any, executor), None, EngineMetrics("test", executor.max_model_len))
        self.executor = executor
        self.requests: dict[str, EngineRequest] = {}

    @property
    def engine(self) -> EngineCore:
        assert self.core is not None
        return self.core

    @rule(
        text=st.sampled_from(TEXTS),
        length=st.integers(1, 24),
        n=st.integers(1, 3),
        max_tokens=st.integers(1, 20),
        salt=st.sampled_from([None, None, "salt"]),
    )
    def add(self, text: list[int], length: int, n: int, max_tokens: int, salt: str | None) -> None:
        params = SamplingParams(n=n, seed=len(self.requests), max_tokens=max_tokens, ignore_eos=True)
        request = new_request(f"r{len(self.requests)}", text[:length], params, cache_salt=salt)
        self.engine._scheduler.check_fits(length, params)
        self.engine.add(request)
        self.requests[request.request_id] = request

    @rule(count=st.integers(1, 6), fails=st.sampled_from([False] * 9 + [True]))
    def step(self, count: int, fails: bool) -> None:
        def fail(_: object) -> None:
            raise RuntimeError("a kernel has failed")

        self.executor.before_run = fail if fails else lambda _: None
        for _ in range(count):
            self.engine.step()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.engine.abort(self.requests[data.draw(st.sampled_from(list(self.requests)))].key)

    @invariant()
    def the_map_is_true(self) -> None:
        if self.core is None:
            return
        before = self.core._kv.pool.free_blocks()
        kv_map = self.core.kv_map()
        assert kv_map == self.core.kv_map() and before == self.core._kv.pool.free_blocks(), "a question changes nothing"
        assert kv_map.block_size == BLOCK_SIZE
        assert len(kv_map.states) == len(kv_map.num_owners) == SmallExecutor.num_blocks
        names = [(sequence.request_id, sequence.index) for sequence in kv_map.sequences]
        assert len(set(names)) == len(names) == self.core.stats().num_running
        self.check_owners(kv_map)
        self.check_shared(kv_map)
        self.check_findable(kv_map)

    def check_owners(self, kv_map: KVMap) -> None:
        """A block is owned by those who have it, and by nobody else; all have what they have computed."""
        owners = kv_map.owners()
        for block, (state, count) in enumerate(zip(kv_map.states, kv_map.num_owners, strict=True)):
            assert len(owners.get(block, ())) == count and (state == "owned") == (count > 0)
        for sequence in kv_map.sequences:
            assert len(set(sequence.block_ids)) == len(sequence.block_ids)
            assert len(sequence.block_ids) == -(-sequence.num_computed_tokens // BLOCK_SIZE)

    def check_shared(self, kv_map: KVMap) -> None:
        """Who shares a block has it in the same place, for the same tokens after the same ones, in the same scope."""
        for block, owners in kv_map.owners().items():
            held = set()
            for sequence in owners:
                place = list(sequence.block_ids).index(block)
                end = min((place + 1) * BLOCK_SIZE, sequence.num_computed_tokens)
                salt = self.requests[sequence.request_id].cache_salt
                held.add((salt, place, tuple(self.tokens(sequence)[:end])))
            assert len(held) == 1

    def check_findable(self, kv_map: KVMap) -> None:
        """What a prompt would find is cached or owned; a block that nobody has and nobody finds is free."""
        kv = self.engine._kv
        for request in self.requests.values():
            for block in kv.lookup([*request.prompt_token_ids, 0], request.cache_salt):
                assert kv_map.states[block] != "free"
        findable = {block for block, _ in kv.indexed_blocks()}
        for block, state in enumerate(kv_map.states):
            assert (state == "free") == (block not in findable and not kv_map.num_owners[block])

    def tokens(self, sequence: SequenceBlocks) -> list[int]:
        """A sequence's tokens, as far as they are computed, from the definition."""
        request = self.requests[sequence.request_id]
        known, seed = list(request.prompt_token_ids), request.params.seed
        assert seed is not None
        while len(known) < sequence.num_computed_tokens:
            known.append(next_token(known, seed + sequence.index))
        return known[: sequence.num_computed_tokens]

    def teardown(self) -> None:
        if self.core is None:
            return
        self.executor.before_run = lambda _: None
        while self.core.has_work():
            self.core.step()
        kv_map = self.core.kv_map()
        assert not kv_map.sequences and "owned" not in kv_map.states


def test_the_map_through_random_lives() -> None:
    run_state_machine_as_test(
        MapMachine,
        settings=settings(
            max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
