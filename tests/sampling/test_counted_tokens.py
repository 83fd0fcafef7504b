"""Rows of counts go to sequences that draw, and hold their tokens whenever a step draws by them."""

from __future__ import annotations

from random import Random

import pytest
import torch

from paged_backend.kernels.token_counts import IN_PROMPT
from paged_backend.sampling.counted_tokens import CountedTokens
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import NOT_YET_DRAWN, SamplingTask

VOCAB_SIZE = 12
NUM_SEQUENCES = 4
CPU = torch.device("cpu")
PLAIN = SamplingParams()
PENALISED = SamplingParams(repetition_penalty=1.5, frequency_penalty=0.25, presence_penalty=-0.5)


def new_task(prompt: list[int], params: SamplingParams = PENALISED) -> SamplingTask:
    return SamplingTask(params, (0,), tuple(prompt), list(prompt))


def true_counts(task: SamplingTask) -> torch.Tensor:
    counts = torch.zeros(VOCAB_SIZE, dtype=torch.int32)
    counts[list(task.prompt_token_ids)] = IN_PROMPT
    for token in task.output_token_ids:
        counts[token] += 1
    return counts


class Life:
    """Steps one behind the other: what one draws is known to the sequences after the next is prepared."""

    def __init__(self) -> None:
        self.counted = CountedTokens(NUM_SEQUENCES, VOCAB_SIZE, CPU)
        self.unread: list[tuple[SamplingTask, int]] = []

    def step(self, tasks: list[SamplingTask], draw: Random) -> None:
        rows, update = self.counted.rows_for(tasks)
        self.read()
        if update is not None:
            update.apply()
        for task, row in zip(tasks, rows or [-1] * len(tasks), strict=True):
            assert (row >= 0) == task.penalises
            if task.penalises:
                assert torch.equal(self.counted.counts.counts[row], true_counts(task))
                assert self.counted.counts.penalties[row].tolist() == [1.5, 0.25, -0.5]
            token = draw.randrange(VOCAB_SIZE)
            self.counted.counts.counts[row, token] += task.penalises
            task.token_ids.append(NOT_YET_DRAWN)  # type: ignore[attr-defined]
            self.unread.append((task, token))
        assert len({row for row in rows if row >= 0}) == sum(task.penalises for task in tasks)

    def read(self) -> None:
        for task, token in self.unread:
            task.token_ids[-1] = token  # type: ignore[index]
        self.unread.clear()


@pytest.mark.parametrize("seed", range(20))
def test_random_lives(seed: int) -> None:
    draw = Random(seed)
    life = Life()
    away: list[SamplingTask] = []
    running: list[SamplingTask] = []
    for _ in range(60):
        event = draw.choice(("come", "come", "leave", "return", "end", "host", "nothing", "nothing", "shuffle"))
        if event == "come" and len(running) < NUM_SEQUENCES:
            prompt = draw.choices(range(VOCAB_SIZE), k=draw.randint(1, 9))
            running.append(new_task(prompt, draw.choice((PENALISED, PENALISED, PLAIN))))
        elif event in ("leave", "end") and running:
            if event == "leave":
                life.read()  # whoever leaves is known
            gone = running.pop(draw.randrange(len(running)))
            away += [gone] if event == "leave" else []
        elif event == "return" and away and len(running) < NUM_SEQUENCES:
            running.append(away.pop(draw.randrange(len(away))))
        elif event == "shuffle":
            draw.shuffle(running)
        elif event == "host":  # a step that is drawn in another way
            life.read()
            for task in running:
                task.token_ids.append(draw.randrange(VOCAB_SIZE))  # type: ignore[attr-defined]
            continue
        life.step(list(running), draw)


def test_a_step_like_the_one_before_tells_nothing() -> None:
    life, draw = Life(), Random(0)
    tasks = [new_task([1, 2]), new_task([3], PLAIN), new_task([3, 4])]
    assert life.counted.rows_for(tasks[1:2]) == ([], None)
    life.step(tasks, draw)
    for _ in range(3):
        life.read()
        rows, update = life.counted.rows_for(tasks)
        assert rows == [0, -1, 1] and update is None
        for task in tasks:
            task.token_ids.append(NOT_YET_DRAWN)  # type: ignore[attr-defined]
            life.unread.append((task, 5))
