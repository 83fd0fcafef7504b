"""How one layer's blocks of the paged cache lie in memory.

So copying, swapping and storing blocks is copying bytes. Letters as in `interface`. A block of values holds the numbers
[Hkv, bs, D]. A block of keys holds [Hkv, D, bs] (turned: one of a CPU's vectors holds the same number of several
tokens' keys), or, in a cache with token-major keys, [Hkv, bs, D] as well (one of a GPU's loads holds several numbers
of one key). All row-major. Which of the two it is, the implementation says (`Kernels.token_major_keys`).

In a cache of dtype int8 or fp8_e4m3 float32 scales [Hkv, bs] follow, from the next multiple of 4 bytes on: a token's
head is number * scale, with scale = max(abs(head)) / LARGEST_NUMBERS[dtype], and number = head / scale rounded to the
nearest, ties to even. A head under `smallest_head` is all zeros with scale 0; one that holds NaN or infinity is zeros
with scale NaN. Padding fills a block to a multiple of 64 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.tensors import check_tensor, describe

CACHE_DTYPES: MappingProxyType[str, torch.dtype] = MappingProxyType(
    {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "int8": torch.int8,
        "fp8_e4m3": torch.float8_e4m3fn,
    }
)
"""What a cache's numbers can be held in, by name."""

LARGEST_NUMBERS: MappingProxyType[str, float] = MappingProxyType({"int8": 127.0, "fp8_e4m3": 448.0})
"""The dtypes that have a scale for each token's head, and the number that its largest becomes."""

_MAX_GROUPS = 2**16

_ALIGNMENT_BYTES = 64
"""A cache line, and the widest vector: blocks begin on it, if their tensor does."""


def block_bytes(dtype: str, num_kv_heads: int, block_size: int, head_size: int) -> int:
    """Bytes of one block of one layer's keys; its values take as many again.

    Raises:
        KernelError: the dtype is unknown, or a size is less than 1.
    """
    if not isinstance(dtype, str) or dtype not in CACHE_DTYPES:
        raise KernelError(f"cache dtype must be one of {', '.join(CACHE_DTYPES)}, got {dtype!r}.")
    if any(not isinstance(size, int) or size < 1 for size in (num_kv_heads, block_size, head_size)):
        raise KernelError(
            f"a cache needs whole sizes of at least 1, got {num_kv_heads!r} heads, blocks of {block_size!r} tokens and "
            f"heads of {head_size!r} numbers."
        )
    size = num_kv_heads * block_size * head_size * CACHE_DTYPES[dtype].itemsize
    if dtype in LARGEST_NUMBERS:
        size = scales_offset(num_kv_heads, block_size, head_size) + 4 * num_kv_heads * block_size
    return -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def scales_offset(num_kv_heads: int, block_size: int, head_size: int) -> int:
    """The byte of a block with scales at which they begin. Its numbers are of one byte."""
    return -(-num_kv_heads * block_size * head_size // 4) * 4


def smallest_head(dtype: str) -> float:
    """The smallest largest number of a head whose scale is a normal float32; dtype is one with scales."""
    return LARGEST_NUMBERS[dtype] * 2.0**-126


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """One layer's paged cache. The tensors are written by `Kernels.qkv_to_cache`.

    Attributes:
        keys: uint8 [B, block_bytes]; blocks contiguous, the first dimension may have any stride that is a multiple of
            64.
        values: like keys.
        dtype: a key of CACHE_DTYPES: what the numbers are held in.
        group: which of a step's slots and block tables are this layer's (`interface.StepInputs`).
        token_major_keys: whether keys lie as values do.

    Raises:
        KernelError: a tensor is not of the shape, dtype or layout that the sizes ask for.
    """

    keys: Tensor
    values: Tensor
    dtype: str
    num_kv_heads: int
    block_size: int
    head_size: int
    group: int = 0
    token_major_keys: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.token_major_keys, bool):
            raise KernelError(f"token_major_keys must be true or false, got {self.token_major_keys!r}.")
        if isinstance(self.group, bool) or not isinstance(self.group, int) or not 0 <= self.group < _MAX_GROUPS:
            raise KernelError(f"group must be a whole number in 0..{_MAX_GROUPS - 1}, got {self.group!r}.")
        size = block_bytes(self.dtype, self.num_kv_heads, self.block_size, self.head_size)
        for name, tensor in (("keys", self.keys), ("values", self.values)):
            check_tensor(name, tensor)
            if tensor.dtype != torch.uint8 or tensor.dim() != 2 or tensor.shape[1] != size:
                raise KernelError(f"{name} must be uint8 [B, {size}] for this cache, got {describe(tensor)}.")
            if tensor.stride(1) != 1 or tensor.stride(0) % _ALIGNMENT_BYTES or tensor.stride(0) < size:
                raise KernelError(
                    f"{name} must be contiguous blocks a multiple of {_ALIGNMENT_BYTES} bytes apart, got strides "
                    f"{tensor.stride()}."
                )
            if tensor.data_ptr() % _ALIGNMENT_BYTES:
                raise KernelError(f"{name} must begin at a multiple of {_ALIGNMENT_BYTES} bytes.")
        if self.keys.shape != self.values.shape or self.keys.device != self.values.device:
            raise KernelError(
                f"values must be like keys ({describe(self.keys)}, {self.keys.device}), "
                f"got {describe(self.values)}, {self.values.device}."
            )

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool, B."""
        return self.keys.shape[0]

    @property
    def has_scales(self) -> bool:
        """Whether the dtype is one with a scale for each token's head."""
        return self.dtype in LARGEST_NUMBERS

    def key_numbers(self) -> Tensor:
        """A view of the keys, [B, Hkv, D, bs] however they lie, in the cache's dtype."""
        if self.token_major_keys:
            return self._token_major(self.keys).mT
        return self._numbers(self.keys).view(-1, self.num_kv_heads, self.head_size, self.block_size)

    def value_numbers(self) -> Tensor:
        """A view of the values, [B, Hkv, bs, D], in the cache's dtype."""
        return self._token_major(self.values)

    def key_scales(self) -> Tensor:
        """A view of the keys' scales, float32 [B, Hkv, bs], where the dtype has some."""
        return self._scales(self.keys)

    def value_scales(self) -> Tensor:
        """A view of the values' scales, float32 [B, Hkv, bs], where the dtype has some."""
        return self._scales(self.values)

    def _token_major(self, blocks: Tensor) -> Tensor:
        return self._numbers(blocks).view(-1, self.num_kv_heads, self.block_size, self.head_size)

    def _numbers(self, blocks: Tensor) -> Tensor:
        dtype = CACHE_DTYPES[self.dtype]
        count = self.num_kv_heads * self.head_size * self.block_size
        return blocks[:, : count * dtype.itemsize].view(dtype)

    def _scales(self, blocks: Tensor) -> Tensor:
        assert self.has_scales, f"a cache of {self.dtype} has no scales"
        begin = scales_offset(self.num_kv_heads, self.block_size, self.head_size)
        end = begin + 4 * self.num_kv_heads * self.block_size
        return blocks[:, begin:end].view(torch.float32).view(-1, self.num_kv_heads, self.block_size)
