"""What ranks exchange in the middle of a step. The order of every sum is fixed: by rank, whatever the step's size."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SCATTERED_ROWS = 256
"""From so many rows of a step on, each of three ranks or more adds up some of them for all: that moves less than
everybody's rows. Of two ranks it would move as much, in two exchanges."""

_TIMEOUT = datetime.timedelta(minutes=10)
"""What a peer may take to come to an exchange. One that has died is noticed by other means."""


class RankExchange:
    """Tensors between the ranks of one machine: over gloo on the CPU, over NCCL between GPUs.

    The groups are its own, apart from torch's default one, which belongs to the process: several engines live in one.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._group: Any = None  # torch's types of these do not say what they can do
        self._in_order: tuple[Any, Any] = None, None  # options of the two exchanges

    def connect(self, meeting: Path, device: torch.device) -> None:
        """Waits for the other ranks.

        Args:
            meeting: a file that all of them name, and nobody else can reach.
        """
        from torch import distributed as _distributed

        distributed: Any = _distributed
        c10d = distributed.distributed_c10d
        self._in_order = c10d.AllgatherOptions(), c10d.AllToAllOptions()
        for exchange in self._in_order:
            exchange.asyncOp = False  # on the current stream, with nothing to wait for on another
        store = distributed.FileStore(str(meeting), self.size)
        if device.type == "cuda":
            options = distributed.ProcessGroupNCCL.Options()
            options._timeout = _TIMEOUT
            self._group = distributed.ProcessGroupNCCL(store, self.rank, self.size, options)
            self._group.eager_connect_single_device(device)  # not in the middle of the first step
            return
        # The machine's own name, where gloo would listen otherwise, is the network's too.
        settings = distributed.ProcessGroupGloo._Options()
        settings._devices = [distributed.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        settings._timeout = _TIMEOUT
        self._group = distributed.ProcessGroupGloo(store, self.rank, self.size, settings)

    def abort(self) -> None:
        """Ends what waits for a peer that is gone. Any thread."""
        group, self._group = self._group, None
        if group is not None:
            group.abort()

    def gathered(self, x: Tensor) -> Tensor:
        """Each rank's tensor, all of x's shape: [size, *x.shape]."""
        out = x.new_empty(self.size, *x.shape)
        self._ready._allgather_base(out.view(-1), x.contiguous().view(-1), self._in_order[0]).wait()
        return out

    def swapped(self, x: Tensor) -> Tensor:
        """Of [size, ...] the part x[r] to each rank r; theirs for this one, in their order."""
        out = torch.empty_like(x)
        self._ready.alltoall_base(out, x, [], [], self._in_order[1]).wait()
        return out

    @property
    def _ready(self) -> Any:
        if self._group is None:
            raise RuntimeError("the ranks are not connected")
        return self._group


class SumOverRanks:
    """Adds up each rank's rows, [T, width]: in float32, in the order of ranks, rounded once."""

    def __init__(self, exchange: RankExchange) -> None:
        self._exchange = exchange

    def num_outputs(self, num_inputs: int) -> int:
        """As wide as they come."""
        return num_inputs

    def __call__(self, x: Tensor) -> Tensor:
        """See `Collective`. Both ways give the same bits."""
        num_rows, size = x.shape[0], self._exchange.size
        if num_rows < _SCATTERED_ROWS or size == 2:
            return _sum(self._exchange.gathered(x))
        part = -(-num_rows // size)
        padded = x.new_zeros(size, part, x.shape[1])
        padded.view(-1, x.shape[1])[:num_rows] = x
        own = _sum(self._exchange.swapped(padded))
        return self._exchange.gathered(own).view(-1, x.shape[1])[:num_rows]


class JoinOverRanks:
    """Lays each rank's rows side by side: [T, width] to [T, size * width]."""

    def __init__(self, exchange: RankExchange) -> None:
        self._exchange = exchange

    def num_outputs(self, num_inputs: int) -> int:
        """All ranks' together."""
        return num_inputs * self._exchange.size

    def __call__(self, x: Tensor) -> Tensor:
        """See `Collective`."""
        return self._exchange.gathered(x).transpose(0, 1).reshape(x.shape[0], -1)


def _sum(parts: Tensor) -> Tensor:
    """Over the first dimension, one after the other: torch's own sum may choose another order for another shape."""
    if parts.shape[0] == 2:  # one addition is in float32, and rounds once, by itself
        return parts[0] + parts[1]
    total = parts[0].float()
    for part in parts[1:]:
        total += part
    return total.to(parts.dtype)
