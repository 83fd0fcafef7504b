"""Counts of the tokens of sequences, where their logits are: what penalties look at when no host knows all tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.tensors import check_tensor, describe

IN_PROMPT = 1 << 30
"""Beside the count of a token in the output."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The tokens of S sequences, counted.

    Attributes:
        counts: int32 [S, V]: how often a token is in a sequence's output; IN_PROMPT is added where it is in the prompt.
        penalties: float32 [S, 3]: a sequence's repetition, frequency and presence penalty (see `LogitChanges`).
    """

    counts: Tensor
    penalties: Tensor

    def __post_init__(self) -> None:
        """
        Raises:
            KernelError: the tensors are not what is said above.
        """
        check_tensor("counts", self.counts)
        check_tensor("penalties", self.penalties)
        counts, penalties = self.counts, self.penalties
        if counts.dtype != torch.int32 or counts.dim() != 2 or not counts.is_contiguous():
            raise KernelError(f"counts must be contiguous int32 [S, V], got {describe(counts)}.")
        wanted = (torch.float32, (len(counts), 3), counts.device)
        if (penalties.dtype, penalties.shape, penalties.device) != wanted or not penalties.is_contiguous():
            raise KernelError(f"penalties must be contiguous float32 [S, 3] beside counts, got {describe(penalties)}.")

    @classmethod
    def make(cls, num_sequences: int, vocab_size: int, device: torch.device) -> TokenCounts:
        """Of sequences without tokens and penalties."""
        counts = torch.zeros(num_sequences, vocab_size, dtype=torch.int32, device=device)
        penalties = torch.tensor([[1.0, 0.0, 0.0]]).repeat(num_sequences, 1)
        return cls(counts, penalties.to(device))

    def begin(self, rows: Tensor, penalties: Tensor) -> None:
        """Makes rows those of new sequences.

        Args:
            rows: int64 [K], on the device, all different.
            penalties: float32 [K, 3], on the device.
        """
        self.counts.index_fill_(0, rows, 0)
        self.penalties.index_copy_(0, rows, penalties)

    def add(self, prompt: Tensor, output: Tensor) -> None:
        """Takes tokens in; a row's token is number row * V + token.

        Args:
            prompt: int64 [P], those of prompts of rows that are new, on the device.
            output: int64 [N], those of outputs, on the device.
        """
        flat = self.counts.view(-1)
        flat.index_fill_(0, prompt, IN_PROMPT)
        flat.scatter_add_(0, output, torch.ones_like(output, dtype=torch.int32))
