"""Whatever goes into `Kernels`: a result, or a KernelError that names an argument; and nothing else is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cache_layout import LayerCache
from paged_backend.kernels.interface import Kernels, Rows, StepInputs
from paged_backend.kernels.quantized_weight import QuantizedWeight
from tests.kernels.guarded import Guarded, bits
from tests.kernels.implementations import IMPLEMENTATIONS
from tests.kernels.linear_case import quantize
from tests.kernels.step_case import make_cache, make_inputs
from tests.kernels.wrong_arguments import changed_tensors, changed_values

T, WIDTH, BLOCKS, VOCAB = 4, 16, 8, 20
FEW = settings(deadline=None, suppress_health_check=list(HealthCheck))
Arguments = dict[str, Any]

FLOAT32 = {name: kernels for name, (kernels, dtype) in IMPLEMENTATIONS.items() if dtype == torch.float32}


@dataclass(frozen=True)
class Operation:
    """One of `Kernels`.

    Attributes:
        arguments: makes right ones, by name; those of `StepInputs`, `LayerCache` and `QuantizedWeight` one by one.
        call: calls it with such arguments.
        writes: what it may change. Rows that it may take are not looked at either.
    """

    arguments: Callable[[], Arguments]
    call: Callable[[Kernels, Arguments], Any]
    writes: frozenset[str] = frozenset()


def step_inputs() -> Arguments:
    inputs = make_inputs([1, 3], [6, 3], num_blocks=BLOCKS, num_tokens=VOCAB, logits_rows=torch.tensor([3, 0]))
    return {name: getattr(inputs, name) for name in StepInputs.__slots__}


def layer_cache(dtype: str = "float32") -> Arguments:
    cache = make_cache(dtype, BLOCKS)
    cache.keys.fill_(1)
    cache.values.fill_(1)
    return {name: getattr(cache, name) for name in LayerCache.__slots__}


def inputs_of(arguments: Arguments) -> StepInputs:
    return StepInputs(**{name: arguments[name] for name in StepInputs.__slots__})


def cache_of(arguments: Arguments) -> LayerCache:
    return LayerCache(**{name: arguments[name] for name in LayerCache.__slots__})


def others(arguments: Arguments, *names: str) -> Arguments:
    return {name: arguments[name] for name in names}


def linear(kernels: Kernels, a: Arguments) -> Any:
    weight = QuantizedWeight(**others(a, "values", "scales", "bits", "group_size")) if "bits" in a else a["weight"]
    packed = kernels.pack_linear(weight, a["bias"], gated=a["gated"])
    return kernels.linear(a["x"], packed, activation=a["activation"], residual=a["residual"])


def quantized_linear() -> Arguments:
    weight = quantize(torch.randn(WIDTH, WIDTH), 4, 8)
    given = {name: getattr(weight, name) for name in QuantizedWeight.__slots__}
    return given | {"bias": None, "gated": True, "x": torch.randn(T, WIDTH), "activation": "silu", "residual": None}


def copy_arguments() -> Arguments:
    storage = torch.randint(256, (2, 2, BLOCKS, 64), dtype=torch.uint8)
    return {"storage": storage, "pairs": torch.tensor([[0, 1], [1, 2], [5, 5]])}


def norm_arguments() -> Arguments:
    x, weight = torch.randn(T, WIDTH), torch.randn(WIDTH)
    return {"x": x, "weight": weight, "bias": torch.randn(WIDTH), "eps": 1e-5}


def qkv_arguments(dtype: str) -> Arguments:
    own = {"qkv": torch.randn(T, 48), "num_heads": 2, "norm_eps": 1e-5}
    tables = {"cos": torch.randn(9, 6), "sin": torch.randn(9, 6)}
    norms = {"query_norm": torch.randn(8), "key_norm": torch.randn(8)}
    return {**step_inputs(), **layer_cache(dtype), **own, **tables, **norms}


def qkv_to_cache(kernels: Kernels, a: Arguments) -> Any:
    options = others(a, "num_heads", "query_norm", "key_norm", "norm_eps")
    rotary = None if a["cos"] is None and a["sin"] is None else (a["cos"], a["sin"])
    return kernels.qkv_to_cache(a["qkv"], cache_of(a), inputs_of(a), rotary=rotary, **options)


def attention_arguments(dtype: str) -> Arguments:
    own = {"query": torch.randn(T, 32), "scale": 0.3, "sliding_window": 4, "soft_cap": 5.0}
    return {**step_inputs(), **layer_cache(dtype), **own}


def paged_attention(kernels: Kernels, a: Arguments) -> Any:
    options = others(a, "scale", "sliding_window", "soft_cap")
    return kernels.paged_attention(a["query"], cache_of(a), inputs_of(a), **options)


CACHE = frozenset(("keys", "values"))
OPERATIONS: dict[str, Operation] = {
    "linear": Operation(
        lambda: {
            "weight": torch.randn(8, WIDTH).bfloat16(),
            "bias": torch.randn(8),
            "gated": False,
            "x": torch.randn(T, WIDTH),
            "activation": "gelu",
            "residual": torch.randn(T, 8),
        },
        linear,
    ),
    "quantized linear": Operation(quantized_linear, linear),
    "embedding": Operation(
        lambda: {
            "table": torch.randn(VOCAB, WIDTH).half(),
            "indices": "token_ids",
            "add": torch.randn(T, WIDTH),
            **step_inputs(),
        },
        lambda kernels, a: kernels.embedding(a["table"], a["indices"], inputs_of(a), a["add"]),
    ),
    "rms_norm": Operation(norm_arguments, lambda kernels, a: kernels.rms_norm(a["x"], a["weight"], a["eps"])),
    "layer_norm": Operation(norm_arguments, lambda kernels, a: kernels.layer_norm(**a)),
    "qkv_to_cache": Operation(lambda: qkv_arguments("bfloat16"), qkv_to_cache, CACHE),
    "qkv_to_cache int8": Operation(lambda: qkv_arguments("int8"), qkv_to_cache, CACHE),
    "paged_attention": Operation(lambda: attention_arguments("float32"), paged_attention),
    "paged_attention int8": Operation(lambda: attention_arguments("int8"), paged_attention),
    "select_rows": Operation(
        lambda: {"x": torch.randn(T, WIDTH), **step_inputs()},
        lambda kernels, a: kernels.select_rows(a["x"], inputs_of(a)),
    ),
    "soft_cap": Operation(
        lambda: {"x": torch.randn(T, WIDTH), "cap": 3.0}, lambda kernels, a: kernels.soft_cap(a["x"], a["cap"])
    ),
    "copy_blocks": Operation(
        copy_arguments, lambda kernels, a: kernels.copy_blocks(a["storage"], a["pairs"]), frozenset(("storage",))
    ),
}
TAKEN = frozenset(("x", "residual", "add", "qkv", "query"))
"""Rows whose memory an operation may use for its result."""

SAID_AS = {
    "num_heads": "heads|qkv",
    "dtype": "dtype|keys",
    "num_kv_heads": "heads|keys",
    "block_size": "blocks|keys|slot_mapping|block_tables",
    "head_size": "heads|keys|query|qkv",
    "keys": "keys|values",
    "group_size": "group_size|scales",
    "x": "x|residual|weight|bias",
    "gated": "weight|residual|bias|gated",
    "weight": "weight|x|bias|residual",
    "values": "values|weight|x|scales|group_size|keys|blocks",
    "query": "query|heads",
    "qkv": "qkv|heads",
    "query_start": "query_start|context_lens",
    "context_lens": "context_lens|block_tables",
    "storage": "storage|pairs",
}
"""What else a message may speak of where an argument is changed."""


def placed(arguments: Arguments, guarded: Guarded) -> Arguments:
    return {name: guarded.place(a) if isinstance(a, Tensor) else a for name, a in arguments.items()}


def changed(data: st.DataObject, arguments: Arguments, guarded: Guarded) -> set[str]:
    """Changes one or two arguments; returns which."""
    names = data.draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=2, unique=True))
    for name in names:
        value = arguments[name]
        strategy = changed_tensors(value, guarded) if isinstance(value, Tensor) else changed_values(value)
        arguments[name] = data.draw(strategy)
    return set(names)


def check_message(error: KernelError, names: set[str]) -> None:
    words = "|".join(SAID_AS.get(name, name) for name in names)
    assert re.search(rf"\b({words})\b", str(error)), (str(error), names)


def assert_only_slots_changed(arguments: Arguments, before: dict[str, bytes | None]) -> None:
    """The cache's bytes differ at inputs.slot_mapping alone."""
    cache = cache_of({**arguments, "keys": arguments["keys"].clone(), "values": arguments["values"].clone()})
    cache.keys.zero_()
    cache.values.zero_()
    slots = arguments["slot_mapping"]
    blocks, offsets = slots // cache.block_size, slots % cache.block_size
    same_size = {1: torch.int8, 2: torch.int16, 4: torch.int32}
    views = [(cache.key_numbers(), True), (cache.value_numbers(), False)]
    for numbers, is_key in views:
        whole = numbers.view(same_size[numbers.dtype.itemsize])
        if is_key:
            whole[blocks, :, :, offsets] = -1
        else:
            whole[blocks, :, offsets] = -1
    if cache.dtype == "int8":
        for scales in (cache.key_scales(), cache.value_scales()):
            scales.view(torch.int32)[blocks, :, offsets] = -1
    for name, mask in (("keys", cache.keys), ("values", cache.values)):
        old, new = (torch.frombuffer(bytearray(b), dtype=torch.uint8) for b in (before[name], bits(arguments[name])))
        assert torch.equal(old[mask.flatten() == 0], new[mask.flatten() == 0]), name


@pytest.mark.parametrize("kernels", [FLOAT32[name] for name in ("reference", "auto")], ids=["reference", "auto"])
@pytest.mark.parametrize("name", OPERATIONS)
@settings(FEW, max_examples=60)
@given(data=st.data())
def test_operation(kernels: Kernels, name: str, data: st.DataObject) -> None:
    operation, guarded = OPERATIONS[name], Guarded()
    arguments = placed(operation.arguments(), guarded)
    names = changed(data, arguments, guarded)
    before = {name: bits(value) for name, value in arguments.items()}
    try:
        operation.call(kernels, arguments)
    except KernelError as error:
        check_message(error, names)
        free = frozenset()
    else:
        free = operation.writes | TAKEN
        if CACHE.issubset(free):
            assert_only_slots_changed(arguments, before)
    guarded.check()
    for argument, value in arguments.items():
        assert argument in free or bits(value) == before[argument], argument


@dataclass
class SmallStep:
    """A decoder layer, and what a step of it must not change."""

    kernels: Kernels

    def __post_init__(self) -> None:
        self.guarded = Guarded()
        place = self.guarded.place
        self.table, self.position_table = place(torch.randn(VOCAB, WIDTH)), place(torch.randn(9, WIDTH))
        self.norm = place(torch.randn(WIDTH))
        self.rotary = (place(torch.randn(9, 8)), place(torch.randn(9, 8)))
        self.qkv = self.kernels.pack_linear(place(torch.randn(48, WIDTH)))
        self.out = self.kernels.pack_linear(place(torch.randn(WIDTH, 16)))
        self.head = self.kernels.pack_linear(quantize(torch.randn(VOCAB, WIDTH), 8, WIDTH))
        given = layer_cache()
        self.cache = cache_of(given | {name: place(given[name]) for name in CACHE})
        self.run = self.kernels.compile(self)

    def __call__(self, kernels: Kernels, inputs: StepInputs) -> Rows:
        x = kernels.embedding(self.table, "token_ids", inputs)
        x = kernels.embedding(self.position_table, "positions", inputs, x)
        normed = kernels.layer_norm(x, self.norm, None, 1e-5)
        qkv = kernels.linear(normed, self.qkv)
        query = kernels.qkv_to_cache(qkv, self.cache, inputs, num_heads=2, rotary=self.rotary)
        mixed = kernels.paged_attention(query, self.cache, inputs, scale=0.3)
        x = kernels.rms_norm(kernels.linear(mixed, self.out, residual=x), self.norm, 1e-5)
        return kernels.soft_cap(kernels.linear(kernels.select_rows(x, inputs), self.head), 9.0)


STEPS = {name: SmallStep(kernels) for name, kernels in FLOAT32.items()}


@pytest.mark.parametrize("name", STEPS)
@settings(FEW, max_examples=100)
@given(data=st.data())
def test_compiled_step(name: str, data: st.DataObject) -> None:
    step, guarded = STEPS[name], Guarded()
    right = inputs_of(step_inputs())
    expected = step.run(right).clone()
    arguments = placed(step_inputs(), guarded)
    names = changed(data, arguments, guarded)
    before = {name: bits(value) for name, value in arguments.items()}
    cache_before = {name: bits(getattr(step.cache, name)) for name in CACHE}
    try:
        logits = step.run(inputs_of(arguments))
    except KernelError as error:
        check_message(error, names)
        if name != "reference":  # it has stored keys and values when it comes to attention
            assert all(bits(getattr(step.cache, field)) == cache_before[field] for field in CACHE)
    else:
        rows = arguments["logits_rows"] if arguments["logits_rows"] is not None else arguments["token_ids"]
        assert logits.shape == (rows.shape[0], VOCAB)
    guarded.check()
    step.guarded.check()
    assert all(bits(value) == before[argument] for argument, value in arguments.items())
    # The numbers that wrong positions have stored are gone with the next step that stores at those slots.
    step.cache.keys.fill_(1)
    step.cache.values.fill_(1)
    assert torch.equal(step.run(right), expected)
