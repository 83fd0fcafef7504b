"""Linear layers of float8 weights and float8 rows of activations."""

from __future__ import annotations

import pytest
import torch

from paged_backend.errors import KernelError
from paged_backend.kernels.triton.float8 import to_float8
from paged_backend.kernels.triton.kernels import TritonKernels
from paged_backend.kernels.triton.linear_weight import pack_linear
from paged_backend.quantization.fp8 import quantize_fp8
from tests.kernels.rounding import assert_within, unit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_to_float8(dtype: torch.dtype, device: torch.device) -> None:
    """A number comes back off by a sixteenth of itself at most, or by half of the smallest step."""
    x = torch.randn(4, 2500, device=device).to(dtype)
    x[1] *= torch.logspace(-7, 0, 2500, device=device).to(dtype)
    x[2] = 0.0
    x[3, 7] = torch.nan
    numbers, scales = to_float8(x, 2512)
    assert numbers.shape == (4, 2512) and not numbers[:3, 2500:].float().any()
    torch.testing.assert_close(scales[:3], x[:3].float().abs().amax(1) / 448)
    wide = numbers[:3, :2500].double() * scales[:3, None].double()
    bound = torch.maximum(x[:3].double().abs() / 16, scales[:3, None].double() * 2.0**-10)
    assert bool(((wide - x[:3].double()).abs() <= bound * (1 + 1e-5)).all())
    assert bool(scales[3].isnan()), "a row that is no number does not become one"
    assert torch.equal(to_float8(x[1:2], 2512)[0].view(torch.uint8), numbers[1:2].view(torch.uint8))


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(70, 20), (1100, 32)], ids=str)
def test_products(
    batch_invariant: bool, dtype: torch.dtype, num_inputs: int, num_outputs: int, device: torch.device
) -> None:
    """Of the rounded numbers, against float64: torch's scaled product, and ours."""
    kernels = TritonKernels(device, dtype, batch_invariant=batch_invariant)
    weight, bias = quantize_fp8(torch.randn(num_outputs, num_inputs)), torch.randn(num_outputs)
    exact_weight = (weight.values.double() * weight.scales.double()).to(device)
    x = torch.randn(3, num_inputs, device=device).to(dtype)
    residual = torch.randn(3, num_outputs, device=device).to(dtype)
    numbers, scales = to_float8(x, num_inputs + -num_inputs % 16)
    exact_x = numbers[:, :num_inputs].double() * scales.double()[:, None]
    sums = exact_x @ exact_weight.T + bias.to(device)
    magnitude = exact_x.abs() @ exact_weight.abs().T + bias.to(device).abs()
    # Tensor cores keep fewer bits of float8 products' sums than float32 has.
    error = magnitude * (num_inputs + 4) * unit(torch.float32) + (magnitude * 2.0**-12 if device.type == "cuda" else 0)
    plain = kernels.pack_linear(weight, bias)
    assert plain.num_bytes < num_outputs * (num_inputs + 24) + 16 * num_inputs
    assert_within(kernels.linear(x, plain, residual=residual), sums + residual.double(), error + residual.abs() * 1e-7)
    gated = kernels.linear(x, kernels.pack_linear(weight, bias, gated=True), activation="relu")
    gate, up = sums.chunk(2, 1)
    errors = error.chunk(2, 1)
    bound = errors[0] * up.abs() + gate.abs() * errors[1] + errors[0] * errors[1]
    assert_within(gated, gate.relu() * up, bound + (gate * up).abs() * 1e-7)


def test_a_row_has_the_bits_it_has_alone(device: torch.device) -> None:
    kernels = TritonKernels(device, torch.float16, batch_invariant=True)
    layer = kernels.pack_linear(quantize_fp8(torch.randn(32, 1100)))
    x = torch.randn(18, 1100, device=device).half()
    assert torch.equal(kernels.linear(x, layer)[4:5], kernels.linear(x[4:5], layer))


def test_a_card_without_float8(monkeypatch: pytest.MonkeyPatch) -> None:
    """An A100 says so when the model is loaded."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    weight, device = quantize_fp8(torch.randn(32, 64)), torch.device("cuda")
    with pytest.raises(KernelError, match=r"NVIDIA A100 cannot multiply.*8\.9.*int8"):
        pack_linear(weight, None, False, device=device, dtype=torch.float16, batch_invariant=False)
