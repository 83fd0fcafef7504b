"""The names that users import are a promise: they change here first."""

from __future__ import annotations

import subprocess
import sys

import pytest

import paged_backend

PUBLIC_NAMES = [
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


def test_the_list() -> None:
    assert paged_backend.__all__ == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_each_name_is_there(name: str) -> None:
    assert getattr(paged_backend, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Llm'"):
        _ = paged_backend.Llm


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, paged_backend, paged_backend.handlers.cli; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "False"
