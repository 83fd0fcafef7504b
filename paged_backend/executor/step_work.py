"""What a step has every rank do, as plain data that goes from the first rank to the others."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass
from typing import Any

import torch

from paged_backend.kernels.interface import StepInputs
from paged_backend.kv.host_tier import Transfers


@dataclass(frozen=True, slots=True)
class StepWork:
    """One step, without what is drawn.

    Attributes:
        transfers, block_copies: as in `StepPlan`; block ids are the same in every rank.
        inputs: on the CPU; None where nothing is computed.
        sources: as in `BuiltInputs`; tokens that the step before draws are known to the first rank alone.
    """

    transfers: Transfers
    block_copies: tuple[tuple[int, int], ...]
    inputs: StepInputs | None
    sources: torch.Tensor | None = None

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        arrays: dict[str, Any] | None = None
        if self.inputs is not None:
            values = {field.name: getattr(self.inputs, field.name) for field in dataclasses.fields(StepInputs)}
            arrays = {
                name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in values.items()
            }
        moves = self.transfers.swap_outs, self.transfers.swap_ins
        sources = None if self.sources is None else self.sources.numpy()
        return pickle.dumps((moves, self.block_copies, arrays, sources), pickle.HIGHEST_PROTOCOL)

    @classmethod
    def from_bytes(cls, data: bytes) -> StepWork:
        """Of data that this program's own first rank has sent."""
        moves, block_copies, arrays, sources = pickle.loads(data)
        inputs = None
        if arrays is not None:
            values: dict[str, Any] = {
                name: value if value is None or isinstance(value, int) else torch.from_numpy(value)
                for name, value in arrays.items()
            }
            inputs = StepInputs(**values)
        transfers = Transfers(swap_outs=moves[0], swap_ins=moves[1])
        return cls(transfers, block_copies, inputs, None if sources is None else torch.from_numpy(sources))
