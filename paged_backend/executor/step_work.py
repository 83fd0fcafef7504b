"""What a step has every rank do, as plain data that goes from the first rank to the others."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass
from typing import Any

import torch

from paged_backend.executor.batch import BuiltInputs
from paged_backend.kv.host_tier import Transfers


@dataclass(frozen=True, slots=True)
class StepWork:
    """One step, without what is drawn.

    Attributes:
        transfers, block_copies: as in `StepPlan`; block ids are the same in every rank.
        built: its inputs, on the CPU; None where nothing is computed.
    """

    transfers: Transfers
    block_copies: tuple[tuple[int, int], ...]
    built: BuiltInputs | None

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        arrays: dict[str, Any] | None = None
        if self.built is not None:
            values = {field.name: getattr(self.built, field.name) for field in dataclasses.fields(BuiltInputs)}
            arrays = {
                name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in values.items()
            }
        moves = self.transfers.swap_outs, self.transfers.swap_ins
        return pickle.dumps((moves, self.block_copies, arrays), pickle.HIGHEST_PROTOCOL)

    @classmethod
    def from_bytes(cls, data: bytes) -> StepWork:
        """Of data that this program's own first rank has sent."""
        moves, block_copies, arrays = pickle.loads(data)
        built = None
        if arrays is not None:
            values: dict[str, Any] = {
                name: value if value is None or isinstance(value, int) else torch.from_numpy(value)
                for name, value in arrays.items()
            }
            built = BuiltInputs(**values)
        return cls(Transfers(swap_outs=moves[0], swap_ins=moves[1]), block_copies, built)
