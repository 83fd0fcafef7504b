"""Changes of logits as the kernels read them: a table of int32, and all lists of tokens end to end."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from paged_backend.kernels.sampling_batch import LogitChanges, SamplingBatch
from paged_backend.kernels.triton.sampling.tables import refuse

NUM_CHANGE_LINES = 15
"""Of the table: row, mask, whether only some tokens are allowed, number of the norm that is subtracted, number of the
counts, the bits of three penalties, where each of the five lists begins and the last one ends, where biases begin."""


@dataclass(slots=True)
class ChangeTable:
    """The rows of a batch that are changed, in the order of their copies.

    Attributes:
        rows: which they are.
        num_counted: rows whose tokens are counted for penalties.
    """

    rows: list[int] = field(default_factory=list)
    num_counted: int = 0
    _lines: list[array[int]] = field(default_factory=lambda: [array("i") for _ in range(NUM_CHANGE_LINES)])
    _token_ids: array[int] = field(default_factory=lambda: array("i"))
    _biases: array[float] = field(default_factory=lambda: array("f"))

    def lines(self) -> tuple[array[Any], ...]:
        """The table, and then the lists, of tokens and of biases."""
        biases = array("i", [len(self._token_ids) + begin for begin in self._lines[-1]])
        return (*self._lines[:-1], biases, self._token_ids, self._biases)

    def add(self, row: int, changes: LogitChanges, norm: int) -> bool:
        """Takes a row in; whether its numbers are as they must be, those of tokens apart.

        Args:
            norm: number of what is subtracted from its logits first; -1 for nothing.
        """
        allowed, suppressed, bias, repetition, presence, frequency, prompt, output, mask = changes
        repeats = repetition != 1.0
        counts = changes.penalises
        penalties = array("f", (repetition, frequency, presence))
        begin_biases = len(self._biases)
        starts = [len(self._token_ids)]
        for tokens in (allowed or (), suppressed, bias.keys(), prompt if repeats else (), output if counts else ()):
            self._token_ids.extend(tokens)
            starts.append(len(self._token_ids))
        self._biases.extend(bias.values())
        place = -1
        if counts:
            place, self.num_counted = self.num_counted, self.num_counted + 1
        bits = array("i", penalties.tobytes())
        for line, number in zip(
            self._lines, (row, mask, allowed is not None, norm, place, *bits, *starts, begin_biases), strict=True
        ):
            line.append(number)
        self.rows.append(row)
        return repetition > 0.0 and all(map(math.isfinite, (*penalties, *self._biases[begin_biases:])))

    def has_tokens_of(self, vocab_size: int) -> bool:
        """Whether all token ids are in a vocabulary."""
        if not self._token_ids:
            return True
        least, largest = torch.stack(torch.frombuffer(self._token_ids, dtype=torch.int32).aminmax()).tolist()
        return int(least) >= 0 and int(largest) < vocab_size


def read_changes(logits: Tensor, batch: SamplingBatch, norms: Mapping[int, int], counted: Sequence[int]) -> ChangeTable:
    """What is changed.

    Args:
        counted: for each row, whether its penalties are told of elsewhere: 0 or more, and -1 if not.
        norms: by row, for those whose log-probabilities are changed, the number of what to subtract.

    Raises:
        KernelError: the changes are not what `LogitChanges` says.
    """
    table = ChangeTable()
    num_masks = 0 if batch.token_masks is None else len(batch.token_masks)
    try:
        is_right = all(
            isinstance(changes, LogitChanges)
            and 0 <= row < logits.shape[0]
            and -1 <= changes.token_mask < num_masks
            and not (counted[row] >= 0 and changes.penalises)
            and table.add(row, changes, norms.get(row, -1))
            for row, changes in batch.changes.items()
        )
    except (AttributeError, OverflowError, TypeError, ValueError):
        refuse(logits, batch)
    if not is_right or not table.has_tokens_of(logits.shape[1]):
        refuse(logits, batch)
    return table
