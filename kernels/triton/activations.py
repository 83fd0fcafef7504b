"""The activations of `Kernels.linear`, inside kernels: the functions of `reference.activation.ACTIVATIONS`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), of float32."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Of float32. Near 0, where the quotient would lose its digits, the first five terms of its series."""
    square = x * x
    series = x * (1.0 + square * (-1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315 + square * (62.0 / 2835)))))
    shrunk = tl.exp(-2.0 * tl.abs(x))
    quotient = (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -quotient, quotient))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Of float32 numbers; ACTIVATION is a key of `reference.activation.ACTIVATIONS`, or None for none."""
    if ACTIVATION is None:
        result = x
    elif ACTIVATION == "silu" or ACTIVATION == "swish":
        result = x * sigmoid(x)
    elif ACTIVATION == "gelu":
        result = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_fast" or ACTIVATION == "gelu_new" or ACTIVATION == "gelu_pytorch_tanh":
        # x / 2 * (1 + tanh(u)) = x * sigmoid(2 u), with u = sqrt(2 / pi) * (x + 0.044715 x ** 3).
        result = x * sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
    elif ACTIVATION == "quick_gelu":
        result = x * sigmoid(1.702 * x)
    elif ACTIVATION == "relu":
        result = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "relu2":
        result = tl.where(x < 0, 0.0, x * x)
    elif ACTIVATION == "sigmoid":
        result = sigmoid(x)
    else:
        tl.static_assert(ACTIVATION == "tanh", "this activation has no formula here")
        result = tanh(x)
    return result
