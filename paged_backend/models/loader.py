"""Builds a decoder out of a model folder, its weights fused as the kernels like them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paged_backend.config import ModelConfig
from paged_backend.errors import ConfigError, ModelLoadError
from paged_backend.kernels.interface import Kernels, LinearWeight
from paged_backend.models.architecture import Architecture
from paged_backend.models.checkpoint import Checkpoint
from paged_backend.models.decoder import Decoder
from paged_backend.models.folder import read_json, resolve_folder
from paged_backend.models.generation_config import read_generation_config
from paged_backend.models.layers import Attention, DecoderLayer, FeedForward, LayerNorm, Norm, RMSNorm
from paged_backend.models.registry import WeightNames, read_architecture
from paged_backend.models.rotary import rotary_tables
from paged_backend.quantization.quantizers import QUANTIZERS, Quantizer

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        folder: where its files are.
        max_model_len: tokens of prompt and output at most.
        eos_token_ids: what config.json and generation_config.json say ends a text, as far as the model has it.
        default_sampling_params: sampling parameters by name, for requests that leave them out.
    """

    decoder: Decoder
    architecture: Architecture
    folder: Path
    max_model_len: int
    eos_token_ids: frozenset[int]
    default_sampling_params: Mapping[str, float | int]


def activation_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """What activations are held in: float32 on the CPU; on a GPU the model's dtype, by its own files if it is "auto".

    Raises:
        ModelLoadError: the model's folder or configuration cannot be used.
    """
    if device.type == "cpu":
        return torch.float32
    name = config.dtype
    if name == "auto":
        folder = resolve_folder(config.model, config.revision, load_format=config.load_format)
        stored = read_json(folder / "config.json")
        name = str(stored.get("dtype") or stored.get("torch_dtype") or "float32")
    return _DTYPES.get(name, torch.float32)


def load_model(
    config: ModelConfig,
    kernels: Kernels,
    *,
    num_threads: int = 1,
    device: torch.device = _CPU,
) -> LoadedModel:
    """Loads config.model.

    Args:
        config: which one, and how it is held.
        kernels: what its layers are packed for.
        num_threads: that quantize weights.
        device: where weights and tables are put.

    Raises:
        ModelLoadError: the folder, its configuration or its weights cannot be used.
        ConfigError: max_model_len is more than the model has positions.
    """
    folder = resolve_folder(config.model, config.revision, load_format=config.load_format)
    architecture, names = read_architecture(read_json(folder / "config.json"))
    max_model_len = config.max_model_len or architecture.max_positions
    if max_model_len > architecture.max_positions:
        raise ConfigError(
            f"max_model_len {max_model_len} is more than the {architecture.max_positions} positions that "
            f"{config.model} was made for: lower it, or leave it out."
        )
    generation = read_generation_config(config, folder)
    quantizer = None if config.quantization is None else QUANTIZERS[config.quantization]
    with Checkpoint(folder, names.prefix, config.load_format) as checkpoint:
        dtype = _DTYPES.get(config.dtype)
        builder = _Builder(architecture, names, checkpoint, kernels, dtype, quantizer, num_threads, device)
        decoder = builder.decoder(max_model_len)
        checkpoint.finish(names.ignored)
    return LoadedModel(
        decoder=decoder,
        architecture=architecture,
        folder=folder,
        max_model_len=max_model_len,
        eos_token_ids=_known_eos_token_ids(folder, architecture, generation.eos_token_ids),
        default_sampling_params=generation.sampling,
    )


def _known_eos_token_ids(folder: Path, architecture: Architecture, others: frozenset[int]) -> frozenset[int]:
    """Of config.json's and the others, those that the model can draw."""
    declared = architecture.eos_token_ids | others
    known = frozenset(token for token in declared if 0 <= token < architecture.vocab_size)
    if known != declared:
        logger.warning(
            "eos_token_id in %s names %s, but the model's ids are 0 to %d: those are left out.",
            folder,
            ", ".join(map(str, sorted(declared - known))),
            architecture.vocab_size - 1,
        )
    return known


@dataclass(frozen=True, slots=True)
class _Builder:
    """Reads a checkpoint piece by piece, and packs each linear layer before the next is read.

    Attributes:
        dtype: what weights and tables are rounded to; None holds them as they are stored.
        quantizer: makes whole numbers of the linear layers' weights; None for none.
        num_threads: that it works with.
        device: where everything ends up, each piece before the next is read.
    """

    architecture: Architecture
    names: WeightNames
    checkpoint: Checkpoint
    kernels: Kernels
    dtype: torch.dtype | None
    quantizer: Quantizer | None
    num_threads: int
    device: torch.device

    def decoder(self, num_positions: int) -> Decoder:
        arch, names = self.architecture, self.names
        embedding, lm_head = self._embedding_and_head()
        projected = arch.embedding_size != arch.hidden_size
        return Decoder(
            embedding=embedding,
            positions=self._positions(),
            rotary=None if arch.rotary is None else self._rotary(num_positions),
            project_in=self._linear((names.project_in,), (arch.hidden_size,), arch.embedding_size, False)
            if projected
            else None,
            layers=tuple(self._layer(layer) for layer in range(arch.num_layers)),
            final_norm=self._norm(names.final_norm) if arch.final_norm else None,
            project_out=self._linear((names.project_out,), (arch.embedding_size,), arch.hidden_size, False)
            if projected
            else None,
            lm_head=lm_head,
            logit_soft_cap=arch.logit_soft_cap,
        )

    def _rotary(self, num_positions: int) -> tuple[Tensor, Tensor]:
        assert self.architecture.rotary is not None
        cos, sin = rotary_tables(self.architecture.rotary, num_positions)
        return cos.to(self.device), sin.to(self.device)

    def _take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> Tensor:
        return self.checkpoint.take(name, shape, dtype).to(self.device)

    def _embedding_and_head(self) -> tuple[Tensor, LinearWeight]:
        """Tied weights are one tensor, unless the checkpoint holds two that differ (as in transformers 5)."""
        shape = (self.architecture.vocab_size, self.architecture.embedding_size)
        stored = [f"{name}.weight" for name in (self.names.embedding, self.names.lm_head)]
        if self.architecture.tied_embeddings:
            stored = [name for name in stored if name in self.checkpoint] or stored[:1]
        weights = [self.checkpoint.take(name, shape, self.dtype) for name in stored]
        if self.architecture.tied_embeddings and len(weights) == 2 and torch.equal(*weights):
            del weights[1]
        if self.quantizer is None:
            weights = [weight.to(self.device) for weight in weights]
        return weights[0].to(self.device), self._packed(stored[-1], weights[-1], is_head=True)

    def _positions(self) -> Tensor | None:
        arch = self.architecture
        if arch.position_offset is None:
            return None
        shape = (arch.max_positions + arch.position_offset, arch.hidden_size)
        return self._take(f"{self.names.positions}.weight", shape, self.dtype)[arch.position_offset :]

    def _layer(self, layer: int) -> DecoderLayer:
        arch, names = self.architecture, self.names
        attention = Attention(
            qkv=self._linear(
                names.qkv,
                (arch.query_size, arch.kv_size, arch.kv_size),
                arch.hidden_size,
                arch.qkv_bias,
                layer,
            ),
            output=self._linear(
                (names.attention_output,),
                (arch.hidden_size,),
                arch.query_size,
                arch.attention_output_bias,
                layer,
            ),
            num_heads=arch.num_heads,
            query_norm=self._head_norm(names.query_norm, layer),
            key_norm=self._head_norm(names.key_norm, layer),
            norm_eps=arch.norm_eps,
            scale=arch.attention_scales[layer],
            sliding_window=arch.sliding_windows[layer],
            soft_cap=arch.attention_soft_cap,
        )
        mlp = FeedForward(
            inner=self._linear(
                names.mlp_in,
                (arch.intermediate_size,) * len(names.mlp_in),
                arch.hidden_size,
                arch.mlp_bias,
                layer,
                gated=arch.gated,
            ),
            outer=self._linear((names.mlp_out,), (arch.hidden_size,), arch.intermediate_size, arch.mlp_bias, layer),
            activation=arch.activation,
        )
        return DecoderLayer(
            attention_norm=self._norm(names.attention_norm, layer),
            attention=attention,
            mlp_norm=self._norm(names.mlp_norm, layer),
            mlp=mlp,
            pre_norm=arch.pre_norm,
        )

    def _linear(
        self,
        names: Sequence[str],
        outputs: Sequence[int],
        num_inputs: int,
        bias: bool,
        layer: int = 0,
        *,
        gated: bool = False,
    ) -> LinearWeight:
        """One linear layer out of one stored tensor or several, side by side in the order of their names."""
        if len(names) == 1:
            outputs = (sum(outputs),)
        weights, biases = [], []
        for template, num_outputs in zip(names, outputs, strict=True):
            name = template.format(layer)
            if self.names.transposed:
                stored = self.checkpoint.take(f"{name}.weight", (num_inputs, num_outputs), self.dtype)
                weights.append(stored.T.contiguous())
            else:
                weights.append(self.checkpoint.take(f"{name}.weight", (num_outputs, num_inputs), self.dtype))
            if bias:
                biases.append(self.checkpoint.take(f"{name}.bias", (num_outputs,), torch.float32))
        return self._packed(names[0].format(layer), _join(weights), _join(biases) if bias else None, gated=gated)

    def _packed(
        self, name: str, weight: Tensor, bias: Tensor | None = None, *, gated: bool = False, is_head: bool = False
    ) -> LinearWeight:
        bias = None if bias is None else bias.to(self.device)
        if self.quantizer is None:
            return self.kernels.pack_linear(weight.to(self.device), bias, gated=gated)
        if not weight.isfinite().all():
            raise ModelLoadError(f"{name} holds numbers that are not finite, so that it cannot be quantized.")
        quantize = self.quantizer.head if is_head else self.quantizer.layer
        quantized = quantize(weight, self.num_threads)
        if self.device.type != "cpu":
            values, scales = quantized.values.to(self.device), quantized.scales.to(self.device)
            quantized = dataclasses.replace(quantized, values=values, scales=scales)
        return self.kernels.pack_linear(quantized, bias, gated=gated)

    def _norm(self, template: str, layer: int = 0) -> Norm:
        arch = self.architecture
        name, shape = template.format(layer), (arch.hidden_size,)
        weight = self._take(f"{name}.weight", shape, torch.float32) if arch.norm_affine else None
        if arch.norm == "rms":
            assert weight is not None
            return RMSNorm(weight=weight, eps=arch.norm_eps)
        bias = self._take(f"{name}.bias", shape, torch.float32) if arch.norm_affine else None
        return LayerNorm(weight=weight, bias=bias, eps=arch.norm_eps)

    def _head_norm(self, template: str, layer: int) -> Tensor | None:
        if not self.architecture.qk_norm:
            return None
        shape = (self.architecture.head_dim,)
        return self._take(f"{template.format(layer)}.weight", shape, torch.float32)


def _join(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors below each other; of several dtypes, in the one that holds all of them."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
