"""What a model could do on a card at most: its weights and its cache are read, its products computed, nothing else.

A step takes max(weights / bandwidth, 2 * parameters * rows / matmul rate), plus the time to read what its sequences
have in the cache. Weights count once a step; the embedding, of which a step reads a few rows, only where it is the last
layer's weight as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.card import Rates

_BYTES = 2  # of a bfloat16 number


@dataclass(frozen=True)
class ModelLimits:
    """Of one model in bfloat16.

    Attributes:
        num_parameters: that a step multiplies with.
        kv_bytes: that a token has in the cache.
    """

    num_parameters: int
    kv_bytes: int
    rates: Rates

    @classmethod
    def of(cls, config: Mapping[str, Any], rates: Rates) -> ModelLimits:
        """By a Llama's or Qwen3's config.json."""
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        heads, kv_heads, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
        attention = 2 * hidden * heads * size + 2 * hidden * kv_heads * size
        layer = attention + 3 * hidden * config["intermediate_size"]
        return cls(layers * layer + hidden * config["vocab_size"], 2 * _BYTES * layers * kv_heads * size, rates)

    def step_seconds(self, num_rows: int, num_cached: int) -> float:
        """Of a step that computes so many rows, for sequences with so many tokens in the cache together."""
        weights = _BYTES * self.num_parameters / self.rates.bandwidth
        products = 2 * self.num_parameters * num_rows / self.rates.matmul
        return max(weights, products) + num_cached * self.kv_bytes / self.rates.bandwidth

    def decode_rate(self, num_streams: int, context: int) -> float:
        """Tokens a second of streams that have so many tokens each."""
        return num_streams / self.step_seconds(num_streams, num_streams * context)

    def workload_rate(self, lengths: Iterable[tuple[int, int]]) -> float:
        """Output tokens a second of requests that are all there at once, prompts first and then all in one batch.

        Args:
            lengths: (prompt tokens, output tokens) of each.
        """
        lengths = list(lengths)
        num_prompt = sum(prompt for prompt, _ in lengths)
        seconds = self.step_seconds(num_prompt, 0)  # gives everyone's first token
        running, cached = len(lengths), num_prompt
        ends, freed = Counter(output for _, output in lengths), Counter[int]()
        for prompt, output in lengths:
            freed[output] += prompt + output - 1
        for step in range(1, max(ends)):
            # The token that is computed counts: its key and value are read too.
            running, cached = running - ends[step], cached - freed[step]
            cached += running
            seconds += self.step_seconds(running, cached)
        return sum(output for _, output in lengths) / seconds
