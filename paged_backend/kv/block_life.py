"""How long blocks keep their content and how it is used, watched on some of them."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

_MAX_USES = 16
"""Of a block that is used more often, the last ones are kept."""


@dataclass(slots=True)
class BlockLife:
    """One content of one block; the times are those of the watch's clock.

    Attributes:
        born_s: when the block was taken for it.
        uses_s: when it was found again as part of a prefix, the last times.
    """

    born_s: float
    uses_s: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_USES))

    @property
    def last_use_s(self) -> float:
        """When somebody took it last."""
        return self.uses_s[-1] if self.uses_s else self.born_s


class BlockWatch:
    """Follows a sample of the pool's blocks from one content to the next.

    Args:
        sample: of all contents, the part that is watched, in (0, 1].
        on_end: called with a life, and the time at which another content took its block.
    """

    def __init__(
        self,
        sample: float,
        on_end: Callable[[BlockLife, float], None],
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sample = sample
        self._on_end = on_end
        self._clock_s = clock_s
        self._draw = random.Random(0)
        self._lives: dict[int, BlockLife] = {}

    def take(self, block: int) -> None:
        """The block's content is lost, and it begins another one."""
        life = self._lives.pop(block, None)
        if life is not None:
            self._on_end(life, self._clock_s())
        if self._draw.random() < self._sample:
            self._lives[block] = BlockLife(self._clock_s())

    def use(self, block: int) -> None:
        """The block's content was found again."""
        life = self._lives.get(block)
        if life is not None:
            life.uses_s.append(self._clock_s())
