"""Which models and which engine settings the benchmarks measure, by name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from benchmarks.models import SHAPES, ensure_model
from paged_backend.config import BUNDLED_MODEL

PRECISIONS: Final[dict[str, dict[str, Any]]] = {
    "float32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "int8"},
    "int4": {"dtype": "bfloat16", "quantization": "int4", "kv_cache_dtype": "int8"},
}
"""Engine arguments of each precision. bf16 keeps a bfloat16 checkpoint's weights as they are: nothing is lost."""

WEIGHT_BITS: Final = {"float32": 32, "bf16": 16, "int8": 8, "int4": 4}
"""Of a linear layer's weight. The layer that makes the logits has 8 at least."""


def model_folder(name: str) -> str:
    """What the engine's `model` argument must be: a shape with random weights (made if it is not there), the bundled
    model, or a folder."""
    return str(ensure_model(name)) if name in SHAPES else name


def model_name(name: str) -> str:
    """What a report calls the model: folders by their last part."""
    return name if name in (*SHAPES, BUNDLED_MODEL) else Path(name).name


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """--model and --engine-arg."""
    parser.add_argument("--model", default=BUNDLED_MODEL, help=f"{BUNDLED_MODEL}, {', '.join(SHAPES)}, or a folder")
    parser.add_argument(
        "--engine-arg", action="append", default=[], metavar="NAME=VALUE", help="another engine argument; repeatable"
    )
    parser.add_argument("--precision", choices=list(PRECISIONS), help="engine arguments by name; default: the model's")


def engine_args(args: argparse.Namespace) -> dict[str, Any]:
    """The engine's arguments, but for the model, that the command line asks for."""
    pairs = dict(pair.split("=", 1) for pair in args.engine_arg)
    values = {name: int(value) if value.isdecimal() else value for name, value in pairs.items()}
    return {**(PRECISIONS[args.precision] if args.precision else {}), **values}
