"""The reasoning of one request's answers: how it is read, bounded, and kept out of a grammar's way."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.engine_port import TokenizerPort
from paged_backend.handlers.openai.parsing.reasoning import ReasoningCount, ReasoningMarkers, ReasoningSplitter
from paged_backend.handlers.openai.thinking_budget import ThinkingBudget
from paged_backend.sampling_params import ReasoningTokens, SamplingParams


@dataclass(frozen=True, slots=True)
class AnswerReasoning:
    """What is known before the model has said anything.

    Attributes:
        is_open: whether the prompt has opened the reasoning; None where the model decides.
        token_ids: of the markers, where each is one token.
    """

    markers: ReasoningMarkers
    is_open: bool | None
    token_ids: tuple[int, int] | None

    @classmethod
    def of(
        cls, markers: ReasoningMarkers, tokenizer: TokenizerPort, prompt: str, continued: str | None
    ) -> AnswerReasoning:
        """What a prompt leaves to the model.

        Args:
            continued: as for `ReasoningMarkers.is_open`.
        """
        begin, end = (tokenizer.encode(marker, False) for marker in (markers.begin, markers.end))
        token_ids = (begin[0], end[0]) if len(begin) == len(end) == 1 else None
        return cls(markers, markers.is_open(prompt, continued), token_ids)

    def splitter(self) -> ReasoningSplitter:
        """A splitter for one sample."""
        return ReasoningSplitter(self.markers, self.is_open)

    def count(self) -> ReasoningCount | None:
        """A count for one sample; None where there is nothing to count by."""
        return None if self.token_ids is None else ReasoningCount(*self.token_ids, self.is_open)

    def constrained(self, params: SamplingParams) -> SamplingParams:
        """Parameters whose grammar begins after the reasoning."""
        assert self.token_ids is not None and params.structured_outputs is not None
        tokens = ReasoningTokens(*self.token_ids, self.is_open)
        return dataclasses.replace(
            params, structured_outputs=dataclasses.replace(params.structured_outputs, reasoning=tokens)
        )


def with_thinking_budget(params: SamplingParams, num_tokens: int, reasoning: AnswerReasoning | None) -> SamplingParams:
    """Parameters that end the reasoning after so many tokens of it.

    Raises:
        InvalidRequestError: the number is negative, or nobody knows where this model's reasoning is.
    """
    if num_tokens < 0:
        raise InvalidRequestError(
            f"thinking_token_budget must be at least 0, or -1 for no bound, got {num_tokens}.",
            param="thinking_token_budget",
        )
    if reasoning is None or reasoning.token_ids is None:
        raise InvalidRequestError(
            "thinking_token_budget needs a model that marks its reasoning by tokens that this server knows "
            "(reasoning_parser): leave it out, and bound the whole output.",
            param="thinking_token_budget",
        )
    budget = ThinkingBudget(*reasoning.token_ids, reasoning.is_open, num_tokens)
    return dataclasses.replace(params, logits_processors=(*(params.logits_processors or ()), budget))
