"""What Triton's kernels are tested in."""

from __future__ import annotations

import torch

from tests.kernels.rounding import FLOAT_DTYPES

DTYPES = [dtype for dtype in FLOAT_DTYPES if dtype is not torch.bfloat16 or torch.cuda.is_available()]
"""Triton's interpreter computes bfloat16 wrongly."""
