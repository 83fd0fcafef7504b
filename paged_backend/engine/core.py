"""The engine's heart: plan, run, commit, text. One thread only; `engine.loop` gives it one."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from itertools import count, repeat

from paged_backend.config import EngineConfig
from paged_backend.engine.deadlines import Deadlines
from paged_backend.engine.detokenizer import Finish, SampleText
from paged_backend.engine.grammars import GrammarQueue
from paged_backend.engine.kv_cache import new_kv_manager
from paged_backend.engine.metrics import EngineMetrics
from paged_backend.engine.pace import Pace
from paged_backend.engine.pipeline import StepPipeline
from paged_backend.engine.prefetcher import Prefetcher
from paged_backend.engine.request import EngineRequest, RequestState, SampleState
from paged_backend.engine.stats import EngineStats, KVMap, SequenceBlocks
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.engine.tracing import RequestTracer
from paged_backend.errors import EngineUnavailableError, InvalidRequestError, PagedBackendError, RequestFailedError
from paged_backend.executor.executor import Executor
from paged_backend.kv.layer_group import NO_BLOCK
from paged_backend.outputs import FinishReason
from paged_backend.scheduler.plan import NOT_DRAWN, SampledToken, StepPlan, StepResult
from paged_backend.scheduler.prompt_scoring import PromptScoring
from paged_backend.scheduler.scheduler import Scheduler
from paged_backend.scheduler.sequence import Sequence
from paged_backend.structured.compiler import GrammarCompiler

logger = logging.getLogger(__name__)

_FLUSH_TIMEOUT_S = 5.0
"""How long a clean end may take to write the cache to disk."""

_SCORED_BYTES = 2**26
"""Of logits that tell of prompts, in memory at once."""

TIMED_OUT = Finish("abort", "timeout")
"""The end of a request whose deadline has passed."""


class EngineCore:
    """Holds scheduler, executor and the live requests, and moves all of them on by one step at a time.

    Attributes:
        pace: how fast it computes and drains its queue.
        last_stats: the latest snapshot.
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        tokenizer: Tokenizer | None,
        metrics: EngineMetrics,
        tracer: RequestTracer | None = None,
        compiler: GrammarCompiler | None = None,
    ) -> None:
        self.pace = Pace()
        self._executor = executor
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._tracer = tracer
        self._transfer = executor.transfer
        self._kv = new_kv_manager(config, executor, metrics)
        self._grammars = GrammarQueue(compiler)
        self._prefetcher: Prefetcher | None = None
        if self._transfer is not None and self._transfer.disk is not None:
            self._prefetcher = Prefetcher(self._kv, self._transfer, self._transfer.disk)
        scoring = PromptScoring(max(1, _SCORED_BYTES // (4 * executor.vocab_size)))
        self._scheduler = Scheduler(config.scheduler, self._kv, executor.max_model_len, executor.eos_token_ids, scoring)
        self._pipeline = StepPipeline(self._scheduler, executor, self._note_started)
        self._seed = config.model.seed
        self._requests: dict[str, RequestState] = {}  # by key, as the scheduler knows them
        self._not_started: dict[int, RequestState] = {}  # by sequence id, until first in a plan
        self._deadlines = Deadlines()
        self._num_queued = 0  # requests without a step that the last step left waiting
        self._queued_at_s = 0.0
        self._num_added = 0
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        self.last_stats = EngineStats()

    def has_work(self) -> bool:
        """Whether `step` would do something."""
        if self._scheduler.has_work or self._pipeline.in_flight or self._grammars.num_waiting:
            return True
        return self._prefetcher is not None and self._prefetcher.num_waiting > 0

    def add(self, request: EngineRequest) -> None:
        """Queues a request that fits (`EngineFacts.check_fits`), under a key that is not in use."""
        params = request.params
        seed = params.seed if params.seed is not None else self._own_seed()
        self._num_added += 1
        state = RequestState(request, self._tokenizer)
        if not self._grammars.begin(state, seed):
            self._prefetch(state, seed)
        self._requests[request.key] = state
        self._deadlines.add(state, len(self._requests))
        self._metrics.request_prompt_tokens.observe(len(request.prompt_token_ids))
        self._metrics.request_params_n.observe(params.n)

    def abort(self, key: str) -> list[RequestState]:
        """Ends a request with finish_reason "abort"; one that is unknown or over gives nothing."""
        state = self._requests.get(key)
        return [] if state is None else [self._cut_off(state, Finish("abort"))]

    def step(self) -> list[RequestState]:
        """Computes one step; returns the requests that gained something or ended, for their gains to be taken.

        Before it, those whose deadline has passed end with what they have.
        """
        started_s = time.monotonic()
        overdue: list[RequestState] = []
        if self._deadlines:
            overdue = [self._cut_off(state, TIMED_OUT) for state in self._deadlines.take_overdue(started_s)]
        if self._grammars.num_waiting:
            for state, seed, error in self._grammars.take_ready(wait_for_one=not self._scheduler.has_work):
                if error is None:
                    self._prefetch(state, seed)
                else:
                    overdue.append(self._end_with(state, error))
        if self._prefetcher is not None:
            for key, seed in self._prefetcher.take_ready(wait=not self._scheduler.has_work):
                self._queue(self._requests[key], seed)
        if not self._scheduler.has_work and not self._pipeline.in_flight:
            return overdue
        changed = self._compute(started_s)
        return overdue + changed if overdue else changed

    def _compute(self, started_s: float) -> list[RequestState]:
        step = self._pipeline.next(started_s)
        if step.result is None:
            return self._fail_step()
        if step.num_tokens:  # else nobody who was in it is left
            self._num_steps += 1
            now_s = time.monotonic()
            self.pace.note_step(step.num_tokens, now_s - step.began_s, now_s)
            self._metrics.iteration_tokens.observe(step.num_tokens)
        owners = self._scheduler.commit(step.result)
        failed = self._take_scores(step.plan, step.result) if step.plan.scoring else []
        return failed + self._take_tokens(owners, step.result)

    def stats(self) -> EngineStats:
        """A snapshot."""
        cache = self._kv.stats()
        self.last_stats = EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting
            + self._grammars.num_waiting
            + (self._prefetcher.num_waiting if self._prefetcher else 0),
            num_fetching=self._prefetcher.num_waiting if self._prefetcher else 0,
            num_waiting_tokens=self._scheduler.num_waiting_tokens
            + self._grammars.num_waiting_tokens
            + (self._prefetcher.num_waiting_tokens if self._prefetcher else 0),
            num_total_blocks=cache.num_blocks,
            num_free_blocks=cache.num_free_blocks,
            num_used_blocks=cache.num_used_blocks,
            kv_cache_usage=cache.num_used_blocks / cache.num_blocks,
            num_steps=self._num_steps,
            num_preemptions=self._scheduler.num_preemptions,
            prompt_tokens=self._num_prompt_tokens,
            generation_tokens=self._num_generated_tokens,
            prefix_cache_queries=cache.prefix_queries,
            prefix_cache_hits=cache.prefix_hits,
            num_swapped=cache.offload.num_swapped,
            num_swaps=self._scheduler.num_swaps,
            external_prefix_cache_queries=cache.offload.queries,
            external_prefix_cache_hits=cache.offload.hits,
            num_host_blocks=cache.offload.num_slots,
            num_used_host_blocks=cache.offload.num_filled_slots,
            transfer=None if self._transfer is None else self._transfer.stats(),
        )
        return self.last_stats

    def kv_map(self) -> KVMap:
        """Who has which block, now."""
        sequences = [
            SequenceBlocks(
                state.request.request_id,
                sequence.index,
                sequence.num_computed_tokens,
                [block for block in sequence.table.block_ids if block != NO_BLOCK],
            )
            for key, state in self._requests.items()
            for sequence in self._scheduler.sequences(key)
            if sequence.table.active
        ]
        return KVMap(self._kv.block_size, self._kv.block_states(), list(self._kv.pool.ref_counts), sequences)

    def end_all(self, reason: str) -> list[RequestState]:
        """Ends every live request with EngineUnavailableError: nothing can be computed any more.

        The scheduler is left alone, as it may be what broke.
        """
        states = list(self._requests.values())
        for state in states:
            state.fail(EngineUnavailableError(reason))
            self._forget(state, "error")
        self.last_stats = self.last_stats.emptied()
        return states

    def close(self, *, keep_cache: bool = True) -> None:
        """Frees the model and the cache, and sends the last traces.

        Args:
            keep_cache: write the cache to disk first, where there is a tier for it.
        """
        self._pipeline.close()
        if keep_cache and self._transfer is not None:
            self._transfer.flush(self._kv.indexed_blocks(), _FLUSH_TIMEOUT_S)
        self._grammars.close()
        self._executor.close()
        if self._tracer is not None:
            self._tracer.close()

    def _prefetch(self, state: RequestState, seed: int) -> None:
        """Queues a request, after what is on disk of its prefix, if anything is."""
        request = state.request
        skips = self._prefetcher is None or request.params.skips_prefix_cache
        if self._prefetcher is None or skips or not self._prefetcher.begin(request, seed):
            self._queue(state, seed)

    def _queue(self, state: RequestState, seed: int) -> None:
        request, params = state.request, state.request.params
        if params.chooses_at_end and params.logprobs is None and not params.use_beam_search:
            params = dataclasses.replace(params, logprobs=0)  # samples are compared by them
        text = None
        if params.use_beam_search and params.stop and self._tokenizer is not None:
            text = SampleText(self._tokenizer, request.prompt_token_ids, params)
        sequence = self._scheduler.add(
            request.key,
            request.prompt_token_ids,
            params,
            seed=seed,
            priority=request.priority,
            tenant=request.tenant,
            salt=request.cache_salt,
            text=text,
        )
        state.usage = sequence.table.usage
        if state.matcher is not None:
            assert params.structured_outputs is not None
            sequence.task.matcher = state.matcher.after(params.structured_outputs.reasoning, sequence.eos_token_ids)
        self._not_started[sequence.seq_id] = state
        self._metrics.request_params_max_tokens.observe(sequence.max_tokens)

    def _own_seed(self) -> int:
        """A seed for a request that brought none: it depends on the engine's seed and the request's number."""
        text = f"{self._seed}:{self._num_added}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)

    def _cut_off(self, state: RequestState, finish: Finish) -> RequestState:
        """Ends a live request with what it has."""
        key = state.request.key
        for sequence in self._scheduler.sequences(key)[:1]:
            if sequence.group is not None:
                state.take_beams(sequence.group.best_so_far(finish.reason, finish.stop_reason))
                self._num_generated_tokens += sum(state.num_generated)
        for sequence in self._scheduler.abort(key):
            self._not_started.pop(sequence.seq_id, None)
        self._num_queued = min(self._num_queued, len(self._not_started))
        state.end(finish)
        self._forget(state, finish.reason)
        return state

    def _note_started(self, plan: StepPlan) -> None:
        """Notes who gets a first step, and how long those took that had to wait for theirs."""
        if not self._not_started and not self._num_queued:
            return
        now_s = time.monotonic()
        num_before = len(self._not_started)
        for scheduled in plan.sequences:
            state = self._not_started.pop(scheduled.seq_id, None)
            if state is not None:
                state.times.scheduled_s = now_s
        if self._num_queued:
            num_started = num_before - len(self._not_started)
            self.pace.note_queue(min(num_started, self._num_queued), now_s - self._queued_at_s)
        self._num_queued, self._queued_at_s = len(self._not_started), now_s

    def _take_scores(self, plan: StepPlan, result: StepResult) -> list[RequestState]:
        """Adds to what is known of prompts; returns the requests for which that is not possible, now ended."""
        failed = []
        for task, tokens in zip(plan.scoring, result.scored, strict=True):
            state = self._requests[task.request_id]
            state.prompt.scored.extend(tokens)
            if any(token.token_id == NOT_DRAWN for token in tokens):
                state.is_corrupted = True
                failed.append(self._fail(state))
        return failed

    def _take_tokens(self, owners: list[Sequence], result: StepResult) -> list[RequestState]:
        """Hands each request what its sequences drew, and ends what their text ends."""
        now_s = time.monotonic()
        changed: list[RequestState] = []
        last_s, num_alike = now_s, 0  # tokens in a row whose samples had the one before at the same time
        num_generated = len(owners)
        described = map(result.described.get, count()) if result.described else repeat(None)
        faults = {owners[place].request_id: fault for place, fault in result.faults.items()}
        for sequence, token_id, full in zip(owners, result.token_ids, described, strict=False):
            sample: SampleState | None = sequence.sample
            if sample is None or token_id == NOT_DRAWN:
                if token_id == NOT_DRAWN or sequence.group is not None:
                    num_generated -= 1  # no token, or a candidate
                state = self._requests.get(sequence.request_id)
                if state is None:  # a sample before this one has failed the request
                    continue
                if sequence.group is not None:
                    if not state.over and self._look_at_beams(state, sequence, now_s, faults.get(sequence.request_id)):
                        changed.append(state)
                        num_generated += sum(state.num_generated)
                    continue
                if token_id == NOT_DRAWN:
                    fault = faults.get(sequence.request_id)
                    state.is_corrupted = fault is None
                    changed = [other for other in changed if other is not state]
                    changed.append(self._fail(state, fault))
                    continue
                sample = self._add_sample(state, sequence, now_s)
            else:
                if sample.last_token_s != last_s:
                    self._metrics.inter_token_latency.observe(now_s - last_s, num_alike)
                    last_s, num_alike = sample.last_token_s, 0
                num_alike += 1
                sample.last_token_s = now_s
                state = sample.state
            if not state.gains:
                changed.append(state)
            if full is None and sample.text is None and sequence.finish_reason is None:
                state.gains.append((sample.index, token_id, None, None, None, state.prompt))
            else:
                self._take_token(sample, token_id, full)
        self._num_generated_tokens += num_generated
        self._metrics.inter_token_latency.observe(now_s - last_s, num_alike)
        for state in changed:
            if state.over and state.error is None:
                self._forget(state, state.reason)
        return changed

    def _take_token(self, sample: SampleState, token_id: int, described: SampledToken | None) -> None:
        """A token that ends a sample, or may end it by its text, or comes with logprobs."""
        sequence = sample.sequence
        by_token = Finish(sequence.finish_reason, sequence.stop_reason) if sequence.finish_reason is not None else None
        finish = sample.state.take_token(sample, token_id, described, by_token)
        if finish is not None and not sequence.finished:
            self._scheduler.finish_sequence(sequence, finish.reason, finish.stop_reason)

    def _look_at_beams(self, state: RequestState, sequence: Sequence, now_s: float, fault: str | None) -> bool:
        """Takes over what a beam search has found; whether it is over, or has failed."""
        group = sequence.group
        assert group is not None
        if not state.times.first_token_s:
            self._note_first_token(state, sequence, now_s)
        if group.failed:
            state.is_corrupted = fault is None
            self._fail(state, fault)
        elif group.search.over:
            state.take_beams(group.best)
        return state.over

    def _add_sample(self, state: RequestState, sequence: Sequence, now_s: float) -> SampleState:
        """A sample's first token."""
        if not state.times.first_token_s:
            self._note_first_token(state, sequence, now_s)
        sample = sequence.sample = state.add_sample(sequence, now_s)
        return sample

    def _fail_step(self) -> list[RequestState]:
        failed = dict.fromkeys(sequence.request_id for sequence in self._scheduler.fail())
        return [self._fail(self._requests[key]) for key in failed]

    def _fail(self, state: RequestState, fault: str | None = None) -> RequestState:
        """Ends a request with an error: its own fault, or, without one, that of its logits or of the whole step."""
        for sequence in self._scheduler.sequences(state.request.key):
            self._grammars.give_up(state, sequence.task.matcher)
            self._scheduler.finish_sequence(sequence, "error")
        if fault is not None:
            return self._end_with(state, InvalidRequestError(fault))
        request_id = state.request.request_id
        extra = {"request_id": request_id}
        logger.error("request %s: a step failed, or its logits are not numbers", request_id, extra=extra)
        return self._end_with(state, RequestFailedError("The engine failed on this request: try it again."))

    def _end_with(self, state: RequestState, error: PagedBackendError) -> RequestState:
        """Ends a request that the scheduler does not know, or not any more, with an error."""
        state.fail(error)
        self._forget(state, "error")
        return state

    def _forget(self, state: RequestState, reason: FinishReason) -> None:
        now_s = time.monotonic()
        del self._requests[state.request.key]
        self._grammars.forget(state.request.key)
        if self._prefetcher is not None:
            self._prefetcher.forget(state.request.key)
        for sample in state.samples.values():
            sample.sequence.sample = None
        stats = state.close(now_s)
        self._metrics.observe_request_end(stats, max(state.num_generated), reason)
        if self._tracer is not None:
            self._tracer.record(state.request, stats, reason)

    def _note_first_token(self, state: RequestState, sequence: Sequence, now_s: float) -> None:
        state.prompt.num_cached_tokens = sequence.num_cached_tokens
        state.times.first_token_s = now_s
        num_prompt_tokens = len(state.request.prompt_token_ids)
        self._num_prompt_tokens += num_prompt_tokens
        self._metrics.observe_prompt(num_prompt_tokens, sequence.num_cached_tokens, state.usage.num_external_tokens)
        self._metrics.time_to_first_token.observe(now_s - state.times.arrival_s)
