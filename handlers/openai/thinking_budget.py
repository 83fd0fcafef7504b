"""`thinking_token_budget`: how many tokens a model may reason, before it is made to end that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


class ThinkingBudget:
    """A logits processor that leaves nothing but the end marker once the reasoning has so many tokens.

    Args:
        begin_id, end_id: the markers' tokens; neither is counted.
        is_open: whether the prompt has opened the reasoning; None where the output may.
        num_tokens: the budget, from 0.
    """

    def __init__(self, begin_id: int, end_id: int, is_open: bool | None, num_tokens: int) -> None:
        self._begin_id = begin_id
        self._end_id = end_id
        self._is_open = is_open
        self._num_tokens = num_tokens

    def __call__(self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], logits: Any) -> Any:
        """Changes the logits [vocab_size] of the token after these, where the budget is used up."""
        if self._is_used_up(token_ids):
            logits[:] = -math.inf
            logits[self._end_id] = 0.0
        return logits

    def _is_used_up(self, token_ids: Sequence[int]) -> bool:
        if self._is_open is False or len(token_ids) < self._num_tokens or self._end_id in token_ids:
            return False
        if self._begin_id in token_ids:
            return len(token_ids) - token_ids.index(self._begin_id) > self._num_tokens
        return self._is_open is True
