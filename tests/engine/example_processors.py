"""Functions on logits, as a user might write them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

VALUE = 3


class Shift:
    """Adds a number to one token's logit."""

    def __init__(self, token: int, *, by: float) -> None:
        self._token = token
        self._by = by

    def __call__(self, prompt: Sequence[int], output: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        logits[self._token] += self._by
        return logits


def forbid_even(prompt: Sequence[int], output: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    """Leaves tokens with odd ids."""
    return logits.masked_fill(torch.arange(len(logits)) % 2 == 0, -torch.inf)


def raise_in_the_third_step(prompt: Sequence[int], output: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    """Breaks after two tokens."""
    if len(output) == 2:
        logits.zero_()
        raise RuntimeError("a secret of the operator's")
    return logits


def give_a_list(prompt: Sequence[int], output: Sequence[int], logits: torch.Tensor) -> list[float]:
    """Returns what is no tensor."""
    return logits.tolist()  # type: ignore[no-any-return]
