"""Steps between plan and commit: what is kept of them, and what becomes of sequences that have ended since."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass, field, replace

from paged_backend.kv.manager import KVCacheManager
from paged_backend.scheduler.plan import NOT_DRAWN, NOT_YET_DRAWN, StepPlan, StepResult
from paged_backend.scheduler.roster import Roster
from paged_backend.scheduler.sequence import Sequence


@dataclass(slots=True, eq=False)
class StepInFlight:
    """A step that an executor may be computing.

    Attributes:
        plan: what it was given.
        sequences: one for each line of the plan.
        changing: those of them of which the waiting queue must be told (`follow`) when the step before is over; empty
            where it was told at once.
        leaving: those that end with this step's token, whatever it is: the next step, planned ahead, leaves them out.
        has_ended: whether sequences may have ended since the plan: what it computes of them is for nobody.
    """

    plan: StepPlan
    sequences: list[Sequence]
    changing: list[Sequence] = field(default_factory=list)
    leaving: set[Sequence] = field(default_factory=set)
    has_ended: bool = False

    def strike(self, result: StepResult, is_followed: bool) -> tuple[StepResult, int]:
        """What is left of a result without the sequences that have ended, and how many tokens were computed for those
        that have not.

        Args:
            is_followed: whether the next step is planned already, so that lines of sequences in it are the next one's.
        """
        num_tokens = self.plan.num_tokens
        if not self.has_ended:
            return result, num_tokens
        kept: list[int] = []
        place = 0
        for sequence, num_results in self._num_results(is_followed):
            if sequence.finished:
                num_tokens -= len(sequence.line.token_ids)
            else:
                kept += range(place, place + num_results)
            place += num_results
        assert place == len(result.token_ids), "the result is another plan's"
        new_places = {old: new for new, old in enumerate(kept)}
        return (
            replace(
                result,
                token_ids=[result.token_ids[place] for place in kept],
                described={new_places[old]: token for old, token in result.described.items() if old in new_places},
                scores=[result.scores[place] for place in kept] if result.scores else (),
                faults={new_places[old]: fault for old, fault in result.faults.items() if old in new_places},
            ),
            num_tokens,
        )

    def _num_results(self, is_followed: bool) -> Iterator[tuple[Sequence, int]]:
        for sequence in self.sequences:
            if is_followed and not sequence.finished and sequence not in self.leaving:
                yield sequence, int(sequence.token_ids[-1] == NOT_YET_DRAWN)
            else:
                task = sequence.line.sampling
                yield sequence, 0 if task is None else task.num_results


def commit_followed(
    step: StepInFlight,
    in_flight: list[Sequence],
    following: StepInFlight,
    token_ids: TokenIds[int],
    roster: Roster,
    kv: KVCacheManager,
) -> list[Sequence]:
    """Books a step that is over while the next one is in flight; see `Scheduler.commit`.

    Lines are the next step's: a token is drawn by who expects one, or leaves.

    Args:
        in_flight: the step's sequences that have not ended.
    """
    owners: list[Sequence] = []
    ended = False
    for sequence in in_flight:
        known, line, table = sequence.token_ids, sequence.line, sequence.table
        leaves = bool(step.leaving) and sequence in step.leaving
        end = line.num_computed_tokens + len(line.token_ids) if leaves else line.num_computed_tokens
        if not leaves and known[-1] != NOT_YET_DRAWN:
            kv.commit(table, end)
            continue
        token_id = token_ids[len(owners)]
        owners.append(sequence)
        is_over = False
        if token_id == NOT_DRAWN:
            sequence.forget_expected()
        else:
            is_over = sequence.append(token_id) if leaves else sequence.learn(token_id)
        if end < (table.num_indexed + 1) * kv.block_size:
            table.num_computed = end  # no block is filled
        else:
            kv.commit(table, end)
        if is_over:
            roster.end(sequence)
            following.has_ended = ended = True
    assert len(owners) == len(token_ids), "the result is another plan's"
    if ended:
        roster.sweep()
    roster.waiting.follow([sequence for sequence in following.changing if not sequence.finished])
    return owners
