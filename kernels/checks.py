"""The one place that looks at arguments before an implementation does. Cheap: it runs at every call.

Shapes, dtypes and layouts are checked for every device. Values (slots) are checked where reading them costs
microseconds, on the CPU; block tables are checked by the implementations while they read them. Rows appear here by
their width alone, so that a recorder can use the same checks before there is a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.interface import ExpertWeights, LinearWeight, StepInputs
from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.reference.activation import ACTIVATIONS
from paged_backend.kernels.tensors import check_tensor, describe

FLOAT_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))
"""What weights, tables and activations may be held in."""

_LARGEST = torch.finfo(torch.float32).max
_MAX_WINDOW = 2**31


def check_inputs(inputs: StepInputs) -> None:
    """Raises KernelError for tensors that do not make one step, their values aside."""
    bound = inputs.max_query_len
    if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int) or bound < 0):
        raise KernelError(f"max_query_len must be None or a number of rows, got {bound!r}.")
    num_rows = _length("token_ids", inputs.token_ids)
    num_sequences = _length("context_lens", inputs.context_lens)
    num_groups = _num_groups(inputs, num_rows, num_sequences)
    for name, tensor, dtype, size in (
        ("token_ids", inputs.token_ids, torch.int64, num_rows),
        ("positions", inputs.positions, torch.int64, num_rows),
        ("slot_mapping", inputs.slot_mapping, torch.int64, num_groups * num_rows),
        ("context_lens", inputs.context_lens, torch.int32, num_sequences),
        ("query_start", inputs.query_start, torch.int32, num_sequences + 1),
        ("block_tables", inputs.block_tables, torch.int32, num_groups * num_sequences),
        ("logits_rows", inputs.logits_rows, torch.int64, None),
    ):
        if tensor is None and name == "logits_rows":
            continue
        check_tensor(name, tensor)
        assert tensor is not None
        dims = 2 if name == "block_tables" else 1
        if tensor.dtype != dtype or tensor.dim() != dims or not tensor.is_contiguous():
            raise KernelError(
                f"{name} must be contiguous {str(dtype).removeprefix('torch.')} with {dims} dimensions, "
                f"got {describe(tensor)}."
            )
        if size is not None and tensor.shape[0] != size:
            other = "token_ids" if dtype == torch.int64 else "context_lens"
            groups = f" and the {num_groups} groups of slot_mapping say" if num_groups > 1 else " says"
            raise KernelError(f"{name} must have {size} entries as {other}{groups}, got {describe(tensor)}.")


def check_pack_linear(weight: Tensor | QuantizedWeight, bias: Tensor | None, gated: bool) -> None:
    """Raises KernelError for arguments that `Kernels.pack_linear` does not take."""
    if isinstance(weight, QuantizedWeight):
        values = weight.values
    else:
        values = weight
        _check_float("weight", weight)
    if values.dim() != 2 or 0 in values.shape or values.stride(1) != 1:
        raise KernelError(f"weight must be [N, K], neither of them 0, rows contiguous, got {describe(values)}.")
    if gated and values.shape[0] % 2:
        raise KernelError(f"weight of a gated layer must have an even number of rows, got {describe(values)}.")
    check_vector("bias", bias, values.shape[0])


def check_linear(width: int, weight: LinearWeight, gated: bool, activation: str | None, has_residual: bool) -> None:
    """Raises KernelError for arguments that `Kernels.linear` does not take; width is x's."""
    if width != weight.num_inputs:
        raise KernelError(f"x must be [T, {weight.num_inputs}] as the weight's inputs say, got a width of {width}.")
    if activation is not None and (not isinstance(activation, str) or activation not in ACTIVATIONS):
        raise KernelError(f"activation {activation!r} is unknown; known: {', '.join(sorted(ACTIVATIONS))}.")
    if gated and has_residual:
        raise KernelError("residual cannot be added in a gated layer; leave it out.")


def check_pack_experts(inner: Sequence[Tensor | QuantizedWeight], outer: Sequence[Tensor | QuantizedWeight]) -> None:
    """Raises KernelError for arguments that `Kernels.pack_experts` does not take."""
    for name, weights in (("inner", inner), ("outer", outer)):
        if not isinstance(weights, (list, tuple)) or not weights:
            raise KernelError(f"{name} must be a list of one weight for each expert, at least one.")
        for weight in weights:
            check_pack_linear(weight, None, gated=name == "inner")
    if len(inner) != len(outer):
        raise KernelError(f"outer must hold as many weights as inner, {len(inner)}, got {len(outer)}.")
    (rows, width), kind = _weight_shape(inner[0]), _weight_format(inner[0])[:-1]
    for name, weights, shape in (("inner", inner, (rows, width)), ("outer", outer, (width, rows // 2))):
        for weight in weights:
            if _weight_shape(weight) != shape:
                raise KernelError(f"{name} must hold weights {list(shape)}, got {list(_weight_shape(weight))}.")
            if _weight_format(weight) != _weight_format(weights[0]) or _weight_format(weight)[:-1] != kind:
                raise KernelError(
                    f"{name} must hold weights of one dtype or quantized format on one device, got others."
                )


def check_experts(weights: ExpertWeights, num_experts_per_tok: int, activation: str) -> None:
    """Raises KernelError for arguments that `Kernels.experts` does not take."""
    if not isinstance(num_experts_per_tok, int) or not 1 <= num_experts_per_tok <= weights.num_experts:
        raise KernelError(f"num_experts_per_tok must be in 1..{weights.num_experts}, got {num_experts_per_tok!r}.")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise KernelError(f"activation {activation!r} is unknown; known: {', '.join(sorted(ACTIVATIONS))}.")


def check_embedding(table: Tensor, indices: str) -> None:
    """Raises KernelError for arguments that `Kernels.embedding` does not take."""
    _check_float("table", table)
    if table.dim() != 2 or 0 in table.shape or not table.is_contiguous():
        raise KernelError(f"table must be contiguous [num_indices, width], none of them 0, got {describe(table)}.")
    if indices not in ("token_ids", "positions"):
        raise KernelError(f"indices must be 'token_ids' or 'positions', got {indices!r}.")


def check_rms_norm(width: int, weight: Tensor, eps: float) -> None:
    """Raises KernelError for arguments that `Kernels.rms_norm` does not take; width is x's."""
    check_tensor("weight", weight)
    check_layer_norm(width, weight, None, eps)


def check_layer_norm(width: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    """Raises KernelError for arguments that `Kernels.layer_norm` does not take; width is x's."""
    check_vector("weight", weight, width)
    check_vector("bias", bias, width)
    _check_eps("eps", eps)


def check_qkv_to_cache(
    width: int,
    cache: LayerCache,
    num_heads: int,
    rotary: tuple[Tensor, Tensor] | None,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    norm_eps: float,
) -> None:
    """Raises KernelError for arguments that `Kernels.qkv_to_cache` does not take, the slots aside; width is qkv's."""
    head_size = cache.head_size
    _check_heads(num_heads, cache)
    wanted = (num_heads + 2 * cache.num_kv_heads) * head_size
    if width != wanted:
        raise KernelError(
            f"qkv must be [T, {wanted}] for {num_heads} query heads and this cache's {cache.num_kv_heads} of "
            f"{head_size}, got a width of {width}."
        )
    if (query_norm is None) != (key_norm is None):
        raise KernelError("query_norm and key_norm must be given both, or neither.")
    check_vector("query_norm", query_norm, head_size)
    check_vector("key_norm", key_norm, head_size)
    _check_eps("norm_eps", norm_eps)
    if rotary is None:
        return
    cos, sin = rotary
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(name, table)
        if table.dtype != torch.float32 or table.dim() != 2 or not table.is_contiguous():
            raise KernelError(
                f"{name} must be contiguous float32 [positions, D_rot] (angles lose too much in less), "
                f"got {describe(table)}."
            )
    if not 0 < cos.shape[1] <= head_size or cos.shape[1] % 2:
        raise KernelError(f"cos must have an even D_rot of at most {head_size}, got {describe(cos)}.")
    if sin.shape != cos.shape:
        raise KernelError(f"sin must be like cos ({describe(cos)}), got {describe(sin)}.")


def check_paged_attention(width: int, cache: LayerCache, scale: float, sliding_window: int, soft_cap: float) -> None:
    """Raises KernelError for arguments that `Kernels.paged_attention` does not take; width is the query's."""
    if width % cache.head_size:
        raise KernelError(f"query must be [T, Hq * {cache.head_size}] for this cache, got a width of {width}.")
    _check_heads(width // cache.head_size, cache)
    if not _is_number(scale) or scale <= 0.0:
        raise KernelError(f"scale must be a positive number, got {scale!r}.")
    is_whole = isinstance(sliding_window, int) and not isinstance(sliding_window, bool)
    if not is_whole or not 0 <= sliding_window < _MAX_WINDOW:
        raise KernelError(f"sliding_window must be 0 (none), or less than 2 ** 31, got {sliding_window!r}.")
    if not _is_number(soft_cap) or soft_cap < 0.0:
        raise KernelError(f"soft_cap must be 0.0 (none) or a positive number, got {soft_cap!r}.")


def check_soft_cap(cap: float) -> None:
    """Raises KernelError for arguments that `Kernels.soft_cap` does not take."""
    if not _is_number(cap) or cap <= 0.0:
        raise KernelError(f"cap must be a positive number, got {cap!r}.")


def check_copy_blocks(storage: Tensor, pairs: Tensor) -> None:
    """Raises KernelError for arguments that `Kernels.copy_blocks` does not take."""
    check_storage(storage)
    _check_pairs(storage, pairs)
    check_indices("pairs", pairs, storage.shape[2])
    _check_destinations(pairs[:, 1])


def check_swap_blocks(storage: Tensor, slots: Tensor, pairs: Tensor, inwards: bool) -> None:
    """Raises KernelError for arguments that `Kernels.swap_blocks` does not take."""
    check_storage(storage)
    check_tensor("slots", slots)
    num_lanes, two, num_blocks, block_bytes = storage.shape
    if slots.dtype != torch.uint8 or slots.shape[1:] != (num_lanes, two, block_bytes) or not slots.is_contiguous():
        raise KernelError(
            f"slots must be contiguous uint8 [S, {num_lanes}, {two}, {block_bytes}] as storage says, got "
            f"{describe(slots)}."
        )
    if slots.device != storage.device and not (storage.is_cuda and slots.is_cpu and slots.is_pinned()):
        raise KernelError(f"slots must be on the device of storage, or pinned for a GPU, got them on {slots.device}.")
    _check_pairs(storage, pairs)
    if not isinstance(inwards, bool):
        raise KernelError(f"inwards must be true or false, got {inwards!r}.")
    check_indices("pairs", pairs[:, 0], num_blocks)
    check_indices("pairs", pairs[:, 1], slots.shape[0])
    _check_destinations(pairs[:, 0 if inwards else 1])


def _check_pairs(storage: Tensor, pairs: Tensor) -> None:
    check_tensor("pairs", pairs)
    if pairs.dtype != torch.int64 or pairs.dim() != 2 or pairs.shape[1] != 2:
        raise KernelError(f"pairs must be int64 [N, 2], got {describe(pairs)}.")
    check_devices(("storage", storage), ("pairs", pairs))


def _check_destinations(destinations: Tensor) -> None:
    if destinations.device.type == "cpu" and destinations.unique().numel() != destinations.numel():
        raise KernelError(f"pairs must have different destinations, got {destinations.tolist()}.")


def check_storage(storage: Tensor) -> None:
    """Raises KernelError for what does not hold all blocks of a cache."""
    check_tensor("storage", storage)
    if storage.dtype != torch.uint8 or storage.dim() != 4 or storage.shape[1] != 2 or not storage.is_contiguous():
        raise KernelError(f"storage must be contiguous uint8 [L, 2, B, block_bytes], got {describe(storage)}.")


def check_vector(name: str, vector: Tensor | None, size: int) -> None:
    """Raises KernelError for what is neither None nor contiguous float32 [size]."""
    if vector is None:
        return
    check_tensor(name, vector)
    if vector.dtype != torch.float32 or vector.dim() != 1 or vector.shape[0] != size or not vector.is_contiguous():
        raise KernelError(f"{name} must be contiguous float32 [{size}], got {describe(vector)}.")


def check_indices(name: str, indices: Tensor, bound: int) -> None:
    """Every index in 0 .. bound - 1. Only on the CPU: reading a value of another device would wait for it."""
    if indices.device.type != "cpu" or indices.numel() == 0:
        return
    low, high = indices.aminmax()
    if low < 0 or high >= bound:
        raise KernelError(f"{name} must be in 0..{bound - 1}, got {int(low)}..{int(high)}.")


def check_devices(first: tuple[str, Tensor], *others: tuple[str, Tensor | None]) -> None:
    """Raises KernelError for tensors, with their names, that are on another device than the first."""
    device = first[1].device
    for name, tensor in others:
        if tensor is not None and tensor.device != device:
            raise KernelError(f"{name} must be on the device of {first[0]}, {device}, got {tensor.device}.")


def group_part(name: str, tensor: Tensor, cache: LayerCache, size: int) -> Tensor:
    """The `size` entries of a step's slots or block tables, checked by `check_inputs`, that are a layer's own.

    Raises:
        KernelError: the step has no such group.
    """
    begin = cache.group * size
    if begin + size > tensor.shape[0]:
        raise KernelError(f"{name} must hold the cache's group {cache.group}, got {describe(tensor)}.")
    return tensor[begin : begin + size]


def _num_groups(inputs: StepInputs, num_rows: int, num_sequences: int) -> int:
    """What slot_mapping is made for; in a step without rows, block_tables."""
    name, size = ("slot_mapping", num_rows) if num_rows else ("block_tables", num_sequences)
    tensor = getattr(inputs, name)
    check_tensor(name, tensor)
    return max(1, tensor.shape[0] // size) if tensor.dim() and size > 0 else 1


def _length(name: str, vector: Tensor) -> int:
    """Entries of what should be a vector, -1 if it is none."""
    check_tensor(name, vector)
    return vector.shape[0] if vector.dim() == 1 else -1


def _is_number(value: object) -> bool:
    """Whether float32 can hold it."""
    return isinstance(value, (int, float)) and abs(value) <= _LARGEST


def _weight_shape(weight: Tensor | QuantizedWeight) -> tuple[int, int]:
    num_outputs, num_inputs = (weight.values if isinstance(weight, QuantizedWeight) else weight).shape
    return num_outputs, num_inputs


def _weight_format(weight: Tensor | QuantizedWeight) -> tuple[object, ...]:
    """What makes two weights multiplied alike: the group, which may be a whole row, last."""
    if isinstance(weight, QuantizedWeight):
        return weight.values.dtype, weight.bits, weight.values.device, weight.group_size
    return weight.dtype, 0, weight.device, 0


def _check_float(name: str, tensor: Tensor) -> None:
    check_tensor(name, tensor)
    if tensor.dtype not in FLOAT_DTYPES:
        raise KernelError(f"{name} must be float32, bfloat16 or float16, got {describe(tensor)}.")


def _check_heads(num_heads: int, cache: LayerCache) -> None:
    if not isinstance(num_heads, int) or num_heads < 1 or num_heads % cache.num_kv_heads:
        raise KernelError(f"query heads must be a multiple of the cache's {cache.num_kv_heads}, got {num_heads!r}.")


def _check_eps(name: str, eps: float) -> None:
    if not _is_number(eps) or eps < 0.0:
        raise KernelError(f"{name} must be 0 or more, got {eps!r}.")
