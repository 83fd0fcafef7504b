"""Linear layers on a GPU against float64, and a row's bits against those it has alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paged_backend.config import ExecutorConfig
from paged_backend.errors import ConfigError, KernelError
from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.reference.activation import ACTIVATIONS
from paged_backend.kernels.registry import select_kernels
from paged_backend.kernels.triton import matmul
from paged_backend.kernels.triton.kernels import TritonKernels
from paged_backend.kernels.triton.linear_weight import TritonLinear
from tests.kernels.linear_case import exact_weight, make_weight
from tests.kernels.rounding import assert_within, unit

DTYPES = (torch.float32, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# A float weight twice: by the library's product, and by ours.
WEIGHTS = ("library", "float", "int8/row", "int8/32", "int4/row", "int4/32", "int4/128")
weights = pytest.mark.parametrize("name", WEIGHTS)


def packed(
    name: str, num_outputs: int, num_inputs: int, dtype: torch.dtype, device: torch.device, **options: object
) -> tuple[TritonKernels, TritonLinear, Tensor]:
    """Kernels, a layer of theirs, and its weight in float64."""
    stored = str(dtype).removeprefix("torch.") if name in ("library", "float") else name
    weight = make_weight(stored, num_outputs, num_inputs)
    kernels = TritonKernels(device, dtype, batch_invariant=name != "library")
    layer = kernels.pack_linear(weight, **options)  # type: ignore[arg-type]
    assert isinstance(layer, TritonLinear)
    assert (layer.num_inputs, layer.num_bytes >= num_inputs * num_outputs // 2) == (num_inputs, True)
    if layer.group_size:
        assert layer.scales is not None
        width = layer.numbers.shape[1] * (4 if layer.format == "int4" else 1)
        assert layer.scales.shape[0] * layer.group_size >= width, "what values were filled up with has no scales"
    return kernels, layer, exact_weight(weight).to(device)


@weights
@dtypes
@pytest.mark.parametrize(("num_rows", "num_inputs", "num_outputs"), [(3, 100, 70), (18, 600, 33)], ids=str)
def test_against_float64(
    name: str, dtype: torch.dtype, num_rows: int, num_inputs: int, num_outputs: int, device: torch.device
) -> None:
    bias = torch.randn(num_outputs).to(dtype).float()
    kernels, layer, weight = packed(name, num_outputs, num_inputs, dtype, device, bias=bias)
    x = torch.randn(num_rows, num_inputs, device=device).to(dtype)
    residual = torch.randn(num_rows, num_outputs, device=device).to(dtype)
    out = kernels.linear(x, layer, residual=residual.clone())
    assert out.dtype == dtype and out.shape == (num_rows, num_outputs)
    bias = bias.to(device).double()
    sums = x.double() @ weight.T + bias
    error = (
        (x.double().abs() @ weight.abs().T + bias.abs() + residual.double().abs())
        * (num_inputs + 3)
        * unit(torch.float32)
    )
    if name == "library":
        error += sums.abs() * unit(dtype)
    assert_within(out, sums + residual.double(), error)


@pytest.mark.parametrize(("name", "dtype"), [(name, DTYPES[index % 2]) for index, name in enumerate(WEIGHTS)])
def test_gate_and_up(name: str, dtype: torch.dtype, device: torch.device) -> None:
    bias = torch.randn(140).to(dtype).float()
    kernels, layer, weight = packed(name, 140, 96, dtype, device, bias=bias, gated=True)
    assert layer.num_outputs == 70
    x = torch.randn(4, 96, device=device).to(dtype)
    out = kernels.linear(x, layer, activation="silu")
    gate, up = (x.double() @ weight.T + bias.to(device)).chunk(2, 1)
    exact = torch.nn.functional.silu(gate) * up
    rounding = 2 * unit(dtype) if name == "library" else 0.0
    magnitude = (x.double().abs() @ weight.abs().T + bias.to(device).abs()).chunk(2, 1)
    sums_error = [part * (100 * unit(torch.float32) + rounding) for part in magnitude]
    # silu's slope is at most 1.1; its own error is a few roundings.
    error = 1.1 * sums_error[0] * up.abs() + gate.abs() * sums_error[1] + exact.abs() * 16 * unit(torch.float32)
    assert_within(out, exact, error + sums_error[0] * sums_error[1])


@pytest.mark.filterwarnings("ignore:overflow")  # exp of much, in the interpreter
@pytest.mark.parametrize("name", ["library", "float"])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations(name: str, activation: str, device: torch.device) -> None:
    kernels = TritonKernels(device, torch.float32, batch_invariant=name == "float")
    layer = kernels.pack_linear(torch.eye(32))
    x = torch.cat((torch.linspace(-20, 20, 96), torch.logspace(-9, 0, 32))).view(4, 32).to(device)
    x[0, :4] = torch.tensor([0.0, -0.0, 200.0, -200.0])
    out = kernels.linear(x, layer, activation=activation)
    exact = ACTIVATIONS[activation](x.double())
    # exp of a number is off by what the number's rounding makes of it, and its own roundings.
    assert_within(out, exact, exact.abs() * (x.double().abs() + 16) * unit(torch.float32) + 1e-7 * (x.abs() > 1))


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(
    ("name", "dtype", "gated"),
    [
        ("float", torch.float32, True),
        ("float", torch.float16, False),
        ("int8/row", torch.float16, True),
        ("int8/64", torch.float32, False),
        ("int4/64", torch.float16, False),
        ("int4/128", torch.float16, True),
    ],
    ids=str,
)
def test_a_row_has_the_bits_it_has_alone(
    name: str, dtype: torch.dtype, gated: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever tile and whatever programs its number of rows asks for."""
    num_inputs = 1100 if "int4" in name else 600
    kernels, layer, _ = packed(name, 24, num_inputs, dtype, device, bias=torch.randn(24), gated=gated)
    assert matmul.num_parts(layer) > 1
    x = torch.randn(66, num_inputs, device=device).to(dtype)
    alone = torch.cat([kernels.linear(x[row : row + 1], layer, activation="silu") for row in (0, 13)])
    beside = kernels.linear(x[:17], layer, activation="silu")
    assert torch.equal(beside[[0, 13]], alone)
    monkeypatch.setattr(matmul, "_FULL", 0)  # parts one after another
    for num_rows in (14, 66):
        after = kernels.linear(x[:num_rows], layer, activation="silu")
        assert torch.equal(after[[0, 13]], alone), num_rows
    assert torch.equal(kernels.linear(x[13:], layer, activation="silu")[:1], alone[1:])


def test_rows_apart(device: torch.device) -> None:
    wide = torch.randn(5, 80, device=device)
    for name in ("library", "float", "int8/row"):
        kernels, layer, _ = packed(name, 20, 64, torch.float32, device)
        expected = kernels.linear(wide[:, 3:67].contiguous(), layer, residual=wide[:, :20].contiguous())
        assert torch.equal(kernels.linear(wide[:, 3:67], layer, residual=wide.clone()[:, :20]), expected)
        turned = wide[:, 3:67].T.contiguous().T
        assert torch.equal(kernels.linear(turned, layer, residual=wide.clone()[:, :20]), expected)


@weights
def test_no_rows(name: str, device: torch.device) -> None:
    kernels, layer, _ = packed(name, 8, 32, torch.float32, device, gated=True)
    assert kernels.linear(torch.empty(0, 32, device=device), layer, activation="silu").shape == (0, 4)


def test_groups_that_no_tile_fits(device: torch.device) -> None:
    kernels = TritonKernels(device, torch.float32)
    values, scales = torch.zeros(4, 96, dtype=torch.int8), torch.ones(4, 4)
    with pytest.raises(KernelError, match=r"group_size must be a multiple of 32 or serve whole rows.*got 24"):
        kernels.pack_linear(QuantizedWeight(values, scales, 8, 24))


def test_parts_depend_on_the_weight_alone(device: torch.device) -> None:
    """Qwen3-0.6B's layers: as many programs as a large card has multiprocessors, from one row on."""
    for num_outputs, num_inputs, expected in ((1024, 3072, 8), (6144, 1024, 2), (4096, 1024, 2), (14336, 4096, 1)):
        values = torch.zeros(num_outputs, num_inputs, dtype=torch.int8)
        layer = TritonKernels(device, torch.float16).pack_linear(
            QuantizedWeight(values, torch.ones(num_outputs, 1), 8, num_inputs)
        )
        assert isinstance(layer, TritonLinear)
        assert matmul.num_parts(layer) == expected


def test_what_multiplies_is_said(device: torch.device) -> None:
    for batch_invariant, words in ((False, "float ones by the library's product"), (True, "weights of every format")):
        kernels = select_kernels("triton", device, dtype=torch.float16, batch_invariant=batch_invariant)
        assert kernels.report["linear"].implementation == "triton"
        assert words in kernels.report["linear"].reason
    with pytest.raises(ConfigError, match="batch_invariant is not for kernel_backend reference"):
        ExecutorConfig(kernel_backend="reference", batch_invariant=True)
