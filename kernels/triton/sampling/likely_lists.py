"""Lists of the most likely tokens: ours for short ones, torch's stable sort for long ones."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from paged_backend.kernels.triton.sampling.likely import COUNTS
from paged_backend.kernels.triton.sampling.passes import Passes
from paged_backend.kernels.triton.sampling.upload import Upload


class Wanted(NamedTuple):
    """A list of one job.

    Attributes:
        job: its number, with the row of logits and the changed copy (or -1) that it looks at.
        num_tokens: at least one.
        first: where they begin among all lists.
        norm: number of what is subtracted from logits, to be log-probabilities.
    """

    job: int
    row: int
    copy: int
    num_tokens: int
    first: int
    norm: int


class LikelyLists:
    """Some jobs' lists."""

    def __init__(self, wanted: Iterable[Wanted], upload: Upload) -> None:
        """Leaves the table of the short ones with the upload."""
        lists = list(wanted)
        self._short = [each for each in lists if each.num_tokens <= COUNTS[-1]]
        self._long = [each for each in lists if each.num_tokens > COUNTS[-1]]
        columns = [[each.job, each.num_tokens, each.first, each.norm] for each in self._short]
        self._table = upload.add(*(array("q", line) for line in zip(*columns, strict=True)))

    def write(
        self, passes: Passes, tables: Tensor, norms: Tensor, out_tokens: Tensor, out_logprobs: Tensor, *, best: bool
    ) -> None:
        """Writes tokens and their log-probabilities, the most likely first, of equals the one with the smaller id.

        Args:
            passes: over the jobs, whose lowest logits have been searched for.
            tables: what the upload has sent.
            norms, out_tokens, out_logprobs, best: see `Passes.list_likely`.
        """
        if self._short:
            table = tables[self._table].view(torch.int64).view(-1, len(self._short))
            most = max(each.num_tokens for each in self._short)
            passes.list_likely(table, most, norms, out_tokens, out_logprobs, best=best)
        for each in self._long:
            # Sums to 0.0 what is -0.0: the sort must not tell them apart.
            values, token_ids = torch.sort(passes.row(each.row, each.copy) + 0.0, descending=True, stable=True)
            values, token_ids = values[: each.num_tokens], token_ids[: each.num_tokens]
            logprobs = values if best and each.copy >= 0 else (values.double() - norms[each.norm]).float()
            is_there = passes.scratch.peaks[each.job].amax().isfinite()
            if best:
                is_there = is_there & (values > -torch.inf)
            place = slice(each.first, each.first + each.num_tokens)
            out_tokens[place] = torch.where(is_there, token_ids, -1)
            out_logprobs[place] = torch.where(is_there, logprobs, -torch.inf)
