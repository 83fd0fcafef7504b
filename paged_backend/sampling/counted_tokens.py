"""Which sequences' tokens are counted where they are drawn, and what their counts must still be told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paged_backend.kernels.token_counts import TokenCounts
from paged_backend.scheduler.plan import NOT_YET_DRAWN, SamplingTask


@dataclass(frozen=True, slots=True)
class CountUpdate:
    """Tokens that are not in the counts yet.

    Attributes:
        counts: theirs.
        new_rows: int64 [K], rows that become other sequences'.
        penalties: float32 [K, 3], of these.
        prompt, output: see `TokenCounts.add`.
    """

    counts: TokenCounts
    new_rows: Tensor
    penalties: Tensor
    prompt: Tensor
    output: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that the device must have, of int32 and int64."""
        return (self.new_rows, self.penalties.view(torch.int32), self.prompt, self.output)

    def with_tensors(self, tensors: Iterator[Tensor]) -> CountUpdate:
        """The same, with the next ones in the places of `tensors`."""
        new_rows, penalties, prompt, output = (next(tensors) for _ in self.tensors)
        return CountUpdate(self.counts, new_rows, penalties.view(torch.float32), prompt, output)

    def apply(self) -> None:
        """For the device, which has the tensors."""
        self.counts.begin(self.new_rows, self.penalties)
        self.counts.add(self.prompt, self.output)


class CountedTokens:
    """Gives sequences with penalties rows of `TokenCounts`, and knows which of their tokens are counted.

    A sequence has its row while it draws in every step that `rows_for` is asked of: it is counted there what such a
    step draws. Whoever comes, or comes back, begins with what is known of it. Steps that are drawn in another way are
    not noticed here; their tokens are made up for.
    """

    def __init__(self, num_sequences: int, vocab_size: int, device: torch.device) -> None:
        """
        Args:
            num_sequences: that draw in a step, at most.
        """
        self.counts = TokenCounts.make(num_sequences, vocab_size, device)
        self._tasks: list[SamplingTask] = []  # of the latest step, in order
        self._num_counted: list[int] = []  # of each, the known tokens that are counted when that step is over
        self._rows: list[int] = []

    def rows_for(self, tasks: Sequence[SamplingTask]) -> tuple[list[int], CountUpdate | None]:
        """The row of each task of a step that draws one token for each, -1 without penalties; empty if all are. And
        what the counts must be told before the step draws."""
        counted = [task for task in tasks if task.penalises]
        num_known = [len(task.token_ids) for task in counted]
        update = None
        if counted != self._tasks or num_known != self._num_counted:
            update = self._arrange(counted, num_known)
        self._num_counted = [number + 1 for number in num_known]
        if len(counted) == len(tasks) or not counted:
            return self._rows, update
        rows = iter(self._rows)
        return [next(rows) if task.penalises else -1 for task in tasks], update

    def _arrange(self, tasks: list[SamplingTask], num_known: list[int]) -> CountUpdate | None:
        before = {task: place for place, task in enumerate(self._tasks)}
        taken = {self._rows[before[task]] for task in tasks if task in before}
        free = (row for row in range(len(self.counts.counts)) if row not in taken)
        rows: list[int] = []
        new_rows: list[int] = []
        penalties: list[tuple[float, float, float]] = []
        prompts: list[np.ndarray] = [np.zeros(0, np.int64)]
        outputs: list[np.ndarray] = [np.zeros(0, np.int64)]
        vocab_size = self.counts.counts.shape[1]
        for task, known in zip(tasks, num_known, strict=True):
            place = before.get(task)
            if place is None:
                row, first = next(free), len(task.prompt_token_ids)
                params = task.params
                new_rows.append(row)
                penalties.append((params.repetition_penalty, params.frequency_penalty, params.presence_penalty))
                prompts.append(np.array(task.prompt_token_ids, np.int64) + row * vocab_size)
            else:
                row, first = self._rows[place], self._num_counted[place]
            rows.append(row)
            if first < known:
                missing = np.array(task.token_ids[first:known], np.int64)
                assert missing[-1] != NOT_YET_DRAWN, "a token that nobody counts"
                outputs.append(missing + row * vocab_size)
        self._tasks, self._rows = tasks, rows
        if not new_rows and len(outputs) == 1:
            return None
        return CountUpdate(
            self.counts,
            torch.tensor(new_rows, dtype=torch.int64),
            torch.tensor(penalties, dtype=torch.float32).view(-1, 3),
            torch.from_numpy(np.concatenate(prompts)),
            torch.from_numpy(np.concatenate(outputs)),
        )
