"""The search that all formats share: among some scales, the one whose rounded numbers come nearest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_NUMBERS_AT_ONCE = 2**17
"""How many numbers a thread looks at: half a MiB of float32, which stays in a core's cache."""


def for_parts(weight: Tensor, num_threads: int, quantize: Callable[[Tensor, slice], None]) -> None:
    """Calls quantize(rows in float32, which rows) for all rows of a weight, some at a time.

    On threads of its own: torch's wait for each other after every operation, which takes a hundred times as long where
    something else runs on the cores. They are best left at one (`torch.set_num_threads`) meanwhile.

    Args:
        weight: float [N, K].
        num_threads: of Python, at least 1; torch's operations let the others run.
    """
    num_outputs, num_inputs = weight.shape
    num_rows = max(1, _NUMBERS_AT_ONCE // num_inputs)
    parts = [slice(begin, begin + num_rows) for begin in range(0, num_outputs, num_rows)]

    is_inference = torch.is_inference_mode_enabled()  # torch keeps it for each thread

    def run(part: slice) -> None:
        with torch.inference_mode(is_inference):
            quantize(weight[part].float().contiguous(), part)

    with ThreadPoolExecutor(num_threads) as threads:
        for _ in threads.map(run, parts):  # looks at every result, so that an exception is raised here
            pass


def nearest_values(x: Tensor, candidates: Sequence[Tensor], low: int, high: int) -> tuple[Tensor, Tensor]:
    """Whole numbers and one scale for each row, with the least squared error among the candidates.

    Each candidate rounds the row to whole numbers q. For these the best scale is x.q / q.q, whatever the candidate was,
    and leaves the error x.x - (x.q)^2 / q.q: so that is what they are compared by.

    Args:
        x: float32 [n, width], finite.
        candidates: scales, each float32 [n, 1], at least one; a 0 rounds its row to zeros.
        low, high: bounds of the whole numbers.

    Returns:
        (whole numbers in float32 [n, width], scales [n, 1]).
    """
    values = x.new_zeros(x.shape)
    scales = x.new_zeros(x.shape[0], 1)
    best = x.new_full((x.shape[0], 1), -1.0)
    for candidate in candidates:
        divisor = torch.where(candidate == 0, torch.inf, candidate)
        rounded = (x / divisor).round_().clamp_(low, high)
        product = (x * rounded).sum(dim=1, keepdim=True)
        square = rounded.square().sum(dim=1, keepdim=True)
        scale = product / square.clamp(min=1.0)
        gain = product * scale
        better = gain > best
        best = torch.where(better, gain, best)
        scales = torch.where(better, scale, scales)
        values = torch.where(better, rounded, values)
    return values, scales
