"""Which part of a network one of several processes has (tensor parallelism, arXiv:1909.08053)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from paged_backend.errors import ConfigError
from paged_backend.kernels.interface import Collective, StepInputs
from paged_backend.models.architecture import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The part of rank `rank` of `size`. Norms, tables of positions and the projections beside an embedding are whole.

    Attributes:
        rank, size: 0 .. size - 1.
        sum: adds up the ranks' rows, in the order of ranks; None for a single rank.
        join: lays the ranks' rows side by side; None for a single rank.
    """

    rank: int = 0
    size: int = 1
    sum: Collective | None = None
    join: Collective | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank adds what comes once to a sum: biases and residuals."""
        return self.rank == 0

    def check(self, architecture: Architecture) -> None:
        """Raises ConfigError for a network that cannot be divided so."""
        size = self.size
        for name, count in (
            ("attention heads", architecture.num_heads),
            ("numbers inside its feed-forward part (intermediate_size)", architecture.intermediate_size),
        ):
            if count % size:
                raise _refused(size, f"the model's {count} {name} cannot be divided by it")
        kv_heads = architecture.num_kv_heads
        if kv_heads % size and size % kv_heads:
            raise _refused(size, f"the model's {kv_heads} key/value heads can be neither divided nor repeated for it")

    def check_groups(self, part: range, group_size: int) -> None:
        """Raises ConfigError where a border between ranks cuts a group of inputs that share a scale."""
        if self.size > 1 and len(part) % group_size:
            raise _refused(
                self.size,
                f"a rank would get {len(part)} inputs of a linear layer, no multiple of the {group_size} that share a "
                "scale under this quantization",
            )

    def architecture(self, whole: Architecture) -> Architecture:
        """What this rank computes: its heads, and its part of the feed-forward's width."""
        return dataclasses.replace(
            whole,
            num_heads=whole.num_heads // self.size,
            num_kv_heads=max(1, whole.num_kv_heads // self.size),
            intermediate_size=whole.intermediate_size // self.size,
        )

    def queries(self, whole: Architecture) -> range:
        """Its numbers of a token's queries."""
        return self._part(whole.query_size)

    def keys(self, whole: Architecture) -> range:
        """Its numbers of a token's keys, and of its values; fewer heads than ranks are in several."""
        heads = whole.num_kv_heads
        first = self.rank * heads // self.size
        return range(first * whole.head_dim, (first + max(1, heads // self.size)) * whole.head_dim)

    def inner(self, whole: Architecture) -> range:
        """Its numbers inside the feed-forward part."""
        return self._part(whole.intermediate_size)

    def padded_vocab(self, vocab_size: int) -> int:
        """Rows of the embedding, and columns of logits, in each rank; the last may have some for no token."""
        return -(-vocab_size // self.size)

    def vocab(self, vocab_size: int) -> range:
        """The tokens that it has the embeddings and computes the logits of."""
        count = self.padded_vocab(vocab_size)
        return range(min(self.rank * count, vocab_size), min((self.rank + 1) * count, vocab_size))

    def own_tokens(self, inputs: StepInputs, vocab_size: int) -> StepInputs:
        """A step's inputs with the tokens counted from the first of its own; others are `padded_vocab`, where its
        embedding holds zeros."""
        if self.size == 1:
            return inputs
        own = self.vocab(vocab_size)
        token_ids = inputs.token_ids - own.start
        others = (token_ids < 0) | (token_ids >= len(own))
        return dataclasses.replace(inputs, token_ids=token_ids.masked_fill(others, self.padded_vocab(vocab_size)))

    def _part(self, width: int) -> range:
        part = width // self.size
        return range(self.rank * part, (self.rank + 1) * part)


WHOLE = Shard()
"""Of a single rank."""


def places(ranges: Sequence[range], widths: Sequence[int]) -> tuple[range, ...]:
    """Ranges of several tensors as those of one in which they lie side by side."""
    begin = 0
    moved = []
    for part, width in zip(ranges, widths, strict=True):
        moved.append(range(begin + part.start, begin + part.stop))
        begin += width
    return tuple(moved)


def _refused(size: int, reason: str) -> ConfigError:
    return ConfigError(f"tensor_parallel_size {size} does not fit: {reason}. Choose another, such as 1.")
