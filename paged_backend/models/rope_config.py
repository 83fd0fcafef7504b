"""Reads how a config.json describes its rotary positions: rope_parameters, or the older two keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from paged_backend.models.architecture import RotarySpec

_DEFAULT_THETA = 10000.0


def read_rotary(config: Mapping[str, Any], head_dim: int) -> tuple[RotarySpec, int]:
    """What to rotate by, and how many positions that serves.

    transformers 5 writes {"rope_parameters": {"rope_type", "rope_theta", ...}}; before, rope_theta stood by
    itself and rope_scaling held the rest, its kind under "type" in the oldest. Where both are there,
    rope_scaling counts, as it does in transformers: it is what people add by hand.

    Raises:
        ValueError: the kind or one of its values is not supported.
        KeyError: the kind needs a value that is not there.
    """
    values: Mapping[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in values.values()):
        raise ValueError("rope_parameters differs between layers, which is not supported for this family")
    theta = values.get("rope_theta")
    theta = config.get("rope_theta") if theta is None else theta
    theta = _DEFAULT_THETA if theta is None else float(theta)
    partial = values.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ValueError(f"partial_rotary_factor {partial} is not supported for this family")
    max_positions: int = config["max_position_embeddings"]
    original = values.get("original_max_position_embeddings") or max_positions
    kind = values.get("rope_type") or values.get("type") or "default"
    # Dynamic NTK scaling changes nothing up to max_position_embeddings, and no sequence here goes past that.
    # Past it, a token's keys would depend on when they were computed.
    if kind in ("default", "dynamic"):
        return RotarySpec(theta=theta, dim=head_dim), max_positions
    if kind == "linear":
        return RotarySpec(kind="linear", theta=theta, dim=head_dim, factor=_factor(values)), max_positions
    if kind == "llama3":
        spec = RotarySpec(
            kind="llama3",
            theta=theta,
            dim=head_dim,
            factor=_factor(values),
            original_max_positions=original,
            low_freq_factor=float(values["low_freq_factor"]),
            high_freq_factor=float(values["high_freq_factor"]),
        )
        return spec, max_positions
    if kind == "yarn":
        factor = max_positions / original if values.get("factor") is None else _factor(values)
        spec = RotarySpec(
            kind="yarn",
            theta=theta,
            dim=head_dim,
            factor=factor,
            original_max_positions=original,
            beta_fast=float(values.get("beta_fast") or 32),
            beta_slow=float(values.get("beta_slow") or 1),
            truncate=bool(values.get("truncate", True)),
            attention_factor=_yarn_attention_factor(values, factor),
        )
        # Some checkpoints leave max_position_embeddings at the trained length, others stretch it.
        return spec, max(max_positions, int(original * factor))
    raise ValueError(f"rope_type {kind!r} is not supported (supported: default, linear, dynamic, llama3, yarn)")


def _factor(values: Mapping[str, Any]) -> float:
    factor = float(values["factor"])
    if factor < 1:
        raise ValueError(f"the rotary factor must be at least 1, got {factor}")
    return factor


def _yarn_attention_factor(values: Mapping[str, Any], factor: float) -> float:
    """YaRN's temperature (arXiv:2309.00071, 3.4), with DeepSeek's two multipliers where both are given."""
    given = values.get("attention_factor")
    if given is not None:
        return float(given)

    def temperature(multiplier: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0

    numerator, denominator = values.get("mscale"), values.get("mscale_all_dim")
    if numerator and denominator:
        return temperature(numerator) / temperature(denominator)
    return temperature(1.0)
