"""Triton's kernels on a GPU where there is one, else in Triton's interpreter (see tests/conftest.py)."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.registry import select_kernels
from tests.kernels.triton.dtypes import DTYPES

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tensors have to be."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """What activations are held in."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def kernels(device: torch.device, dtype: torch.dtype) -> Kernels:
    """With activations of that dtype on that device."""
    return select_kernels("triton", device, dtype=dtype)
