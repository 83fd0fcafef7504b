"""Beam search as arithmetic: which continuations of one request go on, which are kept, and when it is over.

The rules are those of transformers' `generate(num_beams=...)`, so that its tokens are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal, NamedTuple, Protocol

from paged_backend.outputs import FinishReason
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SampledToken


class BeamText(Protocol):
    """The text of a beam, as far as stop strings need it."""

    def extended(self, token_id: int) -> tuple[BeamText, str | None]:
        """The text with one more token, and the stop string that this completes, if any; the old one stays."""


class Candidate(NamedTuple):
    """A beam with one more token.

    Attributes:
        score: the sum of its tokens' log-probabilities.
        parent: index of the beam.
        token_id: the token.
        place: of the token in the step's result.
    """

    score: float
    parent: int
    token_id: int
    place: int


@dataclass(slots=True, eq=False)
class Beam:
    """A continuation of the prompt.

    Attributes:
        token_ids: the tokens after the prompt.
        score: the sum of their log-probabilities, after all that the parameters change.
        final_score: that, with the length penalty; set when it ends.
        parent: among the step's beams before, the index of the one that it continues.
        described: its tokens in full, where logprobs were asked for.
        text: what searches it for stop strings; None without any.
        finish_reason, stop_reason: set when it ends.
    """

    token_ids: list[int] = field(default_factory=list)
    score: float = 0.0
    final_score: float = 0.0
    parent: int = 0
    described: list[SampledToken] = field(default_factory=list)
    text: BeamText | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class BeamSearch:
    """The beams of one request. All that run are of the same length.

    Attributes:
        width: beams that run at most, and that are kept when they have ended.
        num_candidates: continuations that are looked at in each step: enough that `width` of them do not end.
        beams: those that run, the best first; one that is empty at first.
        ended: the best of those that have ended, the best first.
        over: whether there is nothing more to find.

    Args:
        params: the request's.
        max_tokens: output tokens at most, resolved.
        num_ends: different tokens that end a beam.
        text: of the empty beam.
    """

    def __init__(self, params: SamplingParams, max_tokens: int, num_ends: int, text: BeamText | None = None) -> None:
        self.width = params.num_sequences
        self.num_candidates = self.width * max(2, 1 + num_ends)
        self.beams = [Beam(text=text)]
        self.ended: list[Beam] = []
        self.over = False
        self._max_tokens = max_tokens
        self._length_penalty = params.length_penalty
        self._early_stopping: bool | Literal["never"] = params.early_stopping

    def advance(self, candidates: Sequence[Candidate], extend: Callable[[Candidate], Beam]) -> None:
        """One step.

        Args:
            candidates: of all beams, in their order, each one's most likely first; `num_candidates` of each beam, or
                all that it has.
            extend: makes the beam of a candidate, with its finish_reason where it ends.
        """
        width = self.width
        # Stable: of equals the better beam's come first, then the smaller token id.
        best = sorted(candidates, key=attrgetter("score"), reverse=True)[: self.num_candidates]
        length = 1 + len(self.beams[0].token_ids)
        running: list[Beam] = []
        for rank, candidate in enumerate(best):
            if rank >= width and len(running) == width:
                break
            beam = extend(candidate)
            if beam.finish_reason is None:
                if len(running) < width:
                    running.append(beam)
            elif rank < width:  # the others only make up for those that end
                beam.final_score = self._final_score(beam.score, length)
                self.ended.append(beam)
        self.ended.sort(key=attrgetter("final_score"), reverse=True)
        del self.ended[width:]
        self.beams = running
        self.over = not self._may_improve(length)

    def cut_off(self, reason: FinishReason, stop_reason: int | str | None) -> list[Beam]:
        """Those that have ended and, ended now for this reason, those that run; the best first, as at max_tokens."""
        running = [beam for beam in self.beams if beam.token_ids]
        for beam in running:
            beam.final_score = self._final_score(beam.score, len(beam.token_ids))
            beam.finish_reason, beam.stop_reason = reason, stop_reason
        return sorted([*self.ended, *running], key=attrgetter("final_score"), reverse=True)

    def _may_improve(self, length: int) -> bool:
        if not self.beams:
            return False
        if len(self.ended) < self.width:
            return True
        if self._early_stopping is True:
            return False
        if self._early_stopping == "never" and self._length_penalty > 0.0:
            length = self._max_tokens
        return self._final_score(self.beams[0].score, length) > self.ended[-1].final_score

    def _final_score(self, score: float, length: int) -> float:
        penalty: float = length**self._length_penalty
        return score / penalty
