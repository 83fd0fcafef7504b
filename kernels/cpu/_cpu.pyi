"""What csrc/bind*.cpp define. Wrong arguments raise ValueError (or TypeError, for what is no such tensor at all)."""

from torch import Tensor

def available_instruction_sets() -> list[str]: ...

class Runtime:
    def __init__(self, num_threads: int, instruction_set: str = "auto") -> None: ...
    @property
    def num_threads(self) -> int: ...
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
def time_paged_attention(
    runtime: Runtime,
    query: Tensor,
    layers: list[tuple[Tensor, Tensor]],
    dtype: str,
    num_kv_heads: int,
    block_size: int,
    head_size: int,
    block_tables: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    out: Tensor,
    scale: float,
    seconds: float,
) -> float: ...
def copy_blocks(runtime: Runtime, storage: Tensor, pairs: Tensor) -> None: ...
def sample(
    runtime: Runtime,
    logits: Tensor,
    seeds: object,
    temperatures: object,
    positions: object,
    top_k: object,
    top_p: object,
    min_p: object,
    num_logprobs: object,
    num_best: object,
    given: object,
    changes: object,
    token_masks: Tensor | None,
) -> tuple[list[int], list[float], list[int], dict[int, tuple[tuple[int, float], ...]], list[float]]: ...
def uniform(seed: int, position: int) -> float: ...
def philox(key: int, low: int, high: int) -> tuple[int, int]: ...

class Program:
    timed: bool
    def __init__(self, runtime: Runtime) -> None: ...
    def input(self, width: int) -> int: ...
    def embedding(self, table: Tensor, indices: str, add: int | None) -> int: ...
    def rms_norm(self, x: int, weight: Tensor, eps: float) -> int: ...
    def layer_norm(self, x: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> int: ...
    def linear(self, x: int, weight: PackedLinear, activation: str, residual: int | None) -> int: ...
    def qkv_to_cache(
        self,
        qkv: int,
        keys: Tensor,
        values: Tensor,
        dtype: str,
        num_kv_heads: int,
        block_size: int,
        head_size: int,
        num_heads: int,
        cos: Tensor | None,
        sin: Tensor | None,
        query_norm: Tensor | None,
        key_norm: Tensor | None,
        norm_eps: float,
        group: int,
    ) -> int: ...
    def paged_attention(
        self,
        query: int,
        keys: Tensor,
        values: Tensor,
        dtype: str,
        num_kv_heads: int,
        block_size: int,
        head_size: int,
        scale: float,
        sliding_window: int,
        soft_cap: float,
        group: int,
    ) -> int: ...
    def select_rows(self, x: int) -> int: ...
    def soft_cap(self, x: int, cap: float) -> int: ...
    def finish(self, outputs: list[int]) -> None: ...
    def width(self, buffer: int) -> int: ...
    def has_logits_rows(self, buffer: int) -> bool: ...
    def output_stride(self, index: int) -> int: ...
    def run(
        self,
        num_rows: int,
        token_ids: int,
        positions: int,
        slot_mapping: int,
        num_sequences: int,
        num_groups: int,
        max_blocks: int,
        block_tables: int,
        query_start: int,
        context_lens: int,
        num_logits_rows: int,
        logits_rows: int,
        inputs: list[tuple[int, int]],
        outputs: list[tuple[int, int]],
    ) -> None: ...
    @property
    def seconds(self) -> dict[str, float]: ...
