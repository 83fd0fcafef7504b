"""Triton's kernels on a GPU where there is one, else in Triton's interpreter (see tests/conftest.py)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.registry import select_kernels
from tests.kernels.triton.dtypes import DTYPES

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _used_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is as the last user left it: no number, or a large one, wherever a kernel forgets to write."""

    def used(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make_used(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            if tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1:
                return tensor.fill_(torch.nan)
            if tensor.numel():
                tensor.untyped_storage().fill_(0x7F)
            return tensor

        return make_used

    for where, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(where, name, used(getattr(where, name)))


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
