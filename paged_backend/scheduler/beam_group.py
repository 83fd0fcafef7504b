"""The sequences of one beam search: they live, wait and compute together, and share what blocks they can."""

from __future__ import annotations

from collections.abc import Callable

from paged_backend.kv.manager import KVCacheManager
from paged_backend.outputs import FinishReason
from paged_backend.scheduler.beam_search import Beam, BeamSearch, BeamText, Candidate
from paged_backend.scheduler.plan import NOT_DRAWN, StepResult
from paged_backend.scheduler.sequence import Sequence


class BeamGroup:
    """A beam search and the sequences that compute its beams.

    Before the first step of the search, one sequence stands for all beams. So it is again after a preemption: the
    first beam's waits and computes the tokens that all have in common (its table knows no others), then the others
    fork from it again, and all compute their remaining tokens, of which each has as many.

    Attributes:
        search: the search.
        sequences: one for each running beam, in the search's order; or the one that stands for all.
        failed: whether its result can never be: logits were not numbers, or left too few continuations.

    Args:
        lead: the request's only sequence, new.
        text: searches the beams for stop strings; None without any.
        kv: the block manager.
        fork: makes a running sequence with the blocks of another one, for an index and known tokens.
        end: ends a running sequence; who calls `advance` takes it out of the running ones.
    """

    def __init__(
        self,
        lead: Sequence,
        text: BeamText | None,
        kv: KVCacheManager,
        fork: Callable[[Sequence, int, list[int]], Sequence],
        end: Callable[[Sequence], None],
    ) -> None:
        num_ends = len(lead.telling_ids - {NOT_DRAWN})
        self.search = BeamSearch(lead.params, lead.max_tokens, num_ends, text)
        self.sequences = [lead]
        self.failed = False
        self._num_wanted = lead.params.n
        self._kv = kv
        self._fork = fork
        self._end = end
        lead.task.num_candidates = self.search.num_candidates
        self._count_samples()
        self._reserve()

    @property
    def num_missing(self) -> int:
        """Tokens that each of its sequences has to compute."""
        table = self.sequences[0].table
        return len(table.token_ids) - table.num_computed

    @property
    def best(self) -> list[Beam]:
        """What the search found, the best first, when it is over."""
        return self.search.ended[: self._num_wanted]

    def best_so_far(self, reason: FinishReason, stop_reason: int | str | None) -> list[Beam]:
        """What the search has found when it must end here, the best first; see `BeamSearch.cut_off`."""
        return self.search.cut_off(reason, stop_reason)[: self._num_wanted]

    def advance(self, places: dict[Sequence, int], result: StepResult) -> None:
        """Books a step that its sequences were in.

        Args:
            places: of each sequence's first candidate in the result; empty where the step was to give none.
        """
        if self.num_missing:
            return
        lead = self.sequences[0]
        if len(lead.table.token_ids) < len(lead.token_ids):
            lead.table.token_ids = lead.token_ids
            others = zip(self.search.beams[1:], self._free_indexes({lead.index}), strict=False)
            for beam, index in others:
                sequence = self._fork_for(beam, lead, index)
                sequence.num_booked_tokens = len(sequence.token_ids)  # drawn and charged before the search gave way
                self.sequences.append(sequence)
            self._count_samples()
            return
        self._advance_search(places, result)
        if self.search.over:
            for sequence in self.sequences:
                self._end(sequence)
        elif not self.failed:
            self._follow()
            self._count_samples()

    def fold(self) -> Sequence:
        """Ends all sequences but one, which then stands for all and waits for blocks; returns it.

        It keeps its own tokens, but its table knows only those that all beams share.
        """
        lead, *others = self.sequences
        if others:
            for sequence in others:
                self._end(sequence)
            num_common = _num_common([beam.token_ids for beam in self.search.beams])
            self._kv.free(lead.table)
            lead.table = self._kv.table_like(lead.table, lead.token_ids[: len(lead.prompt_token_ids) + num_common])
            self.sequences = [lead]
            self._count_samples()
        self._reserve()
        return lead

    def check_invariants(self) -> None:
        """Asserts, between steps, that beams, sequences and tables agree. For tests."""
        lead = self.sequences[0]
        assert sum(sequence.num_samples for sequence in self.sequences) == self.search.width
        assert len({sequence.index for sequence in self.sequences}) == len(self.sequences) <= self.search.width
        assert len({self._sizes(sequence) for sequence in self.sequences}) == 1, "beams of different lengths"
        if len(self.sequences) < len(self.search.beams):
            assert len(lead.table.token_ids) < len(lead.token_ids)
        for sequence, beam in zip(self.sequences, self.search.beams, strict=False):
            assert sequence.output_token_ids == beam.token_ids and sequence.group is self

    def _sizes(self, sequence: Sequence) -> tuple[int, int, int]:
        return len(sequence.token_ids), len(sequence.table.token_ids), sequence.table.num_computed

    def _advance_search(self, places: dict[Sequence, int], result: StepResult) -> None:
        candidates: list[Candidate] = []
        for parent, sequence in enumerate(self.sequences):
            score = self.search.beams[parent].score
            first = places[sequence]
            if result.token_ids[first] == NOT_DRAWN:
                self.failed = True
                return
            for place in range(first, first + self.search.num_candidates):
                token_id = result.token_ids[place]
                if token_id == NOT_DRAWN:
                    break
                candidates.append(Candidate(score + result.scores[place], parent, token_id, place))
        parents = self.search.beams
        self.search.advance(candidates, lambda candidate: self._extend(parents, candidate, result))
        self.failed = self.search.over and len(self.best) < self._num_wanted

    def _extend(self, parents: list[Beam], candidate: Candidate, result: StepResult) -> Beam:
        parent = parents[candidate.parent]
        token_id = candidate.token_id
        beam = Beam([*parent.token_ids, token_id], candidate.score, parent=candidate.parent)
        described = result.described.get(candidate.place)
        if described is not None:
            beam.described = [*parent.described, described]
        end: tuple[FinishReason, int | str | None] | None = self.sequences[0].end_by(token_id, len(beam.token_ids))
        if parent.text is not None and (end is None or end[0] == "length"):
            beam.text, stop = parent.text.extended(token_id)
            if stop is not None:
                end = "stop", stop
        if end is not None:
            beam.finish_reason, beam.stop_reason = end
        return beam

    def _follow(self) -> None:
        """Makes the sequences those of the new beams: a parent's for its best one, forks of it for others."""
        beams = self.search.beams
        heirs: dict[int, Beam] = {}
        for beam in beams:
            heirs.setdefault(beam.parent, beam)
        for place, parent in enumerate(self.sequences):
            if place not in heirs:
                self._end(parent)
        free = iter(self._free_indexes({self.sequences[place].index for place in heirs}))
        sequences = []
        for beam in beams:
            sequence = self.sequences[beam.parent]
            if heirs[beam.parent] is not beam:
                sequence = self._fork_for(beam, sequence, next(free))
            sequences.append(sequence)
        for beam in heirs.values():
            _append(self.sequences[beam.parent], beam)
        self.sequences = sequences

    def _free_indexes(self, taken: set[int]) -> list[int]:
        return sorted(set(range(self.search.width)) - taken)

    def _fork_for(self, beam: Beam, parent: Sequence, index: int) -> Sequence:
        child = self._fork(parent, index, [*parent.prompt_token_ids, *beam.token_ids[:-1]])
        _append(child, beam)
        return child

    def _count_samples(self) -> None:
        """Makes its sequences count as all that there may come to be."""
        lead, *others = self.sequences
        lead.num_samples = self.search.width - len(others)
        for sequence in others:
            sequence.num_samples = 1

    def _reserve(self) -> None:
        """Sets what has to be free beside the waiting sequence's own blocks: those that its beams will not share."""
        kv, lead = self._kv, self.sequences[0]
        num_common, most = len(lead.table.token_ids), lead.max_cached_tokens
        wanted = kv.shape.blocks_for_each(min(len(lead.token_ids) + 1, most), num_common, self.search.width)
        lead.num_extra_blocks = max(wanted - kv.blocks_for(min(num_common + 1, most)), 0)


def _append(sequence: Sequence, beam: Beam) -> None:
    ended = sequence.append(beam.token_ids[-1])
    assert not ended, "a beam that goes on"


def _num_common(rows: list[list[int]]) -> int:
    """Length of the longest prefix that all rows have."""
    first, last = min(rows), max(rows)
    return next((place for place, token in enumerate(first) if token != last[place]), len(first))
