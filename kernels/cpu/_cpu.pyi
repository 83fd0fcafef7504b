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

class Runtime:
    def __init__(self, num_threads: int, instruction_set: str = "auto") -> None: ...
    @property
    def instruction_set(self) -> str: ...

class PackedLinear:
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def gated(self) -> bool: ...
    @property
    def route(self) -> str: ...
    def run(
        self, runtime: Runtime, x: Tensor, out: Tensor, residual: Tensor | None = None, activation: str = ""
    ) -> None: ...

def pack_linear(runtime: Runtime, weight: Tensor, bias: Tensor | None = None, gated: bool = False) -> PackedLinear: ...
def pack_quantized_linear(
    runtime: Runtime,
    values: Tensor,
    scales: Tensor,
    bits: int,
    group_size: int,
    bias: Tensor | None = None,
    gated: bool = False,
    route: str = "auto",
) -> PackedLinear: ...
def time_linear(
    layers: list[PackedLinear], runtime: Runtime, x: Tensor, out: Tensor, activation: str, seconds: float
) -> float: ...
def measure_limits(runtime: Runtime, seconds: float) -> dict[str, float]: ...
