"""What is told of tokens beside their ids, from a batch to the results."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import accumulate

import torch
from torch import Tensor

from paged_backend.kernels.triton.sampling.device_samples import Results
from paged_backend.kernels.triton.sampling.likely_lists import LikelyLists, Wanted
from paged_backend.kernels.triton.sampling.passes import Passes, Scratch
from paged_backend.kernels.triton.sampling.rows import BatchRows
from paged_backend.kernels.triton.sampling.tables import Filters, JobTable
from paged_backend.kernels.triton.sampling.upload import Upload


class Description:
    """The rows of a batch whose log-probabilities matter: that are described, or give their most likely tokens.

    They are looked at as the model made them, at temperature 1, whatever else becomes of them.
    """

    def __init__(self, rows: BatchRows, upload: Upload) -> None:
        """Leaves its tables with the upload."""
        num_logprobs = rows.num_logprobs or {}
        self._numbers = {row: number for number, row in enumerate(sorted({*rows.best, *num_logprobs}))}
        listed = {row: count for row, count in num_logprobs.items() if count}
        firsts = accumulate(listed.values(), initial=0)
        self._lists = LikelyLists(
            (
                Wanted(self._numbers[row], row, -1, count, first, self._numbers[row])
                for (row, count), first in zip(listed.items(), firsts, strict=False)
            ),
            upload,
        )
        self._num_lists = len(listed)
        places = [
            (place, self._numbers[row])
            for row in num_logprobs
            for place in range(rows.starts[row], rows.starts[row + 1])
        ]
        self._places = upload.add(*(array("q", line) for line in zip(*places, strict=True)))
        num_jobs = len(self._numbers)
        ones, zeros = array("d", (1.0,)) * num_jobs, bytes(8 * num_jobs)
        jobs = JobTable(
            temperatures=ones,
            top_p=ones,
            min_p=array("d", zeros),
            top_k=array("q", [listed.get(row, 0) for row in self._numbers]),
            positions=array("q", zeros),
            rows=array("q", self._numbers),
            copies=array("q", (-1,)) * num_jobs,
            counted=array("q", (-1,)) * num_jobs,
            filters=Filters(bool(listed), False),
        )
        self._jobs = upload.add(*jobs.lines())
        self._describes = rows.num_logprobs is not None
        self._passes: Passes | None = None

    def norms_of(self, rows: Iterable[int]) -> dict[int, int]:
        """By row, the number of its norm."""
        return {row: self._numbers[row] for row in rows}

    def begin(self, logits: Tensor, tables: Tensor) -> Tensor:
        """Looks at the logits; returns their norms."""
        num_jobs = len(self._numbers)
        if num_jobs == 0:
            return torch.empty(0, dtype=torch.float64, device=logits.device)
        self._tables = tables
        scratch = Scratch.make(num_jobs, logits.shape[1], logits.device)
        self._passes = Passes(logits, tables[self._jobs].view(torch.int64).view(-1, num_jobs), scratch)
        self._passes.look()
        self._norms = self._passes.norms()
        return self._norms

    def finish(self, results: Results) -> None:
        """Writes what is told of the results' tokens."""
        if not self._describes:
            return
        results.logprobs.fill_(torch.nan)
        results.ranks.zero_()
        if self._passes is None:
            return
        places = self._tables[self._places].view(torch.int64)
        if places.numel():
            self._passes.describe(places.view(2, -1), self._norms, results.token_ids, results.logprobs, results.ranks)
        if self._num_lists:
            self._passes.search(by_mass=False)
            self._lists.write(
                self._passes, self._tables, self._norms, results.top_ids, results.top_logprobs, best=False
            )
