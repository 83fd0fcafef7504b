"""What `Kernels.sample` takes and gives: one step's parameters as plain columns, and the tokens drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.tensors import check_tensor, describe
from paged_backend.kernels.token_counts import TokenCounts


class LogitChanges(NamedTuple):
    """What is done to one row's logits before a token is drawn, in this order.

    Attributes:
        allowed_token_ids: all others become -inf; None allows all.
        suppressed_token_ids: these become -inf.
        logit_bias: added to the logits of its tokens.
        repetition_penalty: divides positive and multiplies other logits of tokens in prompt or output; above 0.
        presence_penalty: subtracted once from tokens in the output.
        frequency_penalty: subtracted once for each time that a token is in the output.
        prompt_token_ids, output_token_ids: what the penalties look at; lent for the call.
        token_mask: a row of the batch's token_masks: tokens whose bit is 0 become -inf, before all else; -1 for none.
    """

    allowed_token_ids: Sequence[int] | None = None
    suppressed_token_ids: Sequence[int] = ()
    logit_bias: Mapping[int, float] = {}
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    prompt_token_ids: Sequence[int] = ()
    output_token_ids: Sequence[int] = ()
    token_mask: int = -1

    @property
    def penalises(self) -> bool:
        """Whether it has any penalty."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(slots=True, kw_only=True)
class SamplingBatch:
    """Parameters of R rows of logits. Columns are lists or tuples of Python numbers, one for each row.

    A row draws one token for each of its seeds. With temperature 0 that is the largest logit, the first of equals.
    Otherwise logits are divided by the temperature; min_p, top_k and top_p, in this order, rule out tokens (those
    as likely as the last one left stay in with it; top_p is a share of what min_p and top_k left); and the
    cumulative distribution of the rest, in the order of token ids, is inverted at `uniform(seed, position)`.

    A row with num_best above 0 draws nothing and gives its most likely tokens instead, as beam search wants them: its
    logits become log-probabilities, `changes` change those (a repetition penalty multiplies what is below 0, so it is
    not the same), and the largest are taken, the largest first, of equals the one with the smaller id.

    Attributes:
        seeds: for each row, integers of 64 bits, signed or not; at least one where the row draws.
        temperatures: 0 or more, finite.
        positions: index in its sequence of the token to be drawn, 0 or more. Like the next three, it may be
            empty where all temperatures are 0.
        top_k: tokens left at most, of any size; 0 or -1 for all.
        top_p: in (0, 1].
        min_p: in [0, 1].
        num_logprobs: how many of the most likely tokens to describe beside the drawn one, of any size (no more than
            there are); -1 for no description at all. Empty where no row asks for any.
        num_best: how many of its most likely tokens a row gives, the vocabulary's size at most; 0 where it draws. Empty
            where every row draws.
        given: for each row, tokens that are its result, to be described; nothing is drawn, and nothing changed. None
            where the row draws, or num_best is above 0. Empty where no row has any.
        changes: by row, for those rows whose logits are changed first.
        token_masks: int32 [M, W], contiguous, on the CPU, W at least ceil(V / 32): token t has bit t % 32 of word
            t / 32, the lowest first. None where no row names one.
        counted: for each row, the row of token_counts by which it is penalised, and in which the token that it draws is
            then counted; -1 for none. Such a row draws one token, and its changes, if it has any, hold no penalties.
            No two rows have the same. Empty where no row has any.
        token_counts: None where no row is counted.
    """

    seeds: Sequence[Sequence[int]]
    temperatures: Sequence[float]
    positions: Sequence[int] = ()
    top_k: Sequence[int] = ()
    top_p: Sequence[float] = ()
    min_p: Sequence[float] = ()
    num_logprobs: Sequence[int] = ()
    num_best: Sequence[int] = ()
    given: Sequence[Sequence[int]] = ()
    changes: Mapping[int, LogitChanges] = field(default_factory=dict)
    token_masks: Tensor | None = None
    counted: Sequence[int] = ()
    token_counts: TokenCounts | None = None


@dataclass(slots=True)
class SampledBatch:
    """What was drawn: N tokens, row after row: one for each seed of a row, num_best of them, or those that are given.

    Attributes:
        token_ids: [N]; -1 for all of a row whose logits are not numbers (NaN, +inf or nothing above -inf), or whose
            parameters leave no token; and where they leave fewer than num_best, for those that are missing.
        logprobs: [N], of the logits as they came, before any change or filter; empty where no row asks for
            them, NaN in rows that do not.
        ranks: [N], 1 + the tokens that are more likely; empty like logprobs, 0 in rows that do not ask.
        top: by row, (token id, logprob) of the num_logprobs most likely tokens, the most likely first, of equals
            the one with the smaller id.
        scores: [N], the changed log-probability by which a token was taken, -inf where there is none; empty where every
            row draws, without meaning in rows that do.
    """

    token_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    top: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)


class LaunchedSamples(Protocol):
    """Tokens that are drawn, or will have been by the time that the device gets there."""

    @property
    def token_ids(self) -> Tensor:
        """int64 [N], where the logits were, in the order of `SampledBatch.token_ids`: for what is ordered after it."""
        ...

    def read(self) -> SampledBatch:
        """All of it, once it is there: waits for the device, if need be."""
        ...


@dataclass(frozen=True, slots=True)
class ReadSamples:
    """`LaunchedSamples` of an implementation that draws at once, on the CPU."""

    sampled: SampledBatch

    @property
    def token_ids(self) -> Tensor:
        """See `LaunchedSamples`."""
        return torch.tensor(self.sampled.token_ids, dtype=torch.int64)

    def read(self) -> SampledBatch:
        """See `LaunchedSamples`."""
        return self.sampled


def check_logits(logits: Tensor) -> None:
    """Raises KernelError for logits that `Kernels.sample` does not take."""
    check_tensor("logits", logits)
    if logits.dtype != torch.float32 or logits.dim() != 2 or logits.shape[1] == 0:
        shape = list(logits.shape)
        raise KernelError(f"logits must be float32 [R, V], got {str(logits.dtype).removeprefix('torch.')} {shape}.")
    if logits.requires_grad:
        raise KernelError("logits must not require gradients.")


def check_masks(masks: Tensor | None, vocab_size: int) -> None:
    """Raises KernelError for token_masks that `Kernels.sample` does not take."""
    if masks is None:
        return
    check_tensor("token_masks", masks)
    if masks.dtype != torch.int32 or masks.dim() != 2 or not masks.is_contiguous() or masks.device.type != "cpu":
        raise KernelError(f"token_masks must be contiguous int32 [M, W] on the CPU, got {describe(masks)}.")
    if masks.shape[1] * 32 < vocab_size:
        raise KernelError(f"token_masks must have a bit for each of {vocab_size} tokens, got {masks.shape[1]} words.")


def check_sampling(logits: Tensor, batch: SamplingBatch) -> None:
    """Raises KernelError, naming the argument, for what `Kernels.sample` does not take."""
    check_logits(logits)
    num_rows, vocab_size = logits.shape
    for name in _COLUMNS:
        _require(name, "be a list or a tuple", isinstance(getattr(batch, name), (list, tuple)))
    for name in ("temperatures", "top_p", "min_p"):
        _require(name, "hold numbers", all(isinstance(number, (int, float)) for number in getattr(batch, name)))
    for name in ("top_k", "num_logprobs", "num_best"):
        _require(name, "hold integers", all(isinstance(number, int) for number in getattr(batch, name)))
    _require("positions", "hold integers of 64 bits", all(map(_is_word, batch.positions)))
    draws = any(batch.temperatures)
    for name in _COLUMNS:
        length = len(getattr(batch, name))
        may_be_empty = name in ("num_logprobs", "num_best", "given") or (
            not draws and name not in ("seeds", "temperatures")
        )
        if length != num_rows and (length or not may_be_empty):
            raise KernelError(f"{name} must have {num_rows} entries, one for each row, got {length}.")
    _require("seeds", "hold lists or tuples", all(isinstance(seeds, (list, tuple)) for seeds in batch.seeds))
    _require("num_best", "be 0 to the vocabulary's size", all(0 <= count <= vocab_size for count in batch.num_best))
    takes_best = batch.num_best or (0,) * num_rows
    given = batch.given or ((),) * num_rows
    _require("given", "hold lists or tuples", all(isinstance(tokens, (list, tuple)) for tokens in given))
    held = f"hold token ids in 0..{vocab_size - 1}"
    _require("given", held, all(_is_token_id(token, vocab_size) for tokens in given for token in tokens))
    either = all(not (tokens and count) for tokens, count in zip(given, takes_best, strict=True))
    _require("given", "be empty where num_best is above 0", either)
    draws_nothing = [tokens or count for tokens, count in zip(given, takes_best, strict=True)]
    has_seeds = [bool(seeds) or bool(other) for seeds, other in zip(batch.seeds, draws_nothing, strict=True)]
    _require("seeds", "hold at least one for each row that draws", all(has_seeds))
    _require("seeds", "hold integers", all(isinstance(seed, int) for seeds in batch.seeds for seed in seeds))
    _require("temperatures", "be 0 or more, and finite", all(0.0 <= t < math.inf for t in batch.temperatures))
    _require("positions", "be 0 or more", all(position >= 0 for position in batch.positions))
    _require("top_k", "be 0 or -1 (all) or more", all(k >= -1 for k in batch.top_k))
    _require("top_p", "be in (0, 1]", all(0.0 < p <= 1.0 for p in batch.top_p))
    _require("min_p", "be in [0, 1]", all(0.0 <= p <= 1.0 for p in batch.min_p))
    _require("num_logprobs", "be -1 (none) or more", all(count >= -1 for count in batch.num_logprobs))
    check_masks(batch.token_masks, vocab_size)
    num_masks = 0 if batch.token_masks is None else len(batch.token_masks)
    _require("changes", "be a dict", isinstance(batch.changes, Mapping))
    for row, changes in batch.changes.items():
        _require("changes", "be of rows of logits", isinstance(row, int) and 0 <= row < num_rows)
        _require("changes", "hold LogitChanges", isinstance(changes, LogitChanges))
        mask = changes.token_mask
        _require("token_mask", "be -1 or a row of token_masks", isinstance(mask, int) and -1 <= mask < num_masks)
        _check_changes(changes, vocab_size)
    _check_counted(logits, batch)


def _check_changes(changes: LogitChanges, vocab_size: int) -> None:
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        _require(name, "be a finite number", _is_finite(getattr(changes, name)))
    _require("repetition_penalty", "be above 0", changes.repetition_penalty > 0.0)
    _require("logit_bias", "be a dict", isinstance(changes.logit_bias, Mapping))
    _require("logit_bias", "hold finite numbers", all(map(_is_finite, changes.logit_bias.values())))
    for name in _TOKEN_SETS:
        tokens = getattr(changes, name)
        if tokens is None and name == "allowed_token_ids":
            continue
        _require(name, "be a list or a tuple", isinstance(tokens, (list, tuple, Mapping)))
        held = f"hold token ids in 0..{vocab_size - 1}"
        _require(name, held, all(_is_token_id(token, vocab_size) for token in tokens))


def _check_counted(logits: Tensor, batch: SamplingBatch) -> None:
    counts, num_rows = batch.token_counts, logits.shape[0]
    _require("counted", "be a list or a tuple", isinstance(batch.counted, (list, tuple)))
    if not batch.counted:
        return
    _require("token_counts", "be given for rows that are counted", isinstance(counts, TokenCounts))
    assert counts is not None
    num_counts, vocab_size = len(counts.counts), logits.shape[1]
    if counts.counts.shape[1] != vocab_size or counts.counts.device != logits.device:
        wanted = f"of {vocab_size} tokens on {logits.device}"
        raise KernelError(f"token_counts must be {wanted}, got {describe(counts.counts)}.")
    _require("counted", f"have {num_rows} entries, one for each row", len(batch.counted) == num_rows)
    _require("counted", "hold integers", all(isinstance(place, int) for place in batch.counted))
    _require("counted", "be -1 or a row of token_counts", all(-1 <= place < num_counts for place in batch.counted))
    rows = [row for row, place in enumerate(batch.counted) if place >= 0]
    _require("counted", "hold no row of token_counts twice", len({batch.counted[row] for row in rows}) == len(rows))
    for column, takes_one in (("seeds", True), ("num_best", False), ("given", False)):
        entries = getattr(batch, column)
        is_right = all(len(entries[row]) == 1 if takes_one else not entries[row] for row in rows) if entries else True
        _require("counted", "be of rows that draw one token", is_right)
    penalises = any(batch.changes[row].penalises for row in rows if row in batch.changes)
    _require("changes", "hold no penalties of rows that are counted", not penalises)


_COLUMNS = ("seeds", "temperatures", "positions", "top_k", "top_p", "min_p", "num_logprobs", "num_best", "given")
_TOKEN_SETS = ("allowed_token_ids", "suppressed_token_ids", "logit_bias", "prompt_token_ids", "output_token_ids")


def _is_finite(value: object) -> bool:
    """Whether it is a finite number of float32."""
    return isinstance(value, (int, float)) and abs(value) <= torch.finfo(torch.float32).max


def _is_token_id(value: object, vocab_size: int) -> bool:
    return isinstance(value, int) and 0 <= value < vocab_size


def _is_word(value: object) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _require(name: str, what: str, holds: bool) -> None:
    if not holds:
        raise KernelError(f"{name} must {what}.")
