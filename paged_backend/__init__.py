"""paged-backend: a paged-attention engine with continuous batching, served by TorchServe and BentoML."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from paged_backend.config import EngineConfig
from paged_backend.errors import (
    ConfigError,
    DeadlineError,
    EngineUnavailableError,
    InvalidRequestError,
    KernelError,
    ModelLoadError,
    NotFoundError,
    PagedBackendError,
    QueueFullError,
    RequestFailedError,
)
from paged_backend.outputs import BeamSearchOutput, CompletionOutput, Logprob, RequestOutput
from paged_backend.sampling_params import (
    BeamSearchParams,
    LogitsProcessorConstructor,
    RepetitionDetectionParams,
    SamplingParams,
    StructuredOutputsParams,
)
from paged_backend.version import __version__

if TYPE_CHECKING:
    from paged_backend.engine.llm import LLM

__all__ = [
    "LLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "CompletionOutput",
    "ConfigError",
    "DeadlineError",
    "EngineConfig",
    "EngineUnavailableError",
    "InvalidRequestError",
    "KernelError",
    "LogitsProcessorConstructor",
    "Logprob",
    "ModelLoadError",
    "NotFoundError",
    "PagedBackendError",
    "QueueFullError",
    "RepetitionDetectionParams",
    "RequestFailedError",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """`LLM` brings torch with it: imported when it is asked for, so that `import paged_backend` stays quick."""
    if name == "LLM":
        return import_module("paged_backend.engine.llm").LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
