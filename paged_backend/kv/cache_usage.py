"""What one request has used of the KV cache, summed up where blocks come and go and not while they are held."""

from __future__ import annotations


class CacheUsage:
    """The account of a request: all of its sequences' tables write to it.

    A block that comes at one time and goes at another was held for the difference, so the sum of all times at which
    blocks went, less the sum of those at which they came, is what the request held, exactly, once it holds nothing. A
    step in which nothing comes or goes costs nothing. A block that several of its sequences share counts for each.

    Attributes:
        block_ns: nanoseconds that blocks were held, summed over the blocks; true while it holds none.
        num_steps: steps that one of its sequences at least was in, without one that was in flight at its end; true
            while none runs.
        num_recomputes, num_swaps: how often its blocks were taken away, to be computed again or kept in host memory.
        num_external_tokens: prompt tokens that came from host memory or disk.
    """

    __slots__ = (
        "_began",
        "_num_tables",
        "block_ns",
        "num_external_tokens",
        "num_recomputes",
        "num_steps",
        "num_swaps",
    )

    def __init__(self) -> None:
        self.block_ns = 0
        self.num_steps = 0
        self.num_recomputes = 0
        self.num_swaps = 0
        self.num_external_tokens = 0
        self._num_tables = 0
        self._began = 0

    def gain(self, num_blocks: int, now_ns: int) -> None:
        """A table got so many blocks."""
        self.block_ns -= num_blocks * now_ns

    def lose(self, num_blocks: int, now_ns: int) -> None:
        """A table gave so many blocks back."""
        self.block_ns += num_blocks * now_ns

    def start(self, num_steps: int) -> None:
        """A table may hold blocks from now on; the engine has planned so many steps."""
        if not self._num_tables:
            self._began = num_steps
        self._num_tables += 1

    def stop(self, num_steps: int) -> None:
        """A table holds no blocks any more; so many of the engine's steps are over."""
        self._num_tables -= 1
        if not self._num_tables:
            self.num_steps += num_steps - self._began

    @property
    def is_settled(self) -> bool:
        """Whether it holds nothing, so that the sums are true."""
        return not self._num_tables

    def preempt(self, *, swapped: bool) -> None:
        """Its blocks are taken away."""
        if swapped:
            self.num_swaps += 1
        else:
            self.num_recomputes += 1
