"""An NVIDIA GPU as a runner's device: work is queued on one stream, and the host goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from paged_backend.executor.device import Done, Ordered

T = TypeVar("T")

_WARM_UPS = 2
"""Runs before a recording: kernels are compiled, and libraries choose theirs."""


class CudaDevice:
    """See `Device`. All work is queued on the current stream; what it gives are tensors that may still be computed."""

    records = True

    def __init__(self, torch_device: torch.device, *, overlaps: bool) -> None:
        self.torch_device = torch_device
        self.overlaps = overlaps
        self._pool: Any = None
        # The process's: sums that cuBLAS makes in parts would else be added in 16 bits.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

    def order(self, work: Callable[[], T]) -> Ordered[T]:
        """See `Device`. The work is queued at once."""
        with torch.cuda.device(self.torch_device):
            return Done(work)

    def lend(self, tensor: Tensor) -> Tensor:
        """See `Device`. Waits for nothing: torch keeps the pinned memory from others until the copy is done."""
        return torch.empty_like(tensor, pin_memory=True).copy_(tensor).to(self.torch_device, non_blocking=True)

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Device`. All recordings share one pool of memory: only one is replayed at a time."""
        with torch.cuda.device(self.torch_device), torch.inference_mode():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    work()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                result = work()
            self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def free_bytes_after(self, work: Callable[[], object]) -> int:
        """See `Device`."""
        with torch.cuda.device(self.torch_device):
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            work()
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
            return max(free - peak, 0)

    def mark(self) -> torch.cuda.Event:
        """See `Device`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """See `Device`."""
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds / 1000

    def close(self) -> None:
        """See `Device`."""
        torch.cuda.synchronize(self.torch_device)
