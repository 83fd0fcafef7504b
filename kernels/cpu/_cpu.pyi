"""What csrc/bindings.cpp defines."""

from torch import Tensor

def available_instruction_sets() -> list[str]: ...

class PagedAttention:
    def __init__(self, num_threads: int, instruction_set: str = "auto") -> None: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def instruction_set(self) -> str: ...
    def run(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        query_start: Tensor,
        context_lens: Tensor,
        out: Tensor,
        scale: float,
        sliding_window: int,
        soft_cap: float,
    ) -> None: ...
