"""What running sequences compute after a step that is still in flight, as far as it is known without its tokens."""

from __future__ import annotations

from dataclasses import dataclass

from paged_backend.kv.manager import KVCacheManager
from paged_backend.scheduler.plan import NOT_YET_DRAWN
from paged_backend.scheduler.sequence import Sequence

_NOT_YET_DRAWN = (NOT_YET_DRAWN,)


@dataclass(slots=True, eq=False)
class NextShares:
    """Who goes on, and with how many tokens.

    Attributes:
        lasting: those that go on, in order.
        changing: those of them whose line must be written anew.
        starts: for each of these, the position of its next token, and how many it computes.
        leaving: those that the step in flight ends, whatever it draws.
        num_tokens: of all that go on.
    """

    lasting: list[Sequence]
    changing: list[Sequence]
    starts: list[tuple[int, int]]
    leaving: set[Sequence]
    num_tokens: int


def next_shares(running: list[Sequence], budget: int, kv: KVCacheManager) -> NextShares | None:
    """What the next step of running sequences would be; None where it cannot be known, or where blocks run out. Changes
    nothing.

    Args:
        running: in order; all of them are in flight, in a step that draws unseen.
        budget: tokens of the step.
    """
    candidates = [sequence for sequence in running if len(sequence.token_ids) >= sequence.quiet_below]
    changing: list[Sequence] = []
    missing: list[tuple[int, int]] = []
    leaving: set[Sequence] = set()
    for sequence in candidates:
        line = sequence.line
        start = line.num_computed_tokens + len(line.token_ids)
        if line.sampling is None:
            if sequence.group is not None:
                return None
            missing.append((start, len(sequence.token_ids) - start))
        elif sequence.ends_with_next:
            leaving.add(sequence)
            continue
        else:
            missing.append((start, 1))
        changing.append(sequence)
    lasting = [sequence for sequence in running if sequence not in leaving] if leaving else running.copy()
    spare = budget - len(lasting)
    starts: list[tuple[int, int]] = []
    num_blocks = 0
    for sequence, (start, num_missing) in zip(changing, missing, strict=True):
        num_new = min(num_missing, 1 + spare)
        spare -= num_new - 1
        num_blocks += kv.missing_to_write(sequence.table, start + num_new)
        starts.append((start, num_new))
    if num_blocks > kv.num_free_blocks:
        return None
    return NextShares(lasting, changing, starts, leaving, budget - spare)


def start_shares(shares: NextShares, kv: KVCacheManager) -> None:
    """Writes the sequences' lines, and takes their blocks."""
    changing = set(shares.changing)
    for sequence in shares.lasting:
        if sequence not in changing:
            known, line = sequence.token_ids, sequence.line
            line.num_computed_tokens = len(known)
            line.token_ids = _NOT_YET_DRAWN
            known.append(NOT_YET_DRAWN)
    for sequence, (start, num_new) in zip(shares.changing, shares.starts, strict=True):
        if sequence.line.sampling is not None:
            sequence.expect()
        fits = kv.allocate(sequence.table, start + num_new)
        assert fits, "planned ahead without room"
        sequence.line.num_computed_tokens = start
        sequence.schedule(num_new)
