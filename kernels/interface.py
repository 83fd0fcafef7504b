"""What each operation takes, gives and changes. Every implementation and the reference follow this file.

Letters in shapes: T rows (tokens) of a step over all its sequences, R rows whose logits are wanted, S sequences of a
step, G groups of layers, which have block tables of their own (a model whose layers all see equally far back has one),
Hq query heads, Hkv key/value heads (Hq is a multiple of Hkv; query head h reads key/value head h // (Hq // Hkv)),
D head size, B blocks of the cache, bs tokens in a block, L layers, H hidden size, N outputs and K inputs of a linear
layer. "Float" is float32, bfloat16 or float16.

Activations are `Rows`: [T, width], as the implementation holds them, in its activation dtype (float32 on the CPU). They
are made by operations and go into operations; nobody else looks inside: an implementation may compute at once, or
write down what is to be computed (`compile`). Sums and transcendental functions are computed in float32; results are
rounded once, to the activation dtype. A row of a result depends on that row's token and its sequence alone.

Every operation raises `KernelError`, naming the argument, for a shape, dtype, layout or index that it does not take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.sampling_batch import LaunchedSamples, RecordedSampler, SampledBatch, SamplingBatch

Rows = Any
"""[rows, width] of activations, as an implementation holds them: a tensor, or the number of a buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """What one step computes, over the T tokens of its S sequences laid end to end. All tensors are contiguous.

    Attributes:
        token_ids: int64 [T].
        positions: int64 [T], each token's index in its sequence.
        slot_mapping: int64 [G * T], group after group, where its key and value go: block * bs + offset in the block,
            all different in a group.
        block_tables: int32 [G * S, max_blocks], group after group; entry i holds the sequence's tokens from i * bs on.
            Entries past the context, and those that every row's window has left behind, may hold anything.
        query_start: int32 [S + 1], from 0 to T, not decreasing; sequence s has the rows query_start[s] ..
            query_start[s + 1] - 1. A sequence may have no rows.
        context_lens: int32 [S], tokens of each sequence, those of this step included.
        logits_rows: int64 [R], the rows whose logits are wanted, or None for all T of them.
        max_query_len: a bound of the rows of every sequence, where whoever makes the step knows one: a launch on a GPU
            cannot look into query_start. None for no bound but T.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    query_start: Tensor
    context_lens: Tensor
    logits_rows: Tensor | None
    max_query_len: int | None = None


class LinearWeight(Protocol):
    """A linear layer as `Kernels.pack_linear` made it; for the same implementation's `linear` alone."""

    @property
    def num_inputs(self) -> int:
        """Width of the rows that go in, K."""
        ...

    @property
    def num_outputs(self) -> int:
        """Width of the rows that come out: N, or half of the weight's rows for a gated layer."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory that it holds, weight, scales and bias."""
        ...


class Collective(Protocol):
    """What several processes compute together, each of rows of its own, in the middle of a step.

    All of them call the same ones in the same order, for as many rows. What comes out for a row depends on that row in
    each process alone.
    """

    def num_outputs(self, num_inputs: int) -> int:
        """Width of the rows that come out where those that go in are num_inputs wide."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """float [rows, width] to [rows, num_outputs(width)] of the same dtype and device, on the device's stream; x is
        left as it is, and its columns are contiguous. The same numbers in every process."""
        ...


class ExpertWeights(Protocol):
    """The experts of a mixture as `Kernels.pack_experts` made them; for the same implementation's `experts` alone."""

    @property
    def num_experts(self) -> int:
        """E."""
        ...

    @property
    def num_inputs(self) -> int:
        """Width of the rows that go in, and of those that come out, H."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory that it holds, weights and scales."""
        ...


class OperationChoice(NamedTuple):
    """How an operation is computed.

    Attributes:
        implementation: "reference", "cpu" or "triton"; "none" where it is refused.
        reason: why this one, and why not another, in one sentence.
    """

    implementation: str
    reason: str


class Kernels(Protocol):
    """The operations of one device. They may be called from any one thread at a time."""

    @property
    def report(self) -> Mapping[str, OperationChoice]:
        """For each of OPERATIONS, what computes it and why."""
        ...

    @property
    def token_major_keys(self) -> bool:
        """How it likes the keys of its caches to lie (`cache_layout`)."""
        ...

    @property
    def cache_dtypes(self) -> Sequence[str]:
        """What its caches may be held in, keys of `cache_layout.CACHE_DTYPES`; the first where nobody asks for one."""
        ...

    def pack_linear(
        self, weight: Tensor | QuantizedWeight, bias: Tensor | None = None, *, gated: bool = False
    ) -> LinearWeight:
        """Makes a linear layer of a weight, as this implementation likes to read it. Once, at load; the result may
        share the weight's memory, or not.

        Args:
            weight: float [N, K] with stride 1 in K, held and used as it is, or in the dtype of the activations; or a
                QuantizedWeight.
            bias: float32 [N], or None for 0.
            gated: the weight's rows are all gates, then all ups (N = 2 * num_outputs).
        """
        ...

    def linear(
        self, x: Rows, weight: LinearWeight, *, activation: str | None = None, residual: Rows | None = None
    ) -> Rows:
        """activation(x @ weight.T + bias) + residual; a gated layer: activation(gate) * up (arXiv:2002.05202, eq. 5).

        With a quantized weight an implementation may round each row of x to whole numbers, of 8 bits with a scale for
        every 192 inputs or fewer, or of 16 bits for every 256, so as to sum whole products exactly; or, where the
        weight is float8_e4m3fn, to that, with a scale of its own. Where activations are not float32, sums may be
        rounded to their dtype before an activation, a gate or a residual.

        Args:
            x: [T, K].
            weight: of this implementation's `pack_linear`.
            activation: Hugging Face's name of a function (a key of `reference.activation.ACTIVATIONS`), or None for the
                identity.
            residual: [T, N] or None for 0; not for a gated layer.

        Returns:
            [T, num_outputs]. It may take the memory of residual, which must not be used any more.
        """
        ...

    def pack_experts(
        self, inner: Sequence[Tensor | QuantizedWeight], outer: Sequence[Tensor | QuantizedWeight]
    ) -> ExpertWeights:
        """Makes a mixture of E gated experts, as this implementation likes to read them. Once, at load.

        Args:
            inner: of each expert, a weight [2 * I, H] as for a gated `pack_linear`.
            outer: of each expert, a weight [H, I]. All weights are of one dtype or one quantized format.
        """
        ...

    def experts(
        self,
        x: Rows,
        router_logits: Rows,
        weights: ExpertWeights,
        *,
        num_experts_per_tok: int,
        norm_topk_prob: bool,
        activation: str,
        residual: Rows | None = None,
    ) -> Rows:
        """Sum over each row's experts e of p_e * outer_e @ (activation(gate_e @ x) * up_e @ x), plus residual.

        A row goes to the num_experts_per_tok experts with the largest logits, of equal ones the first; p is the softmax
        over all its logits (arXiv:2101.03961, 2.1) or, with norm_topk_prob, over those of its experts
        (arXiv:2401.04088, 2.1). Parts are added in the order of their logits, and may be rounded to the activations'
        dtype before.

        Args:
            x: [T, H].
            router_logits: [T, E], none of them NaN.
            weights: of this implementation's `pack_experts`.
            num_experts_per_tok: 1 .. E.
            norm_topk_prob: whether the parts of a row sum to 1.
            activation: as in `linear`.
            residual: [T, H], or None for 0.

        Returns:
            [T, H]. It may take the memory of residual, which must not be used any more.
        """
        ...

    def embedding(
        self, table: Tensor, indices: Literal["token_ids", "positions"], inputs: StepInputs, add: Rows | None = None
    ) -> Rows:
        """table[indices] + add.

        Args:
            table: float [num_indices, width], contiguous.
            indices: which of the inputs they are; each in 0 .. num_indices - 1.
            add: [T, width], or None for 0.

        Returns:
            [T, width]. It may take the memory of add, which must not be used any more.
        """
        ...

    def rms_norm(self, x: Rows, weight: Tensor, eps: float) -> Rows:
        """x / sqrt(mean(x ** 2) + eps) * weight, over each row (arXiv:1910.07467, eq. 4).

        Args:
            x: [T, H].
            weight: float32 [H].
            eps: added to the mean square.

        Returns:
            [T, H].
        """
        ...

    def layer_norm(self, x: Rows, weight: Tensor | None, bias: Tensor | None, eps: float) -> Rows:
        """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over each row (arXiv:1607.06450, eq. 3).

        Args:
            x: [T, H].
            weight: float32 [H], or None for 1.
            bias: float32 [H], or None for 0.
            eps: added to the (biased) variance.

        Returns:
            [T, H].
        """
        ...

    def qkv_to_cache(
        self,
        qkv: Rows,
        cache: LayerCache,
        inputs: StepInputs,
        *,
        num_heads: int,
        rotary: tuple[Tensor, Tensor] | None = None,
        query_norm: Tensor | None = None,
        key_norm: Tensor | None = None,
        norm_eps: float = 0.0,
    ) -> Rows:
        """Norms and turns queries and keys, and stores the keys and values at the step's slots of the cache.

        First an RMS norm over each head of query and key (Qwen3), then the turn by each token's position
        (arXiv:2104.09864, eq. 34): pairs are (i, i + D_rot / 2) as in GPT-NeoX and the Hugging Face checkpoints
        ("rotate half"), out = x * cos + rotate_half(x) * sin with rotate_half(a, b) = (-b, a); numbers past D_rot pass
        unchanged. Keys and values are rounded to the cache's dtype. Changes the cache, at its group's slots only.

        Args:
            qkv: [T, (num_heads + 2 * Hkv) * D]: all query heads, then all key heads, then all value heads.
            cache: this layer's.
            num_heads: Hq.
            rotary: (cos, sin), each float32 [positions, D_rot] contiguous, D_rot even and at most D, both halves given
                (they are mostly equal); every one of inputs.positions must be a row of them. None for no turn.
            query_norm, key_norm: float32 [D] weights of the norms; both or neither.
            norm_eps: added to the mean square.

        Returns:
            The queries, [T, Hq * D]. They may take the memory of qkv, which must not be used any more.
        """
        ...

    def paged_attention(
        self,
        query: Rows,
        cache: LayerCache,
        inputs: StepInputs,
        *,
        scale: float,
        sliding_window: int = 0,
        soft_cap: float = 0.0,
    ) -> Rows:
        """Causal softmax attention of new tokens over each sequence's cached tokens, the new ones included.

        Row r of sequence s (counted from 0) stands at position p = context_lens[s] - num_rows + r and attends to
        positions j with j <= p, and j > p - sliding_window when a window is set: out = softmax_j(cap(scale * q . k_j))
        . v_j, where cap(x) = soft_cap * tanh(x / soft_cap) when a soft cap is set (Gemma 2, arXiv:2408.00118, 2.2),
        else x. Paging as in arXiv:2309.06180, 4.1. Decode rows (one row of a sequence), chunks of prompts and whole
        prompts may be mixed freely.

        Args:
            query: [T, Hq * D].
            cache: this layer's, with the step's own keys and values in it.
            scale: what the dot products are multiplied with, mostly D ** -0.5.
            sliding_window: tokens that a row sees, itself included; 0 means all.
            soft_cap: bound of the scaled scores; 0.0 means none.

        Returns:
            [T, Hq * D].
        """
        ...

    def select_rows(self, x: Rows, inputs: StepInputs) -> Rows:
        """The rows whose logits are wanted, by inputs.logits_rows: [T, width] to [R, width]; all where that is None."""
        ...

    def soft_cap(self, x: Rows, cap: float) -> Rows:
        """cap * tanh(x / cap), cap positive. It may take the memory of x, which must not be used any more."""
        ...

    def collective(self, x: Rows, operation: Collective) -> Rows:
        """What the operation makes of rows: the one thing in a step that kernels have others compute."""
        ...

    def copy_blocks(self, storage: Tensor, pairs: Tensor) -> None:
        """Copies whole blocks of all layers, keys and values (copy on write). Changes storage in place.

        All sources are read before any destination is written, so a block may be both.

        Args:
            storage: uint8 [L, 2, B, block_bytes], contiguous.
            pairs: int64 [N, 2] of (source block, destination block); destinations all different.
        """
        ...

    def swap_blocks(self, storage: Tensor, slots: Tensor, pairs: Tensor, *, inwards: bool) -> None:
        """Copies whole blocks of all layers, keys and values, between the cache and other memory.

        On a GPU that is in the order of what was launched before, and nobody waits for it.

        Args:
            storage: uint8 [L, 2, B, block_bytes], contiguous.
            slots: uint8 [S, L, 2, block_bytes], contiguous, where storage is; or pinned on the CPU.
            pairs: int64 [N, 2] of (block, slot), where storage is; the destinations all different.
            inwards: from slots to blocks; else from blocks to slots.
        """
        ...

    def sample(self, logits: Tensor, batch: SamplingBatch) -> SampledBatch:
        """Draws each row's tokens, each row as if it were alone. Computed at once, never recorded.

        Args:
            logits: float32 [R, V], any row stride; not changed.
            batch: the parameters of the R rows.
        """
        ...

    def launch_sample(self, logits: Tensor, batch: SamplingBatch) -> LaunchedSamples:
        """`sample`, whose result is read later, where the device computes by itself: nothing here waits for it.

        Args:
            logits: see `sample`; read when the device gets there.
            batch: see `sample`; not looked at any more once this returns.
        """
        ...

    def recorded_sampler(self, max_rows: int, vocab_size: int) -> RecordedSampler | None:
        """What a recorded step can draw with; None for an implementation whose draws cannot be recorded.

        Raises:
            KernelError: so large a vocabulary cannot be sampled.
        """
        ...

    def warm_up(self, vocab_size: int) -> None:
        """Does what the first draw, copy or swap of blocks would else have to wait for: nothing, or compiles kernels.
        Those of a step are compiled when one of its size is first computed.

        Args:
            vocab_size: V of the logits that will be sampled.
        """
        ...

    def compile(self, step: Callable[[Kernels, StepInputs], Rows]) -> Callable[[StepInputs], Tensor]:
        """Makes a step that can be run many times with other inputs.

        An implementation may call `step` once, with kernels that record and inputs that hold no tokens, and then replay
        what it recorded: so `step` must make the same calls whatever the inputs are, and look at no value of them, not
        even whether logits_rows is None. The weights, tables and caches that it names are kept.

        Args:
            step: computes the logits of inputs with the kernels that it is given.

        Returns:
            inputs -> logits, float32 [R, width], any row stride, for the caller to change; their memory may be used
            again by the next run.
        """
        ...


OPERATIONS: tuple[str, ...] = (
    "linear",
    "experts",
    "embedding",
    "rms_norm",
    "layer_norm",
    "qkv_to_cache",
    "paged_attention",
    "select_rows",
    "soft_cap",
    "copy_blocks",
    "swap_blocks",
    "sample",
)
"""The names of the operations, in the order of `Kernels`."""
