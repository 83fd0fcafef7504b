"""Whatever goes into the bindings of paged attention and block copies, they give a result or a Python error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paged_backend.kernels.cache_layout import block_bytes
from paged_backend.kernels.cpu import _cpu

RUNTIMES = [_cpu.Runtime(2, name) for name in _cpu.available_instruction_sets()]


def arguments() -> dict[str, Any]:
    """A call that is right: three rows, heads of 8 numbers, blocks of 4 tokens."""
    size = block_bytes("float32", 2, 4, 8)
    return {
        "query": torch.randn(3, 32),
        "keys": torch.zeros(5, size, dtype=torch.uint8),
        "values": torch.zeros(5, size, dtype=torch.uint8),
        "dtype": "float32",
        "num_kv_heads": 2,
        "block_size": 4,
        "head_size": 8,
        "block_tables": torch.tensor([[0, 1], [3, 2]], dtype=torch.int32),
        "query_start": torch.tensor([0, 1, 3], dtype=torch.int32),
        "context_lens": torch.tensor([8, 5], dtype=torch.int32),
        "out": torch.zeros(3, 32),
        "scale": 0.3,
        "sliding_window": 0,
        "soft_cap": 0.0,
    }


def other_tensors(tensor: Tensor) -> st.SearchStrategy[Any]:
    """Tensors of other shapes, dtypes, strides and contents, and what is none."""
    shapes = st.lists(st.integers(0, 6), max_size=4)
    dtypes = st.sampled_from((torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bfloat16))
    made = st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), shapes, dtypes)
    changed = [
        tensor[:-1],
        tensor[..., :-1],
        tensor[..., ::2],
        tensor.flip(0) if tensor.dim() > 1 else tensor[:0],
        tensor.t() if tensor.dim() == 2 else tensor.unsqueeze(0),
        torch.cat((tensor, tensor)),
        None,
        "tensor",
    ]
    return st.one_of(made, st.sampled_from(changed))


INTEGERS = st.one_of(st.integers(-3, 300), st.sampled_from((2**31 - 1, 2**31, 2**62, -(2**63), 2**63)))
FLOATS = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def wrong_calls(draw: st.DrawFn) -> dict[str, Any]:
    call = arguments()
    for name in draw(st.lists(st.sampled_from(sorted(call)), min_size=1, max_size=3, unique=True)):
        value = call[name]
        if isinstance(value, Tensor) and value.dtype == torch.int32 and draw(st.booleans()):
            numbers = st.sampled_from((-(2**31), -1, 0, 1, 2, 3, 4, 5, 8, 9, 2**31 - 1))
            content = draw(st.lists(numbers, min_size=value.numel(), max_size=value.numel()))
            call[name] = torch.tensor(content, dtype=torch.int32).view(value.shape)
        elif isinstance(value, Tensor):
            call[name] = draw(other_tensors(value))
        elif isinstance(value, str):
            call[name] = draw(st.sampled_from(("float32", "bfloat16", "float16", "int8", "", "int4")))
        else:
            call[name] = draw(INTEGERS if isinstance(value, int) else FLOATS)
    return call


@settings(max_examples=300, deadline=None)
@given(call=wrong_calls())
def test_any_call(call: dict[str, Any]) -> None:
    for runtime in RUNTIMES:
        try:
            _cpu.paged_attention(runtime, **call)
        except (ValueError, TypeError):
            pass
    right = arguments()
    _cpu.paged_attention(RUNTIMES[0], **right)
    assert not right["out"].isnan().any()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("query", torch.zeros(3, 31), "query"),
        ("query", torch.zeros(2, 32), "out must be like query"),
        ("out", torch.zeros(3, 64)[:, ::2], "out"),
        ("keys", torch.zeros(5, 64, dtype=torch.uint8), "keys"),
        ("keys", torch.zeros(4, 256, dtype=torch.uint8), "values"),
        ("values", torch.zeros(5, 512, dtype=torch.uint8)[:, ::2], "values"),
        ("values", torch.zeros(5 * 256 + 1, dtype=torch.uint8)[1:].view(5, 256), "values"),
        ("dtype", "int4", "dtype"),
        ("head_size", 0, "head_size"),
        ("block_size", -1, "block_size"),
        ("num_kv_heads", 2**40, "num_kv_heads"),
        ("query_start", torch.zeros(4, dtype=torch.int32), "query_start"),
        ("block_tables", torch.zeros(3, 2, dtype=torch.int32), "block_tables"),
        ("sliding_window", -1, "sliding_window"),
        ("scale", float("nan"), "scale"),
        ("soft_cap", -1.0, "soft_cap"),
        ("soft_cap", float("inf"), "soft_cap"),
    ],
)
def test_the_message_names_the_argument(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _cpu.paged_attention(RUNTIMES[0], **{**arguments(), name: value})


def test_heads_that_do_not_divide_are_refused() -> None:
    rows = {"query": torch.zeros(3, 24), "out": torch.zeros(3, 24)}
    with pytest.raises(ValueError, match="query's heads must be a multiple of the cache's 2, got 3"):
        _cpu.paged_attention(RUNTIMES[0], **{**arguments(), **rows})


def test_heads_of_more_than_256_numbers_are_refused() -> None:
    keys = torch.zeros(5, block_bytes("int8", 1, 4, 257), dtype=torch.uint8)
    call = {"keys": keys, "values": keys, "dtype": "int8", "num_kv_heads": 1, "head_size": 257}
    rows = {"query": torch.zeros(3, 257), "out": torch.zeros(3, 257)}
    with pytest.raises(ValueError, match=r"head_size must be in 1\.\.256"):
        _cpu.paged_attention(RUNTIMES[0], **{**arguments(), **call, **rows})


@settings(max_examples=200, deadline=None)
@given(
    storage=st.builds(
        lambda shape, dtype: torch.ones(shape, dtype=dtype),
        st.lists(st.integers(0, 70), min_size=3, max_size=5),
        st.sampled_from((torch.uint8, torch.int8)),
    ),
    pairs=st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), max_size=6),
    columns=st.integers(1, 3),
)
def test_any_copy(storage: Tensor, pairs: list[tuple[int, int]], columns: int) -> None:
    table = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)[:, :columns].contiguous()
    try:
        _cpu.copy_blocks(RUNTIMES[0], storage, table)
    except (ValueError, TypeError):
        assert torch.equal(storage, torch.ones_like(storage))
