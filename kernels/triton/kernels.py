"""The Triton kernels behind `interface.Kernels`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from paged_backend.kernels.interface import OPERATIONS, Kernels, OperationChoice, Rows, StepInputs
from paged_backend.kernels.sampling_batch import SamplingBatch
from paged_backend.kernels.tensor_kernels import TensorKernels
from paged_backend.kernels.tensor_operations import TensorOperations
from paged_backend.kernels.token_counts import TokenCounts
from paged_backend.kernels.triton.attention_config import device_capability, served_cache_dtypes
from paged_backend.kernels.triton.blocks import copy_blocks, swap_blocks
from paged_backend.kernels.triton.blocks import warm_up as warm_up_blocks
from paged_backend.kernels.triton.experts import TritonExperts, experts, pack_experts
from paged_backend.kernels.triton.linear import linear
from paged_backend.kernels.triton.linear_weight import TritonLinear, pack_linear
from paged_backend.kernels.triton.norms import layer_norm, rms_norm
from paged_backend.kernels.triton.paged_attention import paged_attention
from paged_backend.kernels.triton.qkv_to_cache import qkv_to_cache
from paged_backend.kernels.triton.rows import embedding, select_rows
from paged_backend.kernels.triton.sampling.device_samples import DeviceSamples
from paged_backend.kernels.triton.sampling.launch import launch, sample
from paged_backend.kernels.triton.sampling.resident import ResidentSampler
from paged_backend.kernels.triton.sampling.warm_up import warm_up as warm_up_sampling
from paged_backend.kernels.triton.soft_cap import soft_cap
from paged_backend.kernels.triton.step import StepKernels
from paged_backend.kernels.triton.target import check_target


class TritonKernels(TensorKernels):
    """All operations in Triton, but for the products of float and fp8 weights, which are the library's by default.

    With batch_invariant, and of quantized weights anyway, a row's bits do not depend on the rows beside it.

    Attributes:
        device: where all tensors are.
        dtype: what activations are held in.
        report: for each operation, "triton" and the card.
        cache_dtypes, token_major_keys: see `Kernels`; a cache is held in what the activations are, if nobody asks.
    """

    token_major_keys = True

    def __init__(self, device: torch.device, dtype: torch.dtype, *, batch_invariant: bool = False) -> None:
        """
        Args:
            batch_invariant: float weights are multiplied by our own kernel too, with which a row's bits do not depend
                on how many rows come with it; else by the library's (cuBLAS), which is faster. The same goes for
                attention: a position then has the same bits in a decode as in a prompt, in chunks of any size.

        Raises:
            ConfigError: the device cannot run the kernels.
        """
        how = check_target(device)
        self.device = device
        self.cache_dtypes = served_cache_dtypes(dtype, device_capability(device))
        operations = _operations(device, dtype, batch_invariant)
        super().__init__(operations, dtype, _report(how, batch_invariant))

    def launch_sample(self, logits: Tensor, batch: SamplingBatch) -> DeviceSamples:
        """See `Kernels.launch_sample`."""
        return launch(logits, batch)

    def warm_up(self, vocab_size: int) -> None:
        """See `Kernels.warm_up`. Some ten seconds where Triton's cache has nothing yet."""
        warm_up_sampling(vocab_size, self.device)
        warm_up_blocks(self.device)

    def resident_sampler(self, max_rows: int, vocab_size: int, counts: TokenCounts | None = None) -> ResidentSampler:
        """Memory on the device for the plain rows of one step at a time, to be drawn within a CUDA graph.

        Args:
            counts: by which rows may be penalised.

        Raises:
            KernelError: the kernels do not sample so large a vocabulary.
        """
        return ResidentSampler(max_rows, vocab_size, self.device, counts)

    def compile(self, step: Callable[[Kernels, StepInputs], Rows]) -> Callable[[StepInputs], Tensor]:
        """See `Kernels.compile`. Calls the step each time: a runner may capture the launches into a CUDA graph."""
        return partial(StepKernels(self._operations, self.dtype, self.report, self.cache_dtypes).run, step)


def _operations(device: torch.device, dtype: torch.dtype, batch_invariant: bool) -> TensorOperations:
    return TensorOperations(
        linear_type=TritonLinear,
        pack_linear=partial(pack_linear, device=device, dtype=dtype, batch_invariant=batch_invariant),
        linear=linear,
        experts_type=TritonExperts,
        pack_experts=partial(pack_experts, device=device, dtype=dtype),
        experts=experts,
        embedding=embedding,
        rms_norm=rms_norm,
        layer_norm=layer_norm,
        qkv_to_cache=qkv_to_cache,
        paged_attention=partial(paged_attention, batch_invariant=batch_invariant),
        select_rows=select_rows,
        soft_cap=soft_cap,
        copy_blocks=copy_blocks,
        swap_blocks=swap_blocks,
        sample=sample,
    )


def _report(how: str, batch_invariant: bool) -> Mapping[str, OperationChoice]:
    products = (
        "with batch_invariant for weights of every format."
        if batch_invariant
        else "for quantized weights; float ones by the library's product, which is faster."
    )
    ours = OperationChoice("triton", f"Triton kernel ({how}).")
    linears = OperationChoice("triton", f"Triton kernel ({how}) {products}")
    return MappingProxyType({name: linears if name == "linear" else ours for name in OPERATIONS})
