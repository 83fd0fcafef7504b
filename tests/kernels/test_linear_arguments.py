"""Wrong arguments of packed linear layers raise, and never crash: by hand, and at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.linear import CpuLinear
from paged_backend.kernels.cpu.recorder import run
from paged_backend.kernels.quantized_weight import QuantizedWeight
from tests.kernels.linear_case import INSTRUCTION_SETS, make_weight, pack, runtime
from tests.kernels.step_case import make_inputs


def misaligned(*shape: int) -> Tensor:
    size = int(np.prod(shape)) * 4
    return torch.from_numpy(np.zeros(size + 4, dtype=np.uint8)[1 : size + 1].view(np.float32).reshape(shape))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(3, 7), {}, r"^x must be \[T, 8\] as the weight's inputs say, got a width of 7"),
        (torch.zeros(8), {}, r"^x must be float32 \[T, width\]"),
        (torch.zeros(3, 8, dtype=torch.float64), {}, "^x must be float32"),
        (torch.zeros(3, 8, dtype=torch.bfloat16), {}, "^x must be float32"),
        (torch.zeros(3, 8, device="meta"), {}, "on the CPU, got float32 .* on meta"),
        (misaligned(3, 8), {}, "^x must be aligned"),
        (torch.zeros(3, 8), {"residual": torch.zeros(3, 8)}, r"^residual must be \[T, 16\], got a width of 8"),
        (torch.zeros(3, 8), {"residual": torch.zeros(2, 16)}, "^residual must have 3 rows"),
        (torch.zeros(3, 8), {"residual": torch.zeros(3, 16).int()}, "^residual must be float32"),
        (torch.zeros(3, 8), {"activation": "sillu"}, "^activation 'sillu' is unknown"),
    ],
)
def test_calls_that_do_not_fit(x: Tensor, options: dict[str, Any], message: str) -> None:
    layer = pack("auto", torch.randn(16, 8))
    assert layer is not None
    with pytest.raises(KernelError, match=message):
        layer(x, **options)


def test_gated_layers() -> None:
    with pytest.raises(KernelError, match=r"^a gated weight must have as many gates as ups, got 7 rows"):
        pack("auto", torch.randn(7, 8), gated=True)
    layer = pack("auto", torch.randn(8, 8), gated=True)
    assert layer is not None
    with pytest.raises(KernelError, match=r"^residual cannot be added in a gated layer"):
        layer(torch.zeros(2, 8), residual=torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (torch.zeros(4, 8, dtype=torch.int8), {}, "^weight must be float"),
        (torch.zeros(4), {}, "^weight must be float"),
        (torch.zeros(0, 8), {}, "^weight must be float .* neither of them 0"),
        (torch.zeros(4, 0), {}, "^weight must be float .* neither of them 0"),
        (torch.zeros(4, 8, device="meta"), {}, "^weight must be float .* on meta"),
        (torch.zeros(8, 4).T, {}, "^weight's last dimension"),
        (torch.zeros(4, 8), {"bias": torch.zeros(5)}, r"^bias must be \[4\], got \[5\]"),
        (torch.zeros(4, 8), {"bias": torch.zeros(4).double()}, "^bias must be float32"),
        (torch.zeros(4, 8), {"bias": torch.zeros(8)[::2]}, "^bias must be contiguous"),
        (torch.zeros(4, 8), {"route": "int8"}, "^route int8 is for quantised weights only"),
        (make_weight("int8/row", 4, 8), {"route": "int7"}, "^route must be auto, float32, int16 or int8, got int7"),
        (make_weight("int8/row", 4, 8), {"bias": torch.zeros(5)}, r"^bias must be \[4\]"),
    ],
)
def test_weights_that_do_not_fit(weight: Any, options: dict[str, Any], message: str) -> None:
    bias = options.pop("bias", None)
    with pytest.raises(KernelError, match=message):
        pack("auto", weight, bias, **options)


def test_a_route_that_is_not_there_says_so() -> None:
    with pytest.raises(KernelError, match=r"^route int8 is not there with instruction set portable"):
        CpuLinear(runtime("portable"), make_weight("int8/row", 4, 8), route="int8")


def test_automatic_routes() -> None:
    routes = {"avx512_vnni": "int8", "avx512": "int16", "avx2": "int16", "portable": "float32"}
    for instruction_set in INSTRUCTION_SETS:
        for name in ("int8/row", "int4/32"):
            layer = pack(instruction_set, make_weight(name, 4, 64))
            assert layer is not None
            assert layer.weight.route == routes[instruction_set]


def test_parameters_are_taken() -> None:
    weight, bias = torch.nn.Parameter(torch.randn(4, 8)), torch.nn.Parameter(torch.randn(4))
    layer = pack("auto", weight, bias)
    assert layer is not None
    x = torch.randn(2, 8, requires_grad=True)
    torch.testing.assert_close(layer(x), (x @ weight.T + bias).detach())


DTYPES = st.sampled_from(
    [torch.float32] * 6 + [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.int64, torch.bool]
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor | None:
    """Any small tensor: mostly two dimensions of float32, of odd sizes and strides."""
    if draw(st.integers(0, 9)) == 0:
        return None
    shape = draw(
        st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 16]), min_size=2, max_size=2)
        | st.lists(st.integers(0, 9), max_size=4)
    )
    base = torch.zeros([size + 3 for size in shape], dtype=draw(DTYPES))
    tensor = base[tuple(slice(0, size) for size in shape)]
    change = draw(st.integers(0, 9))
    if change < 5:
        tensor = tensor.contiguous()
    elif change == 5 and tensor.dim() == 2:
        tensor = tensor.T
    elif change == 6 and tensor.dim() == 2:
        tensor = tensor[:1].expand(shape[0], shape[1]) if shape[0] else tensor
    return tensor


FEW = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def of_zeros(target: _cpu.Runtime, packed: _cpu.PackedLinear, num_rows: int) -> Tensor:
    """What a program makes of rows of zeros."""
    program = _cpu.Program(target)
    program.finish([program.linear(program.input(packed.num_inputs), packed, "", None)])
    out = torch.ones(num_rows, program.output_stride(0))
    run(program, make_inputs([num_rows]), [torch.zeros(num_rows, packed.num_inputs)], [out])
    return out[:, : packed.num_outputs]


@FEW
@given(
    tensors(),
    tensors(),
    tensors(),
    st.integers(-2, 9),
    st.integers(-2, 20),
    st.booleans(),
    st.sampled_from(["auto", "int16", "x"]),
)
def test_random_weights(
    weight: Any, scales: Any, bias: Any, bits: int, group_size: int, gated: bool, route: str
) -> None:
    target = runtime("auto")
    for make in (
        lambda: _cpu.pack_linear(target, weight, bias, gated),
        lambda: _cpu.pack_quantized_linear(target, weight, scales, bits, group_size, bias, gated, route),
        lambda: _cpu.pack_quantized_linear(
            target, torch.zeros(4, 8, dtype=torch.int8), scales, 8, group_size, bias, gated, route
        ),
    ):
        try:
            layer = make()
        except (ValueError, TypeError):
            continue
        assert (of_zeros(target, layer, 3) == 0).all()


def test_quantized_weight_from_its_parts() -> None:
    with pytest.raises(KernelError, match="bits"):
        QuantizedWeight(torch.zeros(2, 2, dtype=torch.int8), torch.zeros(2, 1), 5, 2)
