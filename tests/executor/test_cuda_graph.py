"""Recorded decode steps, on a stand-in that records: what is replayed is what is computed one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor

from paged_backend.executor import cuda_graph
from paged_backend.executor.batch import BuiltInputs
from paged_backend.executor.cuda_graph import GraphedStep, ScratchBlocks, default_capture_sizes
from paged_backend.executor.device import CpuDevice
from paged_backend.kernels.interface import StepInputs
from paged_backend.scheduler.plan import NOT_YET_DRAWN

BLOCK_SIZE = 4
NUM_BLOCKS = 30
VOCAB_SIZE = 11


class RecordingDevice(CpuDevice):
    """Counts recordings, and replays them on the tensors that were given when they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.num_captured = self.num_replayed = 0

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.num_captured += 1
        replay = super().capture(work)

        def counted() -> Tensor:
            self.num_replayed += 1
            return replay()

        return counted


class ToyModel:
    """Sums up what the cache holds of a sequence, in groups, as attention would: by tables, lengths and slots alone."""

    def __init__(self, num_groups: int, num_blocks: int) -> None:
        self.cache = torch.zeros(num_groups, num_blocks * BLOCK_SIZE)
        self.num_eager = 0

    def __call__(self, inputs: StepInputs) -> Tensor:
        num_groups, num_rows = self.cache.shape[0], inputs.token_ids.shape[0]
        slots = inputs.slot_mapping.view(num_groups, num_rows)
        tables = inputs.block_tables.view(num_groups, num_rows, -1).long()
        total = torch.zeros(num_rows)
        for group, cache in enumerate(self.cache):
            is_recording = not inputs.token_ids.any()
            assert len(set(slots[group].tolist())) == num_rows or is_recording, "two rows write to one slot"
            cache[slots[group]] = inputs.token_ids.float() + 100 * (1 + group)
            places = tables[group].repeat_interleave(BLOCK_SIZE, 1) * BLOCK_SIZE
            places += torch.arange(places.shape[1]) % BLOCK_SIZE
            seen = torch.arange(places.shape[1]) < inputs.context_lens[:, None]
            total += torch.where(seen, cache[places.clamp(0, cache.shape[0] - 1)], 0.0).sum(1)
        return total[:, None] * torch.arange(1, VOCAB_SIZE + 1) + inputs.positions[:, None]


def random_decode(rng: Random, num_rows: int, num_groups: int, width: int) -> StepInputs:
    blocks = [rng.sample(range(NUM_BLOCKS), NUM_BLOCKS) for _ in range(num_groups)]
    lengths = [rng.randint(1, 2 * BLOCK_SIZE) for _ in range(num_rows)]
    tables = torch.full((num_groups, num_rows, width), -1, dtype=torch.int32)
    slots = torch.zeros(num_groups, num_rows, dtype=torch.int64)
    for group in range(num_groups):
        for row, length in enumerate(lengths):
            mine = blocks[group][2 * row : 2 * row + 2]
            tables[group, row, :2] = torch.tensor(mine)
            slots[group, row] = mine[(length - 1) // BLOCK_SIZE] * BLOCK_SIZE + (length - 1) % BLOCK_SIZE
    return StepInputs(
        token_ids=torch.tensor([rng.randrange(50) for _ in range(num_rows)]),
        positions=torch.tensor(lengths) - 1,
        slot_mapping=slots.view(-1),
        block_tables=tables.view(-1, width),
        query_start=torch.arange(num_rows + 1, dtype=torch.int32),
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        logits_rows=None,
        max_query_len=1,
    )


def built_of(inputs: StepInputs) -> BuiltInputs:
    """A step's inputs whose tokens are all known, as they come from the host."""
    assert inputs.max_query_len is not None
    tokens = inputs.token_ids
    slots = inputs.slot_mapping.view(-1, max(1, len(tokens)))
    columns = torch.cat([torch.stack([tokens, inputs.positions, torch.zeros_like(tokens)]), slots])
    tables, lengths = inputs.block_tables, inputs.context_lens
    return BuiltInputs(columns, tables, inputs.query_start, lengths, inputs.logits_rows, inputs.max_query_len, False)


@pytest.mark.parametrize("num_groups", [1, 3])
def test_replays_are_what_is_computed_one_by_one(num_groups: int) -> None:
    """Batches of all sizes, one after the other, on the same memory: nobody sees the one before, nor the scratch."""
    rng = Random(num_groups)
    sizes = (1, 2, 4, 8, 12)
    scratch = ScratchBlocks.behind(NUM_BLOCKS, sizes, BLOCK_SIZE)
    eager = ToyModel(num_groups, NUM_BLOCKS + scratch.count)
    model = ToyModel(num_groups, NUM_BLOCKS + scratch.count)
    device = RecordingDevice()
    drawn = torch.zeros(12, dtype=torch.int64)
    graphed = GraphedStep(
        model, device, drawn, sizes, num_groups=num_groups, max_blocks=5, scratch=scratch, shows_progress=False
    )
    assert device.num_captured == len(sizes) and not model.cache[:, : NUM_BLOCKS * BLOCK_SIZE].any()
    for step in range(60):
        inputs = random_decode(rng, rng.randint(1, 12), num_groups, rng.choice([2, 5, 8]))
        built, kept_tokens = built_of(inputs), inputs.token_ids.clone()
        if step % 2:  # the tokens are those that the step before has drawn
            sources = torch.randperm(12)[: len(kept_tokens)]
            drawn[sources] = kept_tokens
            built.columns[0], built.columns[2] = NOT_YET_DRAWN, sources
        assert torch.equal(graphed(built), eager(inputs)), step
        kept = slice(0, NUM_BLOCKS * BLOCK_SIZE)
        assert torch.equal(model.cache[:, kept], eager.cache[:, kept]), "a row for nobody wrote to somebody's block"
    assert device.num_replayed == 60


def test_what_is_no_decode_is_computed_as_it_comes() -> None:
    calls: list[int] = []

    def step(inputs: StepInputs) -> Tensor:
        calls.append(inputs.token_ids.shape[0])
        return torch.zeros(inputs.token_ids.shape[0], VOCAB_SIZE)

    device = RecordingDevice()
    scratch = ScratchBlocks.behind(NUM_BLOCKS, (1, 2), BLOCK_SIZE)
    drawn = torch.zeros(3, dtype=torch.int64)
    graphed = GraphedStep(
        step, device, drawn, (1, 2), num_groups=1, max_blocks=5, scratch=scratch, shows_progress=False
    )
    calls.clear()
    rng = Random(0)
    plain = random_decode(rng, 2, 1, 2)
    larger = random_decode(rng, 3, 1, 2)

    chunk = replace(plain, query_start=torch.tensor([0, 2]), context_lens=torch.tensor([2]), max_query_len=2)
    chosen = replace(plain, logits_rows=torch.tensor([1]))
    for inputs in (larger, chunk, chosen):
        graphed(built_of(inputs))
    assert device.num_replayed == 0 and calls == [3, 2, 2]
    graphed(built_of(plain))
    assert device.num_replayed == 1


@pytest.mark.parametrize(
    ("max_num_seqs", "first", "last"),
    [(1, [1], 1), (3, [1, 2, 3], 3), (128, [1, 2, 4, 8, 16], 128), (1000, [1, 2], 512)],
)
def test_sizes(max_num_seqs: int, first: list[int], last: int) -> None:
    sizes = default_capture_sizes(max_num_seqs)
    assert list(sizes[: len(first)]) == first and sizes[-1] == last and list(sizes) == sorted(set(sizes))


def test_every_row_that_fills_up_a_batch_has_a_slot_of_its_own() -> None:
    for sizes in ((1,), (1, 2, 4, 8), default_capture_sizes(512), (7, 100)):
        scratch = ScratchBlocks.behind(10, sizes, BLOCK_SIZE)
        gaps = [size - before - 1 for before, size in zip((0, *sizes), sizes, strict=False)]
        assert scratch.first == 10 and max(gaps) <= scratch.num_slots < max(gaps) + 2 * BLOCK_SIZE


def test_a_bar_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    monkeypatch.setattr(cuda_graph, "tqdm", lambda sizes, **_: seen.append(list(sizes)) or sizes)
    scratch = ScratchBlocks.behind(NUM_BLOCKS, (1, 4), BLOCK_SIZE)
    model = ToyModel(1, NUM_BLOCKS + scratch.count)
    drawn = torch.zeros(4, dtype=torch.int64)
    GraphedStep(model, RecordingDevice(), drawn, (1, 4), num_groups=1, max_blocks=2, scratch=scratch)
    assert seen == [[4, 1]]
