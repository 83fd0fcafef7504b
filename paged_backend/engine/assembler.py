"""On the reader's side: what the engine's thread handed over becomes deltas, with text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from paged_backend.engine.detokenizer import SampleText
from paged_backend.engine.request import EngineRequest, Gain, PromptFacts
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.outputs import CompletionDelta, Logprob, PromptLogprobs, RequestDelta, TokenLogprobs
from paged_backend.scheduler.plan import SampledToken


class DeltaAssembler:
    """Makes one request's deltas from its gains, in order. For one reader.

    Where samples are chosen at the end, all gains must come at once.

    Args:
        tokenizer: None gives deltas without text.
    """

    def __init__(self, request: EngineRequest, tokenizer: Tokenizer | None) -> None:
        self._request = request
        self._tokenizer = tokenizer if request.params.detokenize else None
        self._texts: dict[int, SampleText] = {}
        params = request.params
        self._chooses = params.chooses_at_end and not params.use_beam_search  # the engine has chosen beams
        self._num_unfinished = params.num_sequences if self._chooses else params.n
        self._tells_of_prompt = params.prompt_logprobs is not None

    def assemble(self, gains: Sequence[Gain]) -> RequestDelta:
        """One delta of what was gained in one step, or in several."""
        if len(gains) == 1:
            groups = [gains]
        else:
            by_index: dict[int, list[Gain]] = {}
            for gain in gains:
                by_index.setdefault(gain[0], []).append(gain)
            groups = list(by_index.values())
        outputs = tuple([self._delta(group) for group in groups])
        num_unchosen = 0
        if self._chooses:
            every, outputs = outputs, self._choose(outputs)
            num_unchosen = _num_tokens(every) - _num_tokens(outputs)
        return RequestDelta(
            request_id=self._request.request_id,
            outputs=outputs,
            finished=self._num_unfinished == 0,
            num_prompt_tokens=len(self._request.prompt_token_ids),
            num_cached_tokens=gains[-1][5].num_cached_tokens,
            prompt_logprobs=self._prompt_logprobs(gains[-1][5]) if self._tells_of_prompt else None,
            num_unchosen_tokens=num_unchosen,
        )

    def _choose(self, outputs: Sequence[CompletionDelta]) -> tuple[CompletionDelta, ...]:
        """The n likeliest of the samples, the likeliest first, and those that were cut off behind the others."""
        best = sorted(outputs, key=_rank)
        return tuple(replace(output, index=i) for i, output in enumerate(best[: self._request.params.n]))

    def _delta(self, gains: Sequence[Gain]) -> CompletionDelta:
        """What one sample gained."""
        index = gains[0][0]
        own_text = self._text(index)
        parts: list[str] = []
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        finish = None
        cumulative_logprob = 0.0
        for _, token_id, text, described, finish, _ in gains:
            if text is None and own_text is not None:
                text, _ = own_text.take(token_id, finish)
            if text:
                parts.append(text)
            if token_id is not None:
                token_ids.append(token_id)
            if described is None:
                continue
            if self._chooses:
                assert described.logprob is not None
                cumulative_logprob += described.logprob
            if self._request.params.describes_tokens:
                logprobs.append(self._logprobs(described))
        if finish is not None:
            self._num_unfinished -= 1
        return CompletionDelta(
            index,
            "".join(parts),
            tuple(token_ids),
            tuple(logprobs) or None,
            finish.reason if finish else None,
            finish.stop_reason if finish else None,
            cumulative_logprob if self._chooses else finish.cumulative_logprob if finish else None,
        )

    def _text(self, index: int) -> SampleText | None:
        if self._tokenizer is None or self._request.params.stop:
            return None
        text = self._texts.get(index)
        if text is None:
            request = self._request
            text = self._texts[index] = SampleText(self._tokenizer, request.prompt_token_ids, request.params)
        return text

    def _logprobs(self, token: SampledToken) -> TokenLogprobs:
        assert token.logprob is not None and token.rank is not None
        candidates = {token.token_id: self._logprob(token.token_id, token.logprob, token.rank)}
        for rank, (token_id, logprob) in enumerate(token.top, start=1):
            candidates.setdefault(token_id, self._logprob(token_id, logprob, rank))
        for token_id, logprob, rank in token.asked:
            candidates.setdefault(token_id, self._logprob(token_id, logprob, rank))
        return candidates

    def _prompt_logprobs(self, prompt: PromptFacts) -> PromptLogprobs | None:
        """Of all of the prompt, once; None where the request ended before it was computed."""
        if 1 + len(prompt.scored) < len(self._request.prompt_token_ids):
            return None
        self._tells_of_prompt = False
        return [None, *map(self._logprobs, prompt.scored)]

    def _logprob(self, token_id: int, logprob: float, rank: int) -> Logprob:
        text = self._tokenizer.decode([token_id], skip_special_tokens=False) if self._tokenizer else None
        return Logprob(logprob, rank, text)


def _rank(sample: CompletionDelta) -> tuple[bool, float, int]:
    """Sorts whole samples, the best first.

    One that was cut off (a deadline, an abort) lacks what would have made it less likely: it comes behind those that
    have ended. Among its like, which may be of any lengths, the mean of its tokens counts.
    """
    logprob = sample.cumulative_logprob or 0.0
    if sample.finish_reason != "abort":
        return False, -logprob, sample.index
    return True, -logprob / len(sample.token_ids) if sample.token_ids else math.inf, sample.index


def _num_tokens(samples: Sequence[CompletionDelta]) -> int:
    return sum([len(sample.token_ids) for sample in samples])
