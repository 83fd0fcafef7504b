"""What a runner needs of the machine that it computes on, and the CPU, which has it in two ways."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Ordered(Protocol[T_co]):
    """Work that a device does when it gets there."""

    def result(self) -> T_co:
        """What the work gave; on a GPU that is tensors that may still be computed.

        Raises:
            Exception: what the work raised.
        """
        ...


class Device(Protocol):
    """Does work in the order in which it is told of it. One thread tells it, and waits for nothing but `result`s.

    Attributes:
        torch_device: where tensors are.
        overlaps: whether work is done while the host goes on.
        records: whether `capture` is worth its while.
    """

    torch_device: torch.device
    overlaps: bool
    records: bool

    def order(self, work: Callable[[], T]) -> Ordered[T]:
        """Has work done after all that was ordered before; what it raises is raised by `result`."""
        ...

    def lend(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Contiguous host tensors, int32 or int64, for work to read, whatever becomes of them after this call; on the
        device. As few calls as can be: each is a copy. What an earlier one gave stays."""
        ...

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Work on fixed tensors, to be done again and again with what is in them then, into the same result."""
        ...

    def free_bytes_after(self, *works: Callable[[], object]) -> int | None:
        """Bytes of memory that are free beside what each of some works takes while it is done, all of them together;
        None where that is the host's, of which a step takes next to nothing: then no work is done."""
        ...

    def check(self) -> None:
        """Waits for all that was ordered, after some has failed: whether work can still be done.

        Raises:
            EngineUnavailableError: never again in this process.
        """
        ...

    def mark(self) -> Any:
        """Now, where work is."""
        ...

    def seconds(self, begin: Any, end: Any) -> float:
        """Between two marks. Waits for them."""
        ...

    def beside(self, work: Callable[[], object], after: Sequence[Any]) -> Any:
        """For work to call: has something done beside all that is ordered, in order with what else is done there.

        Args:
            after: marks, which must have been passed before.

        Returns:
            A mark behind it.
        """
        ...

    def wait(self, mark: Any) -> None:
        """For work to call: what is ordered from now on begins when a mark has been passed."""
        ...

    def close(self) -> None:
        """Ends what belongs to it; nothing must be ordered any more."""
        ...


class CpuDevice:
    """The CPU: work is done at once, or, where it overlaps, in a thread of its own.

    Overlapped, it is a GPU's stand-in: what is ordered next may not depend on what the host has read.
    """

    torch_device = torch.device("cpu")
    records = False

    def __init__(self, *, overlaps: bool = False) -> None:
        self.overlaps = overlaps
        self._thread: ThreadPoolExecutor | None = None
        self._side_thread: ThreadPoolExecutor | None = None
        if overlaps:
            # torch keeps the number of its threads by thread.
            settings = torch.set_num_threads, (torch.get_num_threads(),)
            self._thread = ThreadPoolExecutor(1, "paged-device", *settings)
            self._side_thread = ThreadPoolExecutor(1, "paged-device-side", *settings)

    def order(self, work: Callable[[], T]) -> Ordered[T]:
        """See `Device`."""
        if self._thread is None:
            return Done(work)
        future: Future[T] = self._thread.submit(_without_gradients, work)
        return future

    def lend(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """See `Device`."""
        return [tensor.clone() for tensor in tensors] if self.overlaps else tensors

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Device`. The work is done each time."""
        result = _without_gradients(work).clone()

        def replay() -> Tensor:
            return result.copy_(work())

        return replay

    def free_bytes_after(self, *works: Callable[[], object]) -> int | None:
        """See `Device`."""
        return None

    def check(self) -> None:
        """See `Device`. It always can, once what goes on beside is over."""
        if self._side_thread is not None:
            self._side_thread.submit(lambda: None).result()

    def mark(self) -> Ordered[float]:
        """See `Device`. It gives the time."""
        return Done(time.perf_counter)

    def seconds(self, begin: Ordered[float], end: Ordered[float]) -> float:
        """See `Device`."""
        return end.result() - begin.result()

    def beside(self, work: Callable[[], object], after: Sequence[Ordered[float]]) -> Ordered[float]:
        """See `Device`."""

        def timed() -> float:
            for mark in after:
                mark.result()
            work()
            return time.perf_counter()

        return Done(timed) if self._side_thread is None else self._side_thread.submit(_without_gradients, timed)

    def wait(self, mark: Ordered[float]) -> None:
        """See `Device`."""
        mark.result()

    def close(self) -> None:
        """See `Device`."""
        for thread in (self._thread, self._side_thread):
            if thread is not None:
                thread.shutdown()


class Done(Generic[T]):
    """Work that has been done, well or not."""

    __slots__ = ("_error", "_value")

    def __init__(self, work: Callable[[], T]) -> None:
        self._error: Exception | None = None
        try:
            self._value = _without_gradients(work)
        except Exception as error:
            self._error = error

    def result(self) -> T:
        """See `Ordered`."""
        if self._error is not None:
            raise self._error
        return self._value


def _without_gradients(work: Callable[[], T]) -> T:
    with torch.inference_mode():
        return work()
