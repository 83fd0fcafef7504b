"""Who takes part, with which settings: each side at the best ones that its sweep found.

`BEST` is the comparison. `SWEEP` is what the best were chosen from: one setting varied at a time around the peer's
defaults. An engine's settings are explained in its runner.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

OURS: Final = "paged-backend"
STATIC: Final = "transformers generate"
CONTINUOUS: Final = "transformers continuous batching"
OPENVINO: Final = "OpenVINO GenAI"
LLAMA: Final = "llama.cpp server"
RUNNERS: Final = {
    OURS: "ours",
    STATIC: "static",
    CONTINUOUS: "continuous",
    OPENVINO: "openvino",
    LLAMA: "llama",
}


@dataclass(frozen=True)
class Candidate:
    """One engine with one set of settings.

    Attributes:
        engine: one of the names above.
        precision: what a reader of the chart is told: the weights' type, and what else matters.
        model_format: see `tools.in_format`.
        settings: as the runner takes them.
        is_exact: the float32 arithmetic of the checkpoint: its greedy tokens are compared with the other exact ones'.
    """

    engine: str
    precision: str
    model_format: str
    settings: dict[str, Any]
    is_exact: bool = False

    @property
    def label(self) -> str:
        """One line that names it, with the settings in short."""
        text = ", ".join(f"{name}={_short(value)}" for name, value in self.settings.items())
        return f"{self.engine}, {self.precision}" + (f" ({text})" if text else "")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}={_short(inner)}" for name, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def ours(precision: str, is_exact: bool = False, **settings: Any) -> Candidate:
    """paged-backend; settings are engine arguments."""
    return Candidate(OURS, precision, "hf", settings, is_exact)


def static(dtype: str, batch_size: int) -> Candidate:
    """transformers' `generate`."""
    settings = {"dtype": dtype, "batch_size": batch_size}
    return Candidate(STATIC, dtype, "hf", settings, is_exact=dtype == "float32")


def continuous(dtype: str, **settings: Any) -> Candidate:
    """transformers' continuous batching."""
    return Candidate(CONTINUOUS, dtype, "hf", {"dtype": dtype, **settings}, is_exact=dtype == "float32")


def openvino(weights: str, **settings: Any) -> Candidate:
    """OpenVINO GenAI with its defaults but for `settings`."""
    return Candidate(OPENVINO, weights, f"openvino-{weights}", settings)


def openvino_float32() -> Candidate:
    """OpenVINO GenAI without the roundings that it does by default."""
    properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    return Candidate(OPENVINO, "float32", "openvino-fp32", {"properties": properties}, is_exact=True)


def llama(weights: str, **settings: Any) -> Candidate:
    """llama.cpp's server."""
    return Candidate(LLAMA, weights.upper(), f"gguf-{weights}", settings)


def llama_float32(slots: int) -> Candidate:
    """llama.cpp's server in float32 throughout; its flash attention rounds."""
    settings = {"slots": slots, "kv_cache": "f32", "flash_attention": "off"}
    return Candidate(LLAMA, "F32", "gguf-f32", settings, is_exact=True)


BEST: Final = (
    ours("float32", is_exact=True, dtype="float32"),
    ours("bfloat16 weights, lossless", is_exact=True, dtype="bfloat16"),
    ours("int8 weights", quantization="int8"),
    ours("int8 weights, int8 KV", quantization="int8", kv_cache_dtype="int8"),
    ours("int4 weights", quantization="int4"),
    ours("int4 weights, int8 KV", quantization="int4", kv_cache_dtype="int8"),
    static("float32", batch_size=8),
    static("float32", batch_size=16),
    static("bfloat16", batch_size=16),
    continuous("float32"),
    continuous("bfloat16"),
    openvino_float32(),
    openvino("int8"),
    openvino("int8", max_num_batched_tokens=2048),
    openvino("int8", properties={"DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"}),
    openvino("int4"),
    llama_float32(slots=48),
    llama("bf16", slots=48),
    llama("q8_0", slots=48),
    llama("q4_0", slots=48),
)

SWEEP: Final = (
    *(static(dtype, size) for dtype in ("float32", "bfloat16") for size in (8, 16, 32)),
    *(continuous(dtype) for dtype in ("float32", "bfloat16")),
    continuous("float32", max_requests_per_batch=16),
    continuous("float32", page_size=32),
    continuous("float32", max_batch_tokens=128),
    continuous("float32", max_batch_tokens=2048),
    openvino("fp32"),
    openvino("int8"),
    openvino("int4"),
    *(openvino("int8", max_num_batched_tokens=tokens) for tokens in (64, 128, 512, 2048)),
    *(openvino("int8", max_num_seqs=seqs) for seqs in (16, 32)),
    openvino("int8", dynamic_split_fuse=False, max_num_batched_tokens=2048),
    *(openvino("int8", properties={"INFERENCE_PRECISION_HINT": precision}) for precision in ("f32", "bf16")),
    *(openvino("int8", properties={"KV_CACHE_PRECISION": precision}) for precision in ("u8", "bf16", "f32")),
    *(openvino("int8", properties={"DYNAMIC_QUANTIZATION_GROUP_SIZE": size}) for size in ("0", "32", "64", "576")),
    *(llama(weights, slots=48) for weights in ("bf16", "q8_0", "q4_0")),
    *(llama("q8_0", slots=slots) for slots in (8, 16, 32)),
    *(llama("q8_0", slots=48, flash_attention=attention) for attention in ("on", "off")),
    *(llama("q8_0", slots=48, kv_cache=kv_cache) for kv_cache in ("q8_0", "bf16")),
    *(llama("q8_0", slots=48, batch=batch, ubatch=batch) for batch in (64, 128, 512, 2048)),
    llama("q8_0", slots=48, arguments=["--kv-unified"]),
    llama("q8_0", slots=48, arguments=["--no-repack"]),
    llama("q8_0", slots=48, arguments=["--poll", "100"]),
)
