"""What the benchmarks ask of an engine: requests with given lengths, prompts of random token ids, greedy, no early end.

A workload is named: "lognormal-48" is lognormal-48.json beside this file, and "fixed-32x128x128" is 32 requests of
128 prompt tokens and 128 output tokens each; any three numbers do. "sharegpt-1000" is 1,000 requests whose lengths are
those of ShareGPT's conversations in their means, 161 prompt tokens and 338 output tokens, and in being lognormal.
"""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Final

FIRST_PLAIN_ID: Final = 16  # ids below may be special tokens
WARM_UP_SEED: Final = 1_000_003
"""For what only warms up: nothing that is measured has its prompts. Negative seeds will not do: random.Random takes
their absolute value."""

_FOLDER: Final = Path(__file__).resolve().parent
SHAREGPT_MEANS: Final = (161, 338)
"""Prompt and output tokens."""

_SHAREGPT: Final = re.compile(r"sharegpt-(\d+)")
_SIGMA: Final = 0.9
_SHORTEST, _LONGEST = 4, 1536  # with a prompt of this length and an output as well, a context of 3,072

_FIXED: Final = re.compile(r"fixed-(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True)
class BenchRequest:
    """One request: greedy, and the end-of-sequence token does not end it.

    Attributes:
        prompt_token_ids: the prompt.
        num_output_tokens: exactly as many tokens are to be generated.
    """

    prompt_token_ids: list[int]
    num_output_tokens: int


@dataclass(frozen=True)
class Workload:
    """Requests that all arrive at once, in this order."""

    name: str
    requests: list[BenchRequest]

    @property
    def num_prompt_tokens(self) -> int:
        """Over all requests."""
        return sum(len(request.prompt_token_ids) for request in self.requests)

    @property
    def num_output_tokens(self) -> int:
        """Over all requests."""
        return sum(request.num_output_tokens for request in self.requests)

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request, prompt and output together."""
        return max(len(request.prompt_token_ids) + request.num_output_tokens for request in self.requests)

    def first(self, num_requests: int) -> Workload:
        """The same, with no more than `num_requests`."""
        if num_requests >= len(self.requests):
            return self
        return replace(self, name=f"{self.name}, first {num_requests}", requests=self.requests[:num_requests])


def load_workload(name: str, vocab_size: int, seed: int = 0) -> Workload:
    """The named workload with prompts drawn uniformly from [FIRST_PLAIN_ID, vocab_size).

    Raises:
        ValueError: there is no such workload.
    """
    draw = random.Random(f"{name} {seed}")  # no two workloads share a prompt, and with it a prefix
    return Workload(
        name,
        [
            BenchRequest([draw.randrange(FIRST_PLAIN_ID, vocab_size) for _ in range(num_prompt)], num_output)
            for num_prompt, num_output in _lengths(name)
        ],
    )


def _lengths(name: str) -> list[tuple[int, int]]:
    """(prompt tokens, output tokens) of each request."""
    if fixed := _FIXED.fullmatch(name):
        num_requests, num_prompt, num_output = map(int, fixed.groups())
        return [(num_prompt, num_output)] * num_requests
    if sharegpt := _SHAREGPT.fullmatch(name):
        prompts, outputs = (_lognormal(int(sharegpt[1]), mean, f"{name} {mean}") for mean in SHAREGPT_MEANS)
        return list(zip(prompts, outputs, strict=True))
    file = _FOLDER / f"{name}.json"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in _FOLDER.glob("*.json")))
        raise ValueError(
            f"no workload {name!r}; there are {there}, sharegpt-REQUESTS, and fixed-REQUESTSxPROMPTxOUTPUT"
        )
    return [(num_prompt, num_output) for num_prompt, num_output in json.loads(file.read_text())["lengths"]]


def _lognormal(count: int, mean: float, seed: str) -> list[int]:
    """Lengths at evenly spaced quantiles, so that their mean is the wanted one, in random order."""
    normal = NormalDist(math.log(mean) - _SIGMA**2 / 2, _SIGMA)
    raw = [math.exp(normal.inv_cdf((index + 0.5) / count)) for index in range(count)]

    def lengths(scale: float) -> list[int]:
        return [min(max(round(length * scale), _SHORTEST), _LONGEST) for length in raw]

    scale = 1.0
    for _ in range(20):  # what is cut off at both ends changes the mean
        scale *= mean * count / sum(lengths(scale))
    drawn = lengths(scale)
    random.Random(seed).shuffle(drawn)
    return drawn
