"""Kernels that sample: the reference, and C++ on what this processor has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.kernels.sampling_case import ALL, CPU

CHOSEN = {"reference": ALL["reference"], "cpu": CPU[next(iter(CPU))]}


@pytest.fixture(params=CHOSEN)
def kernels(request: pytest.FixtureRequest) -> Any:
    return SimpleNamespace(sample=CHOSEN[request.param])
