"""A request inside the engine: what was asked, and what its samples have gained."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Literal

from paged_backend.engine.detokenizer import Finish, SampleText
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.errors import PagedBackendError
from paged_backend.kv.cache_usage import CacheUsage
from paged_backend.outputs import FinishReason, RequestStateStats
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.beam_search import Beam
from paged_backend.scheduler.plan import SampledToken
from paged_backend.scheduler.sequence import Sequence as SampleSequence
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.source import GrammarSource

Gain = tuple[int, "int | None", "str | None", "SampledToken | None", "Finish | None", "PromptFacts"]
"""What a sample gained: (its index, a token, that token's text, that token in full, why the sample ends, what is known
of the prompt). Text is made by whoever needs it first: the engine where stop strings wait for it, else whoever reads,
and then it is None here. A plain tuple: it is made once per sample and step."""


DeadlineName = Literal["timeout_s", "default_timeout_s", "max_timeout_s"]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A validated request.

    Attributes:
        request_id: what its tenant calls it; another tenant may call one of its own the same.
        priority: lower values go first under the priority policy.
        tenant: whose it is.
        cache_salt: scope of prefix sharing; None is the common one.
        arrival_s: `time.monotonic` at submission.
        deadline_s: `time.monotonic` when it must be over; None where it may take as long as it does.
        deadline_by: what set that: the request's timeout_s, or the engine argument that takes its place.
        trace_headers: the trace that it is part of, if any: the headers traceparent and tracestate of W3C.
        grammar: what every output must satisfy; None where it may be anything.
        key: what the engine calls it: no other tenant's request has it.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    tenant: str = ""
    cache_salt: str | None = None
    arrival_s: float = 0.0
    deadline_s: float | None = None
    deadline_by: DeadlineName = "timeout_s"
    trace_headers: Mapping[str, str] | None = None
    grammar: GrammarSource | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", request_key(self.tenant, self.request_id))


def request_key(tenant: str, request_id: str) -> str:
    """One name for both, which no other pair has."""
    return json.dumps([tenant, request_id])


@dataclass(slots=True, eq=False)
class PromptFacts:
    """What is known of a request's prompt; nothing is added to it after the first gain.

    Attributes:
        num_cached_tokens: those that came from the prefix cache.
        scored: its tokens after the first in full, as far as they were computed, where that was asked for.
    """

    num_cached_tokens: int = 0
    scored: list[SampledToken] = field(default_factory=list)


@dataclass(slots=True)
class RequestTimes:
    """When things happened to one request; seconds of `time.monotonic`.

    Attributes:
        arrival_s: submitted.
        scheduled_s: first part of the prompt computed; 0 before.
        first_token_s: first token drawn; 0 before.
    """

    arrival_s: float
    scheduled_s: float = 0.0
    first_token_s: float = 0.0


class RequestState:
    """One live request: gathers what its samples gain and knows when it is over.

    Attributes:
        gains: what came together and has not been handed over.
        error: what ended it, if it ended so.
        over: whether every sample has ended, or an error ended all of them.
        reason: why the sample that ended last did.
        samples: those that have a token, by index.
        usage: what it has used of the KV cache.
        is_corrupted: whether its logits were not numbers.
        stats: what it took; None until it is over.
        matcher: at the beginning of its grammar, to be forked, once that is compiled; None where it has none.
    """

    __slots__ = (
        "_beam_lengths",
        "_texts",
        "_unfinished",
        "error",
        "gains",
        "is_corrupted",
        "matcher",
        "over",
        "prompt",
        "reason",
        "request",
        "samples",
        "stats",
        "times",
        "usage",
    )

    def __init__(self, request: EngineRequest, tokenizer: Tokenizer | None) -> None:
        params = request.params
        self.request = request
        self.times = RequestTimes(request.arrival_s)
        self.prompt = PromptFacts()
        self.usage = CacheUsage()
        self.is_corrupted = False
        self.stats: RequestStateStats | None = None
        self.matcher: Matcher | None = None
        self.error: PagedBackendError | None = None
        self.over = False
        self.reason: FinishReason = "stop"
        self.gains: list[Gain] = []
        self.samples: dict[int, SampleState] = {}
        self._beam_lengths: list[int] = []
        num_outputs = params.n if params.use_beam_search else params.num_sequences
        self._unfinished = set(range(num_outputs))
        self._texts: list[SampleText] | None = None
        if params.stop and tokenizer is not None:
            self._texts = [SampleText(tokenizer, request.prompt_token_ids, params) for _ in range(num_outputs)]

    @property
    def num_generated(self) -> list[int]:
        """Tokens by sample, of those that have any."""
        if self.request.params.max_tokens == 0:
            return [0]
        return self._beam_lengths or [sample.sequence.num_output_tokens for sample in self.samples.values()] or [0]

    def add_sample(self, sequence: SampleSequence, now_s: float) -> SampleState:
        """A sample that has its first token."""
        text = self._texts[sequence.index] if self._texts is not None else None
        sample = self.samples[sequence.index] = SampleState(self, sequence, text, now_s)
        return sample

    def take_token(
        self, sample: SampleState, token_id: int, described: SampledToken | None, finish: Finish | None
    ) -> Finish | None:
        """Adds a sampled token to the gains.

        Args:
            described: the token in full, where logprobs were asked for.
            finish: set where the token itself ends the sample (EOS, a stop token, or the length).

        Returns:
            Why the sample ends, if it does: `finish`, or a stop string that its text has reached. The length, where no
            token is wanted: one is drawn, as by all, and left out.
        """
        text = None
        if self.request.params.max_tokens == 0:
            nothing = Finish("length")
            self.gains.append((sample.index, None, None, None, nothing, self.prompt))
            self._end(sample.index, nothing)
            return nothing
        if sample.text is not None:
            text, finish = sample.text.take(token_id, finish)
        self.gains.append((sample.index, token_id, text, described, finish, self.prompt))
        if finish is not None:
            self._end(sample.index, finish)
        return finish

    def take_beams(self, beams: Sequence[Beam]) -> None:
        """Adds what a beam search has found to the gains: a whole sample for each beam, n in all, or fewer at first."""
        for index, beam in enumerate(beams):
            assert beam.finish_reason is not None
            finish = Finish(beam.finish_reason, beam.stop_reason, beam.score)
            is_by_text = beam.finish_reason == "stop" and isinstance(beam.stop_reason, str)
            described = beam.described or repeat(None)
            for place, (token_id, full) in enumerate(zip(beam.token_ids, described, strict=False), start=1):
                ends = finish if place == len(beam.token_ids) else None
                text = None
                if self._texts is not None:
                    by_token = None if is_by_text else ends
                    text, _ = self._texts[index].take(token_id, by_token)
                self.gains.append((index, token_id, text, full, ends, self.prompt))
            self._end(index, finish)
        self._beam_lengths = [len(beam.token_ids) for beam in beams]

    def end(self, finish: Finish) -> None:
        """Ends every sample that has not ended, with the text held back so far."""
        for index in sorted(self._unfinished):
            text = self._texts[index].finish(None) if self._texts is not None else None
            self.gains.append((index, None, text, None, finish, self.prompt))
            self._end(index, finish)

    def close(self, now_s: float) -> RequestStateStats:
        """Sums up what the request took, when it is over and holds no blocks any more."""
        times, usage = self.times, self.usage
        last_s = max([sample.last_token_s for sample in self.samples.values()], default=now_s)
        self.stats = RequestStateStats(
            num_generation_tokens=sum(self.num_generated),
            arrival_time=time.time() - (time.monotonic() - times.arrival_s),
            queued_ts=times.arrival_s,
            scheduled_ts=times.scheduled_s,
            first_token_ts=times.first_token_s,
            last_token_ts=last_s if times.first_token_s else 0.0,
            first_token_latency=times.first_token_s - times.arrival_s if times.first_token_s else 0.0,
            is_corrupted=self.is_corrupted,
            finished_ts=now_s,
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_cached_tokens=self.prompt.num_cached_tokens,
            num_external_tokens=usage.num_external_tokens,
            kv_block_seconds=usage.block_ns / 1e9 if usage.is_settled else 0.0,
            num_recomputes=usage.num_recomputes,
            num_swaps=usage.num_swaps,
            num_steps=usage.num_steps,
        )
        return self.stats

    def fail(self, error: PagedBackendError) -> None:
        """Ends the request with an error; what it gained and nobody has seen is lost."""
        self.gains.clear()
        self.error = error
        self.over = True

    def _end(self, index: int, finish: Finish) -> None:
        self._unfinished.remove(index)
        self.over = not self._unfinished
        self.reason = finish.reason


class SampleState:
    """One sample that has a token.

    Attributes:
        text: what searches its stop strings; None without any.
        last_token_s: when its latest token was drawn; seconds of `time.monotonic`.
    """

    __slots__ = ("index", "last_token_s", "sequence", "state", "text")

    def __init__(self, state: RequestState, sequence: SampleSequence, text: SampleText | None, now_s: float) -> None:
        self.state = state
        self.sequence = sequence
        self.index = sequence.index
        self.text = text
        self.last_token_s = now_s
