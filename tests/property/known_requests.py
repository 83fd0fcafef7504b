"""What the scheduler's random lives know of the requests that they made."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from paged_backend.sampling_params import SamplingParams
from tests.property.simulated_executor import VOCAB_SIZE

MAX_MODEL_LEN = 24

# Prompts are prefixes of a few texts, so that many share blocks, and some are alike.
TEXTS = tuple(
    tuple(Random(i).randrange(VOCAB_SIZE) for _ in range(4)) * 2
    + tuple(Random(100 + i).randrange(VOCAB_SIZE) for _ in range(MAX_MODEL_LEN))
    for i in (0, 0, 1)
)


@dataclass
class Sample:
    """One sample as the test knows it."""

    request: Request
    index: int
    output: list[int] = field(default_factory=list)
    ended: str | None = None


@dataclass
class Request:
    """One request as the test knows it.

    Attributes:
        order: (priority, arrival), the former where the policy looks at it; the smaller goes first.
        since, until: steps computed when it came and when its end was seen.
        beside: requests that ran when it came.
        scored: what was told of its prompt.
    """

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    salt: str | None
    max_tokens: int
    order: tuple[int, int] = (0, 0)
    since: int = 0
    until: int | None = None
    beside: frozenset[str] = frozenset()
    samples: list[Sample] = field(default_factory=list)
    scored: list[tuple[int, float | None]] = field(default_factory=list)

    @property
    def live(self) -> bool:
        return any(sample.ended is None for sample in self.samples)

    def end(self, reason: str) -> None:
        """All samples that have not ended end for the same reason."""
        for sample in self.samples:
            sample.ended = sample.ended or reason

    @property
    def num_steps_alone(self) -> int:
        """Steps in which it ends if nobody takes its blocks, one sample after the other, a token a step."""
        return self.params.num_sequences * (len(self.prompt) + self.max_tokens + 1)

    @property
    def parted(self) -> bool:
        return any(sample.output for sample in self.samples)

    @property
    def searches(self) -> bool:
        return self.params.use_beam_search
