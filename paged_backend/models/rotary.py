"""Tables of cosines and sines for rotary positions. Formulas as in transformers' modeling_rope_utils."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paged_backend.models.architecture import RotarySpec


def inverse_frequencies(spec: RotarySpec) -> Tensor:
    """Radians per position of each pair of numbers, as float32 [dim / 2], longest wavelength last."""
    exponents = torch.arange(0, spec.dim, 2, dtype=torch.float32) / spec.dim
    wavelengths = spec.theta**exponents
    plain = 1.0 / wavelengths
    if spec.kind == "linear":
        return plain / spec.factor
    if spec.kind == "llama3":
        return _llama3(spec, plain)
    if spec.kind == "yarn":
        return _yarn(spec, wavelengths)
    return plain


def rotary_tables(spec: RotarySpec, num_positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions 0 .. num_positions - 1.

    Always float32, whatever the model's dtype: a bfloat16 angle is off by whole positions in long contexts.

    Returns:
        (cos, sin), each float32 [num_positions, dim], the second half of a row repeating the first.
    """
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = positions[:, None] * inverse_frequencies(spec)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * spec.attention_factor, angles.sin() * spec.attention_factor


def _llama3(spec: RotarySpec, plain: Tensor) -> Tensor:
    """Llama 3.1: long waves are stretched, short ones kept, and those between blended."""
    trained = spec.original_max_positions
    wavelengths = 2 * math.pi / plain
    blend = (trained / wavelengths - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    smooth = (1 - blend) * plain / spec.factor + blend * plain
    long = wavelengths > trained / spec.low_freq_factor
    short = wavelengths < trained / spec.high_freq_factor
    return torch.where(long, plain / spec.factor, torch.where(short, plain, smooth))


def _yarn(spec: RotarySpec, wavelengths: Tensor) -> Tensor:
    """YaRN (arXiv:2309.00071, 3.2): what turns often is kept, what turns rarely stretched, a ramp between."""
    low, high = (
        spec.dim * math.log(spec.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))
        for turns in (spec.beta_fast, spec.beta_slow)
    )
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(spec.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (spec.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
