"""The one place that looks at arguments before an implementation does. Cheap: it runs at every call.

Shapes, dtypes and layouts are checked for every device. Values (slots) are checked where reading them costs
microseconds, on the CPU; block tables are checked by the implementations while they read them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.reference.activation import ACTIVATIONS

FLOAT_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))
"""What activations, weights and caches may be held in."""


def check_write_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    """Raises KernelError for arguments that `Kernels.write_kv` does not take."""
    _check_caches(key_cache, value_cache)
    _check_float("key", key)
    _check_float("value", value)
    num_blocks, num_kv_heads, block_size, head_size = key_cache.shape
    shape = (slot_mapping.shape[0] if slot_mapping.dim() == 1 else -1, num_kv_heads, head_size)
    if slot_mapping.dtype != torch.int64 or slot_mapping.dim() != 1:
        raise KernelError(f"slot_mapping must be int64 [T], got {_describe(slot_mapping)}.")
    if key.shape != shape:
        raise KernelError(f"key must be {list(shape)} for this cache and slot_mapping, got {_describe(key)}.")
    if value.shape != shape:
        raise KernelError(f"value must be {list(shape)} for this cache and slot_mapping, got {_describe(value)}.")
    _check_indices("slot_mapping", slot_mapping, num_blocks * block_size)


def check_paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    scale: float,
    sliding_window: int,
    soft_cap: float,
) -> None:
    """Raises KernelError for arguments that `Kernels.paged_attention` does not take, the tables' values
    aside."""
    _check_caches(key_cache, value_cache)
    _check_float("query", query)
    _, num_kv_heads, _, head_size = key_cache.shape
    if query.dim() != 3 or query.shape[2] != head_size:
        raise KernelError(f"query must be [T, Hq, {head_size}] for this cache, got {_describe(query)}.")
    if query.shape[1] == 0 or query.shape[1] % num_kv_heads:
        raise KernelError(f"query's heads must be a multiple of the cache's {num_kv_heads}, got {_describe(query)}.")
    if query.stride(2) != 1 or query.stride(1) != head_size:
        raise KernelError("query's last two dimensions must be contiguous; call contiguous() on it first.")
    num_sequences = context_lens.shape[0] if context_lens.dim() == 1 else -1
    for name, tensor, dims in (
        ("context_lens", context_lens, 1),
        ("query_start", query_start, 1),
        ("block_tables", block_tables, 2),
    ):
        if tensor.dtype != torch.int32 or tensor.dim() != dims or not tensor.is_contiguous():
            raise KernelError(f"{name} must be contiguous int32 with {dims} dimensions, got {_describe(tensor)}.")
    if query_start.shape[0] != num_sequences + 1:
        raise KernelError(
            f"query_start must be [{num_sequences + 1}], one more than context_lens, got {_describe(query_start)}."
        )
    if block_tables.shape[0] != num_sequences:
        raise KernelError(
            f"block_tables must be [{num_sequences}, max_blocks] as context_lens says, got {_describe(block_tables)}."
        )
    if not 0.0 < scale < float("inf"):
        raise KernelError(f"scale must be a positive number, got {scale!r}.")
    if sliding_window < 0:
        raise KernelError(f"sliding_window must be 0 (none) or more, got {sliding_window!r}.")
    if not 0.0 <= soft_cap < float("inf"):
        raise KernelError(f"soft_cap must be 0.0 (none) or a positive number, got {soft_cap!r}.")


def check_copy_blocks(cache: Tensor, pairs: Tensor) -> None:
    """Raises KernelError for arguments that `Kernels.copy_blocks` does not take."""
    if cache.dim() != 6 or cache.shape[1] != 2:
        raise KernelError(f"cache must be [L, 2, B, Hkv, bs, D], got {_describe(cache)}.")
    if pairs.dtype != torch.int64 or pairs.dim() != 2 or pairs.shape[1] != 2:
        raise KernelError(f"pairs must be int64 [N, 2], got {_describe(pairs)}.")
    _check_indices("pairs", pairs, cache.shape[2])


def check_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: Tensor | None) -> None:
    """Raises KernelError for arguments that `Kernels.rms_norm` and `Kernels.layer_norm` do not take."""
    _check_float("x", x)
    if x.dim() == 0:
        raise KernelError(f"x must be [..., H], got {_describe(x)}.")
    _check_vector("weight", weight, x.shape[-1])
    _check_vector("bias", bias, x.shape[-1])
    if eps < 0:
        raise KernelError(f"eps must be 0 or more, got {eps!r}.")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise KernelError(f"residual must be like x ({_describe(x)}), got {_describe(residual)}.")


def check_rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Raises KernelError for arguments that `Kernels.rotary` does not take."""
    _check_float("query", query)
    _check_float("key", key)
    if query.dim() != 3:
        raise KernelError(f"query must be [T, Hq, D], got {_describe(query)}.")
    num_rows, _, head_size = query.shape
    if key.dim() != 3 or key.shape[0] != num_rows or key.shape[2] != head_size:
        raise KernelError(f"key must be [{num_rows}, Hkv, {head_size}] like query, got {_describe(key)}.")
    if cos.dim() != 2 or cos.shape[0] != num_rows or cos.shape[1] > head_size or cos.shape[1] % 2:
        raise KernelError(f"cos must be [{num_rows}, D_rot], D_rot even and at most {head_size}, got {_describe(cos)}.")
    if cos.dtype != torch.float32:
        raise KernelError(f"cos must be float32 (angles lose too much in less), got {_describe(cos)}.")
    if sin.shape != cos.shape or sin.dtype != torch.float32:
        raise KernelError(f"sin must be like cos ({_describe(cos)}), got {_describe(sin)}.")


def check_activation(x: Tensor, name: str) -> None:
    """Raises KernelError for arguments that `Kernels.activation` does not take."""
    _check_float("x", x)
    if name not in ACTIVATIONS:
        raise KernelError(f"activation {name!r} is unknown; known: {', '.join(sorted(ACTIVATIONS))}.")


def check_gated_activation(gate: Tensor, up: Tensor, activation: str) -> None:
    """Raises KernelError for arguments that `Kernels.gated_activation` does not take."""
    check_activation(gate, activation)
    if up.shape != gate.shape or up.dtype != gate.dtype:
        raise KernelError(f"up must be like gate ({_describe(gate)}), got {_describe(up)}.")


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises KernelError for arguments that `Kernels.linear` does not take."""
    _check_float("x", x)
    _check_float("weight", weight)
    if weight.dim() != 2:
        raise KernelError(f"weight must be [N, K], got {_describe(weight)}.")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise KernelError(f"x must be [..., {weight.shape[1]}] as weight's K says, got {_describe(x)}.")
    _check_vector("bias", bias, weight.shape[0])


def _check_caches(key_cache: Tensor, value_cache: Tensor) -> None:
    _check_float("key_cache", key_cache)
    if key_cache.dim() != 4 or 0 in key_cache.shape:
        raise KernelError(f"key_cache must be [B, Hkv, bs, D], none of them 0, got {_describe(key_cache)}.")
    if value_cache.shape != key_cache.shape or value_cache.dtype != key_cache.dtype:
        raise KernelError(f"value_cache must be like key_cache ({_describe(key_cache)}), got {_describe(value_cache)}.")
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        _, _, block_size, head_size = cache.shape
        if cache.stride()[1:] != (block_size * head_size, head_size, 1):
            raise KernelError(f"{name}'s blocks must be contiguous [Hkv, bs, D], got strides {cache.stride()}.")


def _check_float(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise KernelError(f"{name} must be float32, bfloat16 or float16, got {_describe(tensor)}.")


def _check_vector(name: str, vector: Tensor | None, size: int) -> None:
    if vector is None:
        return
    _check_float(name, vector)
    if vector.dim() != 1 or vector.shape[0] != size:
        raise KernelError(f"{name} must be [{size}], got {_describe(vector)}.")


def _check_indices(name: str, indices: Tensor, bound: int) -> None:
    """Every index in 0 .. bound - 1. Only on the CPU: reading a value of another device would wait for it."""
    if indices.device.type != "cpu" or indices.numel() == 0:
        return
    low, high = indices.aminmax()
    if low < 0 or high >= bound:
        raise KernelError(f"{name} must be in 0..{bound - 1}, got {int(low)}..{int(high)}.")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
