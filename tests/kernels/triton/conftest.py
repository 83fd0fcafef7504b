"""Triton's kernels on a GPU where there is one, else in Triton's interpreter (see tests/conftest.py)."""

from __future__ import annotations

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tensors have to be."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
