"""A request inside the engine: what was asked, and its samples' tokens on their way to text."""

from __future__ import annotations

from dataclasses import dataclass

from paged_backend.engine.detokenizer import SampleText
from paged_backend.engine.metrics import RequestTimes
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.outputs import CompletionDelta, FinishReason, Logprob, RequestDelta, TokenLogprobs
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SampledToken


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A validated request.

    Attributes:
        priority: lower values go first under the priority policy.
        cache_salt: scope of prefix sharing; None is the common one.
        arrival_s: `time.monotonic` at submission.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    cache_salt: str | None = None
    arrival_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a sample ends."""

    reason: FinishReason
    stop_reason: int | str | None = None


class RequestState:
    """One live request: turns its sampled tokens into deltas and knows when it is over.

    Attributes:
        num_generated: tokens by sample index.
        reason: why the sample that ended last did.
    """

    __slots__ = (
        "_finished",
        "_pending",
        "_texts",
        "_tokenizer",
        "num_cached_tokens",
        "num_generated",
        "reason",
        "request",
        "times",
    )

    def __init__(self, request: EngineRequest, tokenizer: Tokenizer | None) -> None:
        params = request.params
        self.request = request
        self.times = RequestTimes(request.arrival_s)
        self.num_cached_tokens = 0
        self.reason: FinishReason = "stop"
        self.num_generated = [0] * params.n
        self._tokenizer = tokenizer if params.detokenize else None
        self._texts = (
            [SampleText(self._tokenizer, request.prompt_token_ids, params) for _ in range(params.n)]
            if self._tokenizer is not None
            else None
        )
        self._finished = [False] * params.n
        self._pending: list[CompletionDelta] = []

    @property
    def over(self) -> bool:
        """Whether every sample has ended."""
        return all(self._finished)

    def take_token(self, index: int, token: SampledToken, finish: Finish | None) -> Finish | None:
        """Adds a sampled token to the pending delta.

        Args:
            finish: set where the token itself ends the sample (EOS, a stop token, or the length).

        Returns:
            Why the sample ends, if it does: `finish`, or a stop string that its text has reached.
        """
        assert not self._finished[index]
        self.num_generated[index] += 1
        text = ""
        if self._texts is not None:
            sample = self._texts[index]
            if finish is not None and finish.reason == "stop":
                shown = self.request.params.include_stop_str_in_output
                text = sample.finish(token.token_id if shown else None)
            else:
                text, stop = sample.push(token.token_id)
                if stop is not None:
                    finish = Finish("stop", stop)
                elif finish is not None:
                    text += sample.finish(None)
        logprobs = None if token.logprob is None else (self._logprobs(token),)
        self._add(index, text, (token.token_id,), logprobs, finish)
        return finish

    def end(self, reason: FinishReason) -> None:
        """Ends every sample that has not ended, with the text held back so far."""
        for index, finished in enumerate(self._finished):
            if not finished:
                text = self._texts[index].finish(None) if self._texts is not None else ""
                self._add(index, text, (), None, Finish(reason))

    def take_delta(self) -> RequestDelta:
        """What has come together since the last call."""
        pending, self._pending = self._pending, []
        return RequestDelta(
            request_id=self.request.request_id,
            outputs=tuple(pending),
            finished=self.over,
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_cached_tokens=self.num_cached_tokens,
        )

    def _add(
        self,
        index: int,
        text: str,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprobs, ...] | None,
        finish: Finish | None,
    ) -> None:
        self._pending.append(
            CompletionDelta(
                index,
                text,
                token_ids,
                logprobs,
                finish.reason if finish else None,
                finish.stop_reason if finish else None,
            )
        )
        if finish is not None:
            self._finished[index] = True
            self.reason = finish.reason

    def _logprobs(self, token: SampledToken) -> TokenLogprobs:
        assert token.logprob is not None and token.rank is not None
        candidates = {token.token_id: self._logprob(token.token_id, token.logprob, token.rank)}
        for rank, (token_id, logprob) in enumerate(token.top, start=1):
            candidates.setdefault(token_id, self._logprob(token_id, logprob, rank))
        return candidates

    def _logprob(self, token_id: int, logprob: float, rank: int) -> Logprob:
        text = self._tokenizer.decode([token_id], skip_special_tokens=False) if self._tokenizer else None
        return Logprob(logprob, rank, text)
