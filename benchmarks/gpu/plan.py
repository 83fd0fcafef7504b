"""Which engines answer which workloads, with which settings, the most wanted first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

OURS: Final = "paged-backend"
STATIC: Final = "transformers generate"
CONTINUOUS: Final = "transformers continuous batching"
VLLM: Final = "vLLM"

MAX_MODEL_LEN: Final = 3136
"""The longest request of the large workload fits; so does a batch of streams."""
CONTEXT: Final = 512
"""That streams have in the middle of their decode."""

_VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "batch_invariant": {"batch_invariant": True},
    "async_scheduling off": {"async_scheduling": False},
    "enforce_eager": {"enforce_eager": True},
    "fp8 KV cache": {"kv_cache_dtype": "fp8_e4m3"},
}
"""What is changed in our engine, to see what it costs or brings."""


@dataclass(frozen=True)
class Streams:
    """Streams whose decode is timed: the same work twice, with one token each and with all, and the difference.

    Attributes:
        num_streams: at once.
        num_outputs: tokens of each; the context is `CONTEXT` in the middle.
    """

    num_streams: int
    num_outputs: int

    @property
    def num_prompt(self) -> int:
        """Tokens of each prompt."""
        return CONTEXT - self.num_outputs // 2

    @property
    def workloads(self) -> tuple[str, str]:
        """The short one and the whole one."""
        short, whole = (f"fixed-{self.num_streams}x{self.num_prompt}x{count}" for count in (1, self.num_outputs))
        return short, whole

    def rate(self, seconds: Mapping[str, float]) -> float | None:
        """Tokens a second of all streams together, of what each workload took; None if one of them is missing."""
        short, whole = (seconds.get(name) for name in self.workloads)
        if short is None or whole is None or whole <= short:
            return None
        return self.num_streams * (self.num_outputs - 1) / (whole - short)


@dataclass(frozen=True)
class Amounts:
    """How much is asked of every engine.

    Attributes:
        one, many: streams.
        num_requests: of the ShareGPT-like workload.
        num_static: of them that transformers' `generate` gets, in one batch: more takes minutes.
    """

    one: Streams
    many: Streams
    num_requests: int
    num_static: int

    @property
    def requests(self) -> str:
        """The ShareGPT-like workload."""
        return f"sharegpt-{self.num_requests}"


FULL: Final = Amounts(Streams(1, 256), Streams(256, 128), 1000, 128)
QUICK: Final = Amounts(Streams(1, 64), Streams(256, 32), 200, 32)
TRIAL: Final = Amounts(Streams(1, 4), Streams(2, 4), 4, 2)


@dataclass(frozen=True)
class Candidate:
    """An engine and its settings.

    Attributes:
        label: what the table calls it.
        limits: see `session.Asked`.
        timeout_s: that it is given at most.
    """

    label: str
    engine: str
    settings: Mapping[str, Any]
    workloads: tuple[str, ...]
    limits: Mapping[str, int]
    timeout_s: float


def candidates(amounts: Amounts, device: str) -> list[Candidate]:
    """All of them.

    Args:
        device: "cuda", or "cpu" for a trial of the script.
    """
    batch = {"max_num_seqs": 1024, "max_num_batched_tokens": 16_384, "enable_prefix_caching": False}
    real = device == "cuda"
    memory: dict[str, Any] = {"dtype": "bfloat16", "gpu_memory_utilization": 0.9} if real else {"dtype": "float32"}
    where = {"kernel_backend": "triton"} if real else {"num_gpu_blocks_override": 256}
    ours = {"device": device, **batch, **memory, **where}
    every = (*amounts.one.workloads, *amounts.many.workloads, amounts.requests)
    transformers = {"device": device, "dtype": memory["dtype"]}
    continuous = {} if real else {"page_size": 16, "num_blocks": 256, "max_batch_tokens": 64, "use_cuda_graph": False}
    static = {**transformers, "batch_size": 256}
    return [
        Candidate(OURS, OURS, ours, every, {}, 180.0),
        *([Candidate(VLLM, VLLM, {**batch, **memory}, every, {}, 120.0)] if real else []),
        Candidate(STATIC, STATIC, static, every, {amounts.requests: amounts.num_static}, 90.0),
        Candidate(CONTINUOUS, CONTINUOUS, {**transformers, "config": continuous}, every, {}, 90.0),
        *(
            Candidate(f"{OURS}, {name}", OURS, {**ours, **setting}, every, {}, 60.0)
            for name, setting in _VARIANTS.items()
            if real or name == "batch_invariant"
        ),
    ]
