"""What a request gives back: whole outputs for batch callers, deltas for streams.

Deltas are made for every token, and a frozen dataclass takes twice as long to make: nobody writes to them all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "repetition", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate at one position.

    Attributes:
        logprob: natural logarithm of its probability under the model's raw distribution (before temperature
            and penalties, as in vLLM's default `logprobs_mode`).
        rank: 1 for the most likely token of the vocabulary.
        decoded_token: its text alone, or None where detokenisation is off.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass(slots=True)
class RequestStateStats:
    """When things happened to one request that is over, and what it took; the first eight fields are those of vLLM's
    class of the same name.

    Attributes:
        num_generation_tokens: of all samples.
        arrival_time: when it was submitted, in seconds since 1970. The other times are seconds of `time.monotonic`.
        queued_ts: the same moment.
        scheduled_ts: when its first step began; 0 where there was none.
        first_token_ts, last_token_ts: when its first and its last token were drawn; 0 where none was.
        first_token_latency: seconds from queued_ts to first_token_ts; 0 where no token was drawn.
        is_corrupted: whether it ended because its logits were not numbers.
        finished_ts: when it was over.
        num_prompt_tokens: of its prompt.
        num_cached_tokens: of these, those that nobody had to compute: from the prefix cache, host memory or disk.
        num_external_tokens: of these, those from host memory or disk.
        kv_block_seconds: blocks of the KV cache that it held, times the seconds that it held them. A block that several
            of its samples share counts for each.
        num_recomputes, num_swaps: preemptions, after which its tokens were computed again, or its blocks swapped in.
        num_steps: steps of the engine that it was in.
    """

    num_generation_tokens: int = 0
    arrival_time: float = 0.0
    queued_ts: float = 0.0
    scheduled_ts: float = 0.0
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    first_token_latency: float = 0.0
    is_corrupted: bool = False
    finished_ts: float = 0.0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_external_tokens: int = 0
    kv_block_seconds: float = 0.0
    num_recomputes: int = 0
    num_swaps: int = 0
    num_steps: int = 0

    @property
    def queue_s(self) -> float:
        """Seconds until its first step. These, prefill_s and decode_s add up to its whole life."""
        return (self.scheduled_ts or self.finished_ts) - self.queued_ts

    @property
    def prefill_s(self) -> float:
        """Seconds from there to its first token."""
        return (self.first_token_ts or self.finished_ts) - self.scheduled_ts if self.scheduled_ts else 0.0

    @property
    def decode_s(self) -> float:
        """Seconds from there to its end."""
        return self.finished_ts - self.first_token_ts if self.first_token_ts else 0.0


TokenLogprobs = Mapping[int, Logprob]
"""Candidates at one position by token id; the sampled token is always among them."""

PromptLogprobs = Sequence[TokenLogprobs | None]
"""Of each token of a prompt; None of the first, which nothing comes before."""


@dataclass(slots=True)
class CompletionDelta:
    """What one sample gained since its last delta.

    Attributes:
        index: which of the request's n samples.
        text: new text that is final (no half character, no part of a possible stop string).
        token_ids: new tokens; their text may come in a later delta.
        logprobs: one entry per new token, or None where none were asked for.
        finish_reason: set on the sample's last delta, and only there.
        stop_reason: the stop string or stop token id that ended it; None for EOS, length, abort.
        cumulative_logprob: of all of the sample's tokens, where it was chosen by that (best_of, beam search); with the
            finish_reason.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    cumulative_logprob: float | None = None


@dataclass(slots=True)
class RequestDelta:
    """What one request gained in one engine step.

    Attributes:
        finished: True on exactly one delta of every accepted request, its last.
        num_cached_tokens: prompt tokens that came from the prefix cache.
        num_unchosen_tokens: of best_of samples that are not among the outputs.
        prompt_logprobs: one entry per token of the prompt, None for its first; on the request's first delta, where they
            were asked for.
        metrics: what the request took; on its last delta.
    """

    request_id: str
    outputs: tuple[CompletionDelta, ...]
    finished: bool
    num_prompt_tokens: int
    num_cached_tokens: int
    num_unchosen_tokens: int = 0
    prompt_logprobs: PromptLogprobs | None = None
    metrics: RequestStateStats | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One whole sample; the fields are those of vLLM's class of the same name.

    cumulative_logprob is there with logprobs, and of samples that were chosen by it. A beam's has all in it that the
    parameters change, but not the length penalty.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def extend(self, delta: CompletionDelta) -> None:
        """Appends a delta of the same sample."""
        self.text += delta.text
        self.token_ids.extend(delta.token_ids)
        if delta.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs.extend(delta.logprobs)
            # One after the other: the sum's bits must not depend on how many tokens a delta brings.
            total = self.cumulative_logprob or 0.0
            for token, candidates in zip(delta.token_ids, delta.logprobs, strict=True):
                total += candidates[token].logprob
            self.cumulative_logprob = total
        if delta.cumulative_logprob is not None:
            self.cumulative_logprob = delta.cumulative_logprob
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason


@dataclass(slots=True)
class BeamSearchSequence:
    """One beam; the fields are those of vLLM's class of the same name.

    Attributes:
        tokens: the prompt's and those found after it.
        cum_logprob: of those found, without the length penalty.
        text: of all tokens; None without a tokenizer.
    """

    tokens: list[int]
    cum_logprob: float
    text: str | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """What a beam search found after one prompt, the best first."""

    sequences: list[BeamSearchSequence]


@dataclass(slots=True)
class RequestOutput:
    """One whole request, its samples ordered by index.

    Attributes:
        num_cached_tokens: prompt tokens that came from the prefix cache.
        num_unchosen_tokens: of best_of samples that are not among the outputs.
        prompt_logprobs: one entry per token of the prompt, None for its first; None where they were not asked for, or
            the request ended before.
        metrics: what it took; None until it is over.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    num_cached_tokens: int = 0
    num_unchosen_tokens: int = 0
    prompt_logprobs: PromptLogprobs | None = None
    metrics: RequestStateStats | None = None

    @classmethod
    def empty(cls, request_id: str, prompt: str | None, prompt_token_ids: list[int], n: int) -> RequestOutput:
        """An output with nothing in it yet, to be filled with `extend`."""
        return cls(request_id, prompt, prompt_token_ids, [CompletionOutput(index) for index in range(n)])

    def extend(self, delta: RequestDelta) -> None:
        """Appends a delta of the same request."""
        for output in delta.outputs:
            self.outputs[output.index].extend(output)
        self.finished = delta.finished
        self.num_cached_tokens = delta.num_cached_tokens
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        self.num_unchosen_tokens += delta.num_unchosen_tokens
        self.metrics = delta.metrics
