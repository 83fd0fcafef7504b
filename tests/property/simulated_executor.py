"""An executor without a model: its cache holds, slot by slot, what a real one's K/V would depend on.

The K/V of a position depend on every token up to it, and a drawn token on the K/V of its whole context, the
seed and its position. Here the "K/V" of a slot are (scope, position, digest of all tokens up to it, group of
layers), and a token is a hash of what stands in the cache. A block that is shared, reused or copied wrongly, or
given back while a window still reaches it, is seen at once, and changes tokens too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from paged_backend.kv.host_tier import Transfers
from paged_backend.kv.manager import KVCacheManager
from paged_backend.kv.prefix_index import BlockKey, group_suffixes
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import (
    NOT_DRAWN,
    SampledToken,
    SamplingTask,
    ScheduledSequence,
    ScoringTask,
    StepPlan,
    StepResult,
)

EOS = 0
VOCAB_SIZE = 7

Cell = tuple[str | None, int, int, int]
"""Scope (the salt), position, digest of the tokens up to and with that position, group of layers."""

GARBAGE: Cell = ("nobody's", -1, -1, -1)


@dataclass(frozen=True)
class Known:
    """What the test itself knows of a sequence, not taken from the scheduler."""

    token_ids: tuple[int, ...]
    scope: str | None


def extend_digest(digest: int, token: int) -> int:
    """The digest of one more token."""
    return hash((digest, token))


def draw(seed: int, position: int, digest: int, suppressed: tuple[int, ...]) -> int:
    """The token of (seed, position, context): what a model and its sampler would be."""
    allowed = [token for token in range(VOCAB_SIZE) if token not in suppressed]
    return allowed[hash((seed, position, digest)) % len(allowed)]


def run_alone(
    prompt: tuple[int, ...], params: SamplingParams, seed: int, max_tokens: int
) -> tuple[tuple[int, ...], str, int | None]:
    """Tokens, finish reason and stop reason of one sample, from the definition: no cache, no steps."""
    digest = 0
    for token in prompt:
        digest = extend_digest(digest, token)
    stops = tuple(params.stop_token_ids or ())
    output: list[int] = []
    while True:
        suppressed = (EOS, *stops) if len(output) < params.min_tokens else ()
        token = draw(seed, len(prompt) + len(output), digest, suppressed)
        output.append(token)
        digest = extend_digest(digest, token)
        if token == EOS and not params.ignore_eos and token not in suppressed:
            return tuple(output), "stop", None
        if token in stops and token not in suppressed:
            return tuple(output), "stop", token
        if len(output) == max_tokens:
            return tuple(output), "length", None


def logprob(token: int, digest: int) -> float:
    """What a token is worth after a context; no distribution, but the search does not know."""
    return -(1 + hash((VOCAB_SIZE, token, digest)) % 1000) / 250


def score_alone(prompt: tuple[int, ...], params: SamplingParams) -> list[tuple[int, float | None]]:
    """Each token of a prompt but the first, and what it is worth after those before it, if that is asked for."""
    digest, scored = 0, []
    for before, token in pairwise(prompt):
        digest = extend_digest(digest, before)
        scored.append((token, logprob(token, digest)))
    return scored if params.prompt_logprobs is not None else []


def search_alone(
    prompt: tuple[int, ...], params: SamplingParams, max_tokens: int
) -> list[tuple[tuple[int, ...], str, int | None]]:
    """Tokens, finish and stop reason of the n best beams, the best first, by transformers' rules spelled out."""
    width, penalty = params.num_sequences, params.length_penalty
    stops = set(params.stop_token_ids or ())
    ends = stops if params.ignore_eos else stops | {EOS}
    num_kept = width * max(2, 1 + len(ends))
    running: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...], str, int | None]] = []
    for length in range(1, max_tokens + 1):
        suppressed = stops | {EOS} if length <= params.min_tokens else set()
        continued = []
        for score, tokens in running:
            digest = 0
            for token in prompt + tokens:
                digest = extend_digest(digest, token)
            values = {t: logprob(t, digest) for t in range(VOCAB_SIZE) if t not in suppressed}
            continued += [
                (score + value, (*tokens, token))
                for token, value in sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))
            ]
        continued = sorted(continued, key=lambda pair: -pair[0])[:num_kept]
        running = []
        for rank, (score, tokens) in enumerate(continued):
            ended = tokens[-1] in ends
            if not ended and length < max_tokens:
                running.append((score, tokens))
            elif rank < width:
                is_eos = tokens[-1] == EOS and not params.ignore_eos
                stop = tokens[-1] if ended and not is_eos else None
                finished.append((score / length**penalty, tokens, "stop" if ended else "length", stop))
        running = running[:width]
        finished = sorted(finished, key=lambda beam: -beam[0])[:width]
        if not running or (len(finished) == width and params.early_stopping is True):
            break
        best_length = max_tokens if params.early_stopping == "never" and penalty > 0 else length
        if len(finished) == width and running[0][0] / best_length**penalty <= finished[-1][0]:
            break
    return [beam[1:] for beam in finished[: params.n]]


class SimulatedExecutor:
    """Runs plans over the simulated cache, and asserts what an executor may rely on.

    Args:
        num_blocks, block_size: the cache's shape.
        known: tells what a sequence's tokens must be, by its id.
        windows: for each group of layers, tokens that a position sees, itself included; 0 means all.
        num_host_slots: slots of host memory.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        known: Callable[[int], Known],
        windows: Sequence[int] = (0,),
        num_host_slots: int = 0,
    ) -> None:
        self.block_size = block_size
        self.windows = windows
        self.known = known
        self.cells: list[list[Cell]] = [[GARBAGE] * block_size for _ in range(num_blocks)]
        self.slots: list[list[Cell]] = [[GARBAGE] * block_size for _ in range(num_host_slots)]
        self.disk: dict[BlockKey, list[Cell]] = {}

    def run(self, plan: StepPlan, *, undrawable: int | None = None, ended: Collection[int] = ()) -> StepResult:
        """Moves, copies, writes all new K/V, and draws, but for one sequence that nothing can be drawn for.

        Args:
            ended: sequences that nobody waits for any more: what they write and draw is garbage.
        """
        self.move_blocks(plan.transfers)
        self.copy_blocks(plan.block_copies)
        self._write(plan, ended)
        samples: list[int] = []
        scores: list[float] = []
        for scheduled in plan.sequences:
            if scheduled.seq_id in ended:
                num_results = 0 if scheduled.sampling is None else scheduled.sampling.num_results
                samples += [VOCAB_SIZE] * num_results
                scores += [0.0] * num_results
                continue
            known = self.known(scheduled.seq_id)
            start, end = scheduled.num_computed_tokens, scheduled.num_computed_tokens + len(scheduled.token_ids)
            digest = 0
            for position in range(end):
                digest = extend_digest(digest, known.token_ids[position])
                for group, window in enumerate(self.windows):
                    if window and position <= start - window:
                        continue  # no token of this step sees it
                    cell = self._cell(scheduled.block_table, position, group)
                    wanted = (known.scope, position, digest, group)
                    assert cell == wanted, f"sequence {scheduled.seq_id} needs {wanted}, its slot holds {cell}"
            caught_up = end == len(known.token_ids)
            assert (scheduled.sampling is not None) == caught_up, "draws exactly when caught up"
            task = scheduled.sampling
            if task is None:
                continue
            found: list[tuple[int, float]] = []
            if scheduled.seq_id != undrawable:
                found = self._draw(task, known, digest)
            found += [(NOT_DRAWN, -math.inf)] * (task.num_results - len(found))
            samples += [token for token, _ in found]
            scores += [score for _, score in found]
        return StepResult(samples, scores=scores, scored=[self._score(plan, task) for task in plan.scoring])

    def break_off(self, plan: StepPlan, *, moved: bool = True) -> None:
        """A step that raises half way: copies done, new slots half written, nothing drawn.

        Args:
            moved: else it raised before that: what was to be swapped out is lost all the same.
        """
        if moved:
            self.move_blocks(plan.transfers)
            self.copy_blocks(plan.block_copies)
        else:
            for _, slot in plan.transfers.swap_outs:
                self.slots[slot] = [GARBAGE] * self.block_size
        for scheduled in plan.sequences:
            self._spoil(scheduled)

    def move_blocks(self, transfers: Transfers) -> None:
        """First all that reads blocks, then what fills them, each in any order."""
        filled = [slot for _, slot in transfers.swap_outs]
        assert len(set(filled)) == len(filled), "a slot is filled twice"
        loaded = [block for _, block in transfers.swap_ins]
        assert len(set(loaded)) == len(loaded), "a block is filled twice"
        for block, key in transfers.saves:
            self.disk.setdefault(key, list(self.cells[block]))
            assert self.disk[key] == self.cells[block], "a block is saved under another one's key"
        for block, slot in reversed(transfers.swap_outs):
            self.slots[slot] = list(self.cells[block])
        for slot, block in reversed(transfers.swap_ins):
            self.cells[block] = list(self.slots[slot])

    def copy_blocks(self, copies: tuple[tuple[int, int], ...]) -> None:
        """All copies at once; no order may matter."""
        sources = [source for source, _ in copies]
        destinations = [destination for _, destination in copies]
        assert len(set(destinations)) == len(destinations), "a block is the destination of two copies"
        assert not set(sources) & set(destinations), "a block is both source and destination"
        # Last to first, to see that the order does not matter.
        for source, destination in reversed(copies):
            self.cells[destination] = list(self.cells[source])

    def check_pool(self, kv: KVCacheManager, prompt: tuple[int, ...], scope: str | None) -> None:
        """What the pool's index gives for a prompt is what the cache holds for it."""
        found = kv.lookup(prompt, scope)
        size, num_groups = self.block_size, len(self.windows)
        num_found = len(found) // num_groups * size
        assert len(found) % num_groups == 0 and num_found < len(prompt)
        digest = 0
        for position in range(num_found):
            digest = extend_digest(digest, prompt[position])
            for group, window in enumerate(self.windows):
                if window and position <= num_found - window:
                    continue  # the first token to be computed does not see it
                assert self._cell(found, position, group) == (scope, position, digest, group)

    def check_host(
        self, kv: KVCacheManager, prompt: tuple[int, ...], scope: str | None, unfilled: Collection[int] = ()
    ) -> None:
        """What is found in host memory for a prompt's blocks, each for itself, is what a slot holds for it, or is to
        hold when the step in flight is over (unfilled)."""
        if kv.offload is None or kv.index is None:
            return
        table = kv.new_table(prompt, scope)
        kv.cached_prefix(table)
        digest = 0
        for place in range(len(table.digests)):
            positions = range(place * self.block_size, (place + 1) * self.block_size)
            digests = [digest := extend_digest(digest, prompt[position]) for position in positions]
            for group, suffix in enumerate(group_suffixes(len(self.windows))):
                slot = kv.offload.host.find(table.key(place, suffix))
                wanted = [(scope, *pair, group) for pair in zip(positions, digests, strict=True)]
                assert slot is None or slot in unfilled or self.slots[slot] == wanted

    def _write(self, plan: StepPlan, ended: Collection[int]) -> None:
        written: dict[tuple[int, int], int] = {}
        for scheduled in plan.sequences:
            if scheduled.seq_id in ended:
                self._spoil(scheduled)
        for scheduled in plan.sequences:
            if scheduled.seq_id in ended:
                continue
            known = self.known(scheduled.seq_id)
            start = scheduled.num_computed_tokens
            end = start + len(scheduled.token_ids)
            assert scheduled.token_ids, "a scheduled sequence computes at least one token"
            assert tuple(scheduled.token_ids) == known.token_ids[start:end], "wrong tokens"
            length = -(-end // self.block_size) * len(self.windows)
            assert len(scheduled.block_table) == length, "block table of a wrong length"
            digest = 0
            for token in known.token_ids[:start]:
                digest = extend_digest(digest, token)
            for position in range(start, end):
                digest = extend_digest(digest, known.token_ids[position])
                for group in range(len(self.windows)):
                    slot = (self._block(scheduled.block_table, position, group), position % self.block_size)
                    assert slot not in written, f"{slot} is written by {written[slot]} and {scheduled.seq_id}"
                    written[slot] = scheduled.seq_id
                    self._set(scheduled.block_table, position, group, (known.scope, position, digest, group))

    def _spoil(self, scheduled: ScheduledSequence) -> None:
        for i in range(len(scheduled.token_ids)):
            for group in range(len(self.windows)):
                self._set(scheduled.block_table, scheduled.num_computed_tokens + i, group, GARBAGE)

    def _score(self, plan: StepPlan, task: ScoringTask) -> list[SampledToken]:
        """By the K/V that this step has written."""
        line = plan.sequences[task.line]
        first = line.num_computed_tokens + task.offset
        assert task.offset >= 0 and task.offset + len(task.token_ids) <= len(line.token_ids)
        cells = [self._cell(line.block_table, first + i, 0) for i in range(len(task.token_ids))]
        return [
            SampledToken(token, logprob(token, digest))
            for token, (_, _, digest, _) in zip(task.token_ids, cells, strict=True)
        ]

    def _draw(self, task: SamplingTask, known: Known, digest: int) -> list[tuple[int, float]]:
        num_prompt = len(task.prompt_token_ids)
        assert (*task.prompt_token_ids, *task.output_token_ids) == known.token_ids
        assert task.position == len(known.token_ids)
        stops = (EOS, *(task.params.stop_token_ids or ()))
        suppress = task.position - num_prompt < task.params.min_tokens
        assert task.suppressed_token_ids == (tuple(sorted(set(stops))) if suppress else ())
        if task.num_candidates:
            left = [token for token in range(VOCAB_SIZE) if token not in task.suppressed_token_ids]
            worth = sorted(((logprob(token, digest), token) for token in left), key=lambda pair: (-pair[0], pair[1]))
            return [(token, value) for value, token in worth[: task.num_candidates]]
        return [(draw(seed, task.position, digest, task.suppressed_token_ids), 0.0) for seed in task.seeds]

    def _block(self, block_table: object, position: int, group: int) -> int:
        assert isinstance(block_table, list)
        block = block_table[position // self.block_size * len(self.windows) + group]
        assert isinstance(block, int) and block >= 0, f"position {position} of group {group} has no block"
        return block

    def _cell(self, block_table: object, position: int, group: int) -> Cell:
        return self.cells[self._block(block_table, position, group)][position % self.block_size]

    def _set(self, block_table: object, position: int, group: int, cell: Cell) -> None:
        self.cells[self._block(block_table, position, group)][position % self.block_size] = cell


def known_of(table: Mapping[int, Known]) -> Callable[[int], Known]:
    """A lookup into a plain mapping, for tests with few sequences."""
    return lambda seq_id: table[seq_id]
