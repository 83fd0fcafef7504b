"""A compiled step gives the bits of its operations one by one, with fewer launches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.interface import Kernels, Rows, StepInputs
from paged_backend.kernels.triton import finish, norms
from paged_backend.kernels.triton.kernels import TritonKernels
from tests.kernels.experts_case import make_experts
from tests.kernels.linear_case import make_weight
from tests.kernels.step_case import make_inputs
from tests.kernels.triton.dtypes import DTYPES
from tests.kernels.triton.placed import placed_inputs

HIDDEN = 80
NUM_TOKENS = 6


class Layers:
    """Linear layers with a residual, each before a norm, and what else may come after one."""

    def __init__(self, kernels: Kernels, device: torch.device, weights: str) -> None:
        self.table = torch.randn(30, HIDDEN).to(device)
        bias = torch.randn(HIDDEN).to(device) if weights == "float32" else None
        self.first = kernels.pack_linear(make_weight(weights, HIDDEN, HIDDEN), bias)
        self.second = kernels.pack_linear(make_weight(weights, HIDDEN, HIDDEN), bias)
        self.gated = kernels.pack_linear(make_weight(weights, 2 * HIDDEN, HIDDEN), gated=True)
        self.router = kernels.pack_linear(make_weight("float32", 3, HIDDEN))
        self.experts = kernels.pack_experts(*make_experts(weights, 3, HIDDEN, 32))
        self.weight = torch.randn(HIDDEN).to(device)

    def step(self, kernels: Kernels, inputs: StepInputs) -> Rows:
        hidden = kernels.embedding(self.table, "token_ids", inputs)
        hidden = kernels.linear(kernels.rms_norm(hidden, self.weight, 1e-6), self.first, residual=hidden)
        wide = kernels.linear(kernels.rms_norm(hidden, self.weight, 1e-6), self.gated, activation="silu")
        hidden = kernels.linear(wide, self.second, residual=hidden)
        normed = kernels.layer_norm(hidden, None, self.weight, 1e-5)
        hidden = kernels.linear(normed, self.first, activation="tanh", residual=hidden)
        normed = kernels.layer_norm(hidden, self.weight, self.weight, 1e-5)
        logits = kernels.linear(normed, self.router)
        options = {"num_experts_per_tok": 2, "norm_topk_prob": True, "activation": "silu"}
        hidden = kernels.experts(normed, logits, self.experts, **options, residual=hidden)  # type: ignore[arg-type]
        normed = kernels.rms_norm(hidden, self.weight, 1e-5)
        # Nobody's norm: the rows are wanted as they are, twice.
        hidden = kernels.linear(normed, self.second, residual=hidden)
        chosen = kernels.select_rows(hidden, inputs)
        return kernels.linear(kernels.rms_norm(chosen, self.weight, 1e-6), self.first)


def inputs_on(device: torch.device) -> StepInputs:
    return placed_inputs(make_inputs([4, 2], num_tokens=30, logits_rows=torch.tensor([3, 5])), device)


@pytest.mark.parametrize("weights", ["float32", "int8/row"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits(dtype: torch.dtype, device: torch.device, weights: str) -> None:
    kernels = TritonKernels(device, dtype)
    layers = Layers(kernels, device, weights)
    expected = layers.step(kernels, inputs_on(device)).float()
    run = kernels.compile(layers.step)
    assert torch.equal(run(inputs_on(device)), expected)
    assert torch.equal(run(inputs_on(device)), expected)
    assert expected.isfinite().all() and expected.shape == (2, HIDDEN)


def test_a_sum_and_its_norm_are_one_launch(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = TritonKernels(device, torch.float32)
    layers = Layers(kernels, device, "float32")
    launched: list[str] = []

    class Counted:
        def __init__(self, name: str, kernel: Any) -> None:
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid: Any) -> Any:
            launched.append(self.name)
            return self.kernel[grid]

    monkeypatch.setattr(finish, "finish_kernel", Counted("finish", finish.finish_kernel))
    monkeypatch.setattr(norms, "norm_kernel", Counted("norm", norms.norm_kernel))
    kernels.compile(layers.step)(inputs_on(device))
    # Norms finish two linear layers and the experts; not the gated one, that with an activation, and the last one.
    assert launched == ["norm", "norm", "finish", "norm", "finish", "norm", "norm", "finish", "norm"]


def test_the_sum_is_there_after_its_norm(device: torch.device) -> None:
    kernels = TritonKernels(device, torch.float32)
    layers = Layers(kernels, device, "float32")
    x, residual = torch.randn(NUM_TOKENS, HIDDEN).to(device), torch.randn(NUM_TOKENS, HIDDEN).to(device)
    seen: list[Tensor] = []

    def step(kernels: Kernels, inputs: StepInputs) -> Rows:
        total = kernels.linear(x, layers.first, residual=residual.clone())
        seen.append(kernels.rms_norm(total, layers.weight, 1e-6))
        seen.append(kernels.rms_norm(total, layers.weight, 1e-6))
        return total

    total = kernels.compile(step)(inputs_on(device))
    assert torch.equal(total, kernels.linear(x, layers.first, residual=residual.clone()))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], kernels.rms_norm(total, layers.weight, 1e-6))


def test_other_inputs_are_refused(device: torch.device) -> None:
    kernels = TritonKernels(device, torch.float32)
    others = inputs_on(device)
    run = kernels.compile(lambda kernels, inputs: kernels.embedding(torch.zeros(30, 8).to(device), "token_ids", others))
    with pytest.raises(KernelError, match="inputs must be those that the step was called with"):
        run(inputs_on(device))


def test_a_norms_weight_must_fit_unfinished_rows(device: torch.device) -> None:
    kernels = TritonKernels(device, torch.float32)
    layers = Layers(kernels, device, "float32")

    def step(kernels: Kernels, inputs: StepInputs) -> Rows:
        hidden = kernels.embedding(layers.table, "token_ids", inputs)
        return kernels.rms_norm(kernels.linear(hidden, layers.first, residual=hidden), layers.weight[1:], 1e-6)

    with pytest.raises(KernelError, match=rf"weight must be contiguous float32 \[{HIDDEN}\]"):
        kernels.compile(step)(inputs_on(device))
