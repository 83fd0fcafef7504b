"""Right arguments made wrong in every way that may come: strategies for hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.guarded import Guarded

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
WILD_INTEGERS = (-(2**63), -(2**31), -5, -1, 0, 1, 2, 3, 5, 7, 8, 9, 32, 100, 2**31 - 1, 2**31, 2**62, 2**63 - 1)
WILD_FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, -1.0, 0.0, 1e-45)


def _misaligned(tensor: Tensor) -> Tensor:
    memory = bytearray(tensor.nbytes + 1)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    whole[1:] = tensor.contiguous().flatten().view(torch.uint8)
    return torch.frombuffer(memory, dtype=tensor.dtype, offset=1).view(tensor.shape) if tensor.numel() else tensor


# Each takes a tensor of at least one dimension.
LAYOUTS: dict[str, Callable[[Tensor], Any]] = {
    "a row less": lambda tensor: tensor[:-1],
    "a column less": lambda tensor: tensor[..., :-1],
    "twice the rows": lambda tensor: torch.cat((tensor, tensor)),
    "every other number": lambda tensor: tensor[..., ::2],
    "numbers apart": lambda tensor: tensor.repeat_interleave(2, -1)[..., ::2],
    "rows apart": lambda tensor: torch.cat((tensor, tensor), -1)[..., : tensor.shape[-1]],
    "one row for all": lambda tensor: tensor[:1].expand(tensor.shape),
    "a dimension more": lambda tensor: tensor.unsqueeze(0),
    "a dimension less": lambda tensor: tensor.flatten(),
    "no dimension": lambda tensor: tensor.flatten().sum() if tensor.numel() else torch.tensor(0),
    "turned": lambda tensor: tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor,
    "transposed": lambda tensor: tensor.mT if tensor.dim() > 1 else tensor,
    "empty": lambda tensor: tensor[:0],
    "empty rows": lambda tensor: tensor[..., :0],
    "not aligned": _misaligned,
    "on another device": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "a parameter": lambda tensor: tensor.requires_grad_() if tensor.is_floating_point() else tensor,
    "None": lambda tensor: None,
    "a string": lambda tensor: "tensor",
    "an array": lambda tensor: tensor.numpy() if tensor.dtype != torch.bfloat16 else tensor,
    "a list": lambda tensor: tensor.tolist(),
}


@st.composite
def changed_tensors(draw: st.DrawFn, tensor: Tensor, guarded: Guarded) -> Any:
    """Another content, dtype, shape, layout or device, or what is no tensor."""
    way = draw(st.sampled_from(("content", "content", "dtype", *LAYOUTS)))
    if way == "dtype":
        return guarded.place(tensor.to(draw(st.sampled_from(DTYPES))))
    if way != "content":
        return LAYOUTS[way](tensor)
    numbers = WILD_FLOATS
    if not tensor.is_floating_point():
        bounds = torch.iinfo(tensor.dtype)
        numbers = tuple(number for number in WILD_INTEGERS if bounds.min <= number <= bounds.max)  # type: ignore
    for _ in range(draw(st.integers(1, 4)) if tensor.numel() else 0):
        place = draw(st.integers(0, tensor.numel() - 1))
        tensor.view(-1)[place] = draw(st.sampled_from(numbers))
    return tensor


def changed_values(value: Any) -> st.SearchStrategy[Any]:
    """Other numbers, names and flags, and what is none of these."""
    others: tuple[Any, ...] = (None, "x", "", 2.0, [1], (1, 2), True)
    if isinstance(value, bool):
        return st.sampled_from((not value,))
    if isinstance(value, (int, float)):
        return st.sampled_from((*others, *WILD_INTEGERS, *WILD_FLOATS, 1e300, 2**63, 10**30))
    return st.sampled_from((*others, "silu", "gelu", "positions", "float16", "int8", "float64", 1))
