"""`Kernels.sample` in Triton: a batch's tables go to the device, kernels are launched, results come back later."""

from __future__ import annotations

from array import array

import torch
import triton
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.sampling_batch import SampledBatch, SamplingBatch, check_logits, check_masks
from paged_backend.kernels.triton.sampling.change_passes import change_rows
from paged_backend.kernels.triton.sampling.change_table import ChangeTable, read_changes
from paged_backend.kernels.triton.sampling.description_passes import Description
from paged_backend.kernels.triton.sampling.device_samples import DeviceSamples, Results, ResultShape, num_words
from paged_backend.kernels.triton.sampling.likely_lists import LikelyLists, Wanted
from paged_backend.kernels.triton.sampling.passes import Passes, Scratch, check_vocab_size
from paged_backend.kernels.triton.sampling.rows import BatchRows, read_rows
from paged_backend.kernels.triton.sampling.upload import Upload


def sample(logits: Tensor, batch: SamplingBatch) -> SampledBatch:
    """See `Kernels.sample`.

    Weights are float32, their sums exact: a token differs from the reference's only where the point falls within about
    1e-6 of the distribution from the border of two tokens, or the share top_p that near to the sum down to a token.
    """
    return launch(logits, batch).read()


def launch(logits: Tensor, batch: SamplingBatch) -> DeviceSamples:
    """See `Kernels.launch_sample`.

    Raises:
        KernelError: the batch is not what `SamplingBatch` says.
    """
    check_device_logits(logits)
    check_masks(batch.token_masks, logits.shape[1])
    rows = read_rows(logits, batch)
    shape = ResultShape(rows.starts[-1], rows.starts, rows.num_logprobs, bool(rows.best))
    words = torch.empty(num_words(shape), dtype=torch.int64, device=logits.device)
    if not len(rows.jobs):
        return DeviceSamples(shape, words)
    upload = Upload()
    description = Description(rows, upload)
    changes = ChangeTable()
    if batch.changes:
        changes = read_changes(logits, batch, description.norms_of(rows.best), rows.jobs.counted)
    for number, row in enumerate(changes.rows):
        rows.jobs.copies[row] = number
    num_copies = rows.jobs.add_copies(len(changes.rows))
    jobs_at, draws_at = upload.add(*rows.jobs.lines()), upload.add(*rows.draws.lines())
    changes_at, given_at = upload.add(*changes.lines()), upload.add(*_given_lines(rows))
    wanted = [
        Wanted(row, row, rows.jobs.copies[row], count, rows.starts[row], description.norms_of(rows.best)[row])
        for row, count in rows.best.items()
    ]
    best = LikelyLists(wanted, upload)
    tables = upload.send(logits.device)

    results = Results(shape, words)
    norms = description.begin(logits, tables)
    changed = torch.empty(num_copies, logits.shape[1], dtype=torch.float32, device=logits.device)
    if changes.rows:
        change_rows(logits, changes, tables[changes_at], batch.token_masks, norms, changed)
    scratch = Scratch.make(len(rows.jobs), logits.shape[1], logits.device)
    jobs = tables[jobs_at].view(torch.int64).view(-1, len(rows.jobs))
    counts = batch.token_counts if batch.counted else None
    passes = Passes(logits, jobs, scratch, changed=changed if num_copies else None, counts=counts)
    if counts is not None:
        passes.penalise(len(changes.rows))
    passes.look()
    passes.narrow(rows.jobs.filters)
    if len(rows.draws):
        draws = tables[draws_at].view(torch.int64).view(-1, len(rows.draws))
        passes.draw(draws, draws.shape[1], results.token_ids)
    if rows.best:
        results.scores.fill_(-torch.inf)
        best.write(passes, tables, norms, results.token_ids, results.scores, best=True)
    if rows.given:
        places, of_rows, token_ids = tables[given_at].view(torch.int64).view(3, -1)
        are_numbers = scratch.peaks.amax(dim=1).isfinite()[of_rows]
        results.token_ids[places] = torch.where(are_numbers, token_ids, -1)
    description.finish(results)
    return DeviceSamples(shape, words)


def check_device_logits(logits: Tensor) -> None:
    """Raises KernelError for logits that the kernels do not take."""
    check_logits(logits)
    check_vocab_size(logits.shape[1])
    if logits.device.type != "cuda" and not (logits.device.type == "cpu" and triton.knobs.runtime.interpret):
        raise KernelError(f"logits must be on an NVIDIA GPU, got {logits.device}.")
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        raise KernelError(f"logits must have stride 1 in a row, got {logits.stride(1)}.")


def _given_lines(rows: BatchRows) -> tuple[array[int], ...]:
    """The places of given tokens, their rows, and the tokens."""
    places, of_rows, token_ids = array("q"), array("q"), array("q")
    for row, tokens in rows.given.items():
        places.extend(range(rows.starts[row], rows.starts[row + 1]))
        of_rows.extend([row] * len(tokens))
        token_ids.extend(tokens)
    return places, of_rows, token_ids
