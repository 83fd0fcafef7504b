"""An NVIDIA GPU as a runner's device: work is queued on one stream, and the host goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from paged_backend.errors import EngineUnavailableError
from paged_backend.executor.device import Done, Ordered
from paged_backend.executor.staging import Staging

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
        self._staging = Staging(torch_device)
        # The process's: sums that cuBLAS makes in parts would else be added in 16 bits.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

    def order(self, work: Callable[[], T]) -> Ordered[T]:
        """See `Device`. The work is queued at once."""
        torch.cuda.set_device(self.torch_device)  # the calling thread's, so for draws that follow as well
        return Done(work)

    def lend(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """See `Device`."""
        return self._staging.send(tensors)

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Device`. All recordings share one pool of memory, results too: a result is gone with the next replay."""
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
            # Held on to, each size's logits would have memory of their own.
            borrowed = _borrowed(result)

        def replay(_kept: object = work) -> Tensor:  # what work reads stays as long as this
            graph.replay()
            return borrowed

        return replay

    def free_bytes_after(self, *works: Callable[[], object]) -> int:
        """See `Device`."""
        with torch.cuda.device(self.torch_device):
            peaks = [_peak_bytes(work) for work in works]
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
            return max(free - sum(peaks), 0)

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

    def check(self) -> None:
        """See `Device`. An error that an illegal access or the hardware raised stays: every call of CUDA raises it."""
        try:
            torch.cuda.synchronize(self.torch_device)
        except Exception as error:
            raise EngineUnavailableError(
                f"The GPU is lost to this process ({str(error).partition(chr(10))[0]})."
            ) from error

    def close(self) -> None:
        """See `Device`."""
        with suppress(EngineUnavailableError):
            self.check()
            torch.cuda.empty_cache()


def _peak_bytes(work: Callable[[], object]) -> int:
    """That work takes at a time, beside what was taken before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class _Lent:
    """The memory of a tensor, for another that does not keep it from being given back."""

    def __init__(self, tensor: Tensor) -> None:
        self.__cuda_array_interface__ = {
            "version": 2,
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * tensor.itemsize for stride in tensor.stride()),
            "typestr": {torch.float32: "<f4", torch.int64: "<i8"}[tensor.dtype],
            "data": (tensor.data_ptr(), False),
        }


def _borrowed(tensor: Tensor) -> Tensor:
    return torch.as_tensor(_Lent(tensor), device=tensor.device)
