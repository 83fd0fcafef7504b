"""Every operation of the Triton kernels against float64 on the card, and rows alone against rows in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu import truth
from benchmarks.gpu.cases import AttentionCase, Heads, make_cache, make_inputs, stored_heads
from benchmarks.gpu.check_sampling import sampling_checks
from benchmarks.gpu.verdict import Verdict, allowed_error, relative_error
from paged_backend.errors import KernelError
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.registry import select_kernels
from paged_backend.quantization.fp8 import quantize_fp8
from paged_backend.quantization.int4 import quantize_int4
from paged_backend.quantization.int8 import quantize_int8

_FLOAT8_INPUTS = 2.0**-3  # inputs are rounded to float8 as well, by 2 ** -4 each; a gate multiplies two sums
_EPS = 1e-6


@dataclass(frozen=True)
class CheckSizes:
    """How much is checked.

    Attributes:
        dtypes: of the activations.
        head_sizes: each with every cache dtype.
        contexts: tokens of the sequences; the last but one adds several rows, the last all of its own.
        width: inputs and outputs of linear layers, a multiple of 16.
        num_rows: of the batches in which rows have neighbours.
        vocab_size: for sampling.
    """

    dtypes: tuple[torch.dtype, ...]
    head_sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    width: int
    num_rows: int
    vocab_size: int


ON_CARD = CheckSizes((torch.bfloat16, torch.float16), (64, 80, 96, 128, 256), (1, 700, 2500, 300), 1024, 80, 151_936)
FEW = replace(ON_CARD, dtypes=(torch.bfloat16,), head_sizes=(64, 128))
TRIAL = CheckSizes((torch.float32,), (32,), (1, 40, 21), 64, 3, 100)

Run = Callable[[], Verdict]


def all_checks(device: torch.device, sizes: CheckSizes) -> Iterator[tuple[str, str, Run]]:
    """(operation, case, how to check it), the operation a name of `interface.OPERATIONS`."""
    torch.manual_seed(0)
    for dtype in sizes.dtypes:
        kernels = select_kernels("triton", device, dtype=dtype)
        fixed = select_kernels("triton", device, dtype=dtype, batch_invariant=True)
        text = str(dtype).removeprefix("torch.")
        attention = partial(_attention, sizes=sizes)
        for head_size in sizes.head_sizes:
            for cache_dtype in kernels.cache_dtypes if dtype is sizes.dtypes[0] else kernels.cache_dtypes[:1]:
                case = f"D={head_size}, cache {cache_dtype}, {text}"
                yield "qkv_to_cache", case, partial(_qkv_to_cache, kernels, device, dtype, head_size, cache_dtype)
                yield (
                    "paged_attention",
                    case,
                    partial(attention, kernels, device, dtype, head_size, cache_dtype),
                )
        head_size = sizes.head_sizes[0]
        options = {"sliding_window": 30, "soft_cap": 20.0}
        case = f"D={head_size}, window and soft cap, batch_invariant, {text}"
        yield (
            "paged_attention",
            case,
            partial(attention, fixed, device, dtype, head_size, fixed.cache_dtypes[0], **options),
        )
        for name in ("rms_norm", "layer_norm"):
            yield name, text, partial(_norm, kernels, device, dtype, name, sizes)
        for form in ("library", "float", "int8", "int4", "fp8"):
            chosen = fixed if form == "float" else kernels
            for gate in (False, True):
                case = f"{form}{', gated' if gate else ''}, {text}"
                yield "linear", case, partial(_linear, chosen, device, dtype, form, gate, sizes)
        for form in ("float", "int8", "int4"):
            yield "experts", f"{form}, {text}", partial(_experts, kernels, device, dtype, form, sizes)
        yield "embedding", text, partial(_embedding, kernels, device, dtype, sizes)
        yield "select_rows", text, partial(_select_rows, kernels, device, dtype, sizes)
        yield "soft_cap", text, partial(_soft_cap, kernels, device, dtype, sizes)
    kernels = select_kernels("triton", device, dtype=sizes.dtypes[0])
    yield "copy_blocks", "", partial(_copy_blocks, kernels, device)
    yield "swap_blocks", "", partial(_swap_blocks, kernels, device)
    for case, run in sampling_checks(kernels, device, sizes.vocab_size):
        yield "sample", case, run


def run_check(operation: str, case: str, run: Run) -> Verdict:
    """The check's verdict; what it raises is one too."""
    try:
        return replace(run(), operation=operation, case=case)
    except KernelError as error:  # a card without float8, for one
        return Verdict(operation, case, problem=str(error), served="compute capability" not in str(error))
    except Exception as error:  # whatever a compiler or a card may raise: the other checks go on
        return Verdict(operation, case, problem=f"{type(error).__name__}: {error}"[:400])


def _verdict(
    out: Tensor, exact: Tensor, alone: Tensor | None = None, *, rows: slice = slice(None), more: float = 0.0
) -> Verdict:
    """Of a result in its own dtype.

    Args:
        alone: these rows, as they come by themselves.
        more: what is allowed beside a result's own roundings.
    """
    same = None if alone is None else torch.equal(out[rows], alone)
    return Verdict("", "", relative_error(out, exact), allowed_error(out.dtype) + more, same)


def _heads(head_size: int) -> Heads:
    return Heads(num_heads=4, num_kv_heads=2, head_size=head_size)


def _attention(
    kernels: Kernels,
    device: torch.device,
    dtype: torch.dtype,
    head_size: int,
    cache_dtype: str,
    *,
    sizes: CheckSizes,
    **options: float,
) -> Verdict:
    """Decodes, a chunk of a prompt and a whole prompt in one step."""
    contexts = sizes.contexts
    rows = [1] * (len(contexts) - 2) + [min(7, contexts[-2]), contexts[-1]]
    case = AttentionCase.make(_heads(head_size), rows, contexts, dtype, cache_dtype, device, **options)
    out = case.run(kernels)
    same = True
    for index in range(len(rows)):
        part, own = case.alone(index)
        same &= torch.equal(part.run(kernels), out[own])
    return Verdict("", "", relative_error(out, truth.attention(case)), allowed_error(dtype), same)


def _qkv_to_cache(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, head_size: int, cache_dtype: str
) -> Verdict:
    heads = _heads(head_size)
    inputs = make_inputs([1, 5], [9, 5], heads.block_size, device)
    cache = make_cache(heads, cache_dtype, 2, device)
    qkv = torch.randn(6, 8 * head_size, device=device).to(dtype)
    angles = torch.outer(torch.arange(16, device=device), torch.rand(head_size // 2, device=device)).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    weights = torch.rand(2, head_size, device=device) + 0.5

    def run(count: slice) -> Tensor:
        rows = replace(
            inputs,
            token_ids=inputs.token_ids[count],
            positions=inputs.positions[count],
            slot_mapping=inputs.slot_mapping[count].contiguous(),
        )
        out = kernels.qkv_to_cache(
            qkv[count].clone(),
            cache,
            rows,
            num_heads=4,
            rotary=(cos, sin),
            query_norm=weights[0],
            key_norm=weights[1],
            norm_eps=_EPS,
        )
        assert isinstance(out, Tensor)
        return out

    queries = run(slice(0, 6))
    keys, values = stored_heads(cache, inputs.slot_mapping)
    alone = run(slice(2, 3))
    same = torch.equal(alone, queries[2:3]) and torch.equal(stored_heads(cache, inputs.slot_mapping)[0], keys)
    query, key, value = qkv.double().unflatten(1, (8, head_size)).split([4, 2, 2], 1)
    place = inputs.positions
    query, key = (
        truth.turned(truth.rms_norm(part, weight, _EPS), cos[place], sin[place])
        for part, weight in zip((query, key), weights, strict=True)
    )
    # Each is put on the scale of what it may be off by: queries are not rounded as the cache is.
    stored = allowed_error(keys.dtype if cache.has_scales else cache.key_numbers().dtype, cache_dtype)
    of_dtype = allowed_error(dtype)
    error = max(
        relative_error(queries.unflatten(1, (4, head_size)), query) / of_dtype,
        relative_error(keys, key) / (stored + of_dtype),
        relative_error(values, value) / (stored + of_dtype),
    )
    return Verdict("", "", error * of_dtype, of_dtype, same)


def _norm(kernels: Kernels, device: torch.device, dtype: torch.dtype, name: str, sizes: CheckSizes) -> Verdict:
    x = (torch.randn(sizes.num_rows, sizes.width, device=device) * 3 + 1).to(dtype)
    weight, bias = torch.randn(2, sizes.width, device=device)

    def run(rows: Tensor) -> Tensor:
        if name == "rms_norm":
            return kernels.rms_norm(rows, weight, _EPS)  # type: ignore[no-any-return]
        return kernels.layer_norm(rows, weight, bias, _EPS)  # type: ignore[no-any-return]

    exact = truth.rms_norm(x, weight, _EPS) if name == "rms_norm" else truth.layer_norm(x, weight, bias, _EPS)
    return _verdict(run(x), exact, run(x[1:2]), rows=slice(1, 2))


def _weight(form: str, num_rows: int, width: int, dtype: torch.dtype) -> Tensor | QuantizedWeight:
    weight = (torch.randn(num_rows, width) / width**0.5).to(dtype)
    quantize = {"int8": quantize_int8, "int4": quantize_int4, "fp8": quantize_fp8}.get(form)
    return weight if quantize is None else quantize(weight)


def _exact_weight(weight: Tensor | QuantizedWeight, device: torch.device) -> Tensor:
    numbers = weight.dequantized() if isinstance(weight, QuantizedWeight) else weight
    return numbers.to(device).double()


def _linear(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, form: str, gate: bool, sizes: CheckSizes
) -> Verdict:
    """Enough rows for a tile of another size than one row has."""
    width = sizes.width
    weight = _weight(form, 2 * width if gate else width, width, dtype)
    layer = kernels.pack_linear(weight, gated=gate)
    x, residual = torch.randn(2, sizes.num_rows, width, device=device).to(dtype)

    def run(rows: slice) -> Tensor:
        if gate:
            return kernels.linear(x[rows], layer, activation="silu")  # type: ignore[no-any-return]
        return kernels.linear(x[rows], layer, residual=residual[rows].clone())  # type: ignore[no-any-return]

    sums = x.double() @ _exact_weight(weight, device).T
    exact = truth.gated(sums) if gate else sums + residual.double()
    # The library's sums differ with the number of rows.
    alone = None if form in ("library", "fp8") else run(slice(1, 2))
    return _verdict(run(slice(None)), exact, alone, rows=slice(1, 2), more=_FLOAT8_INPUTS if form == "fp8" else 0.0)


def _experts(kernels: Kernels, device: torch.device, dtype: torch.dtype, form: str, sizes: CheckSizes) -> Verdict:
    width = sizes.width
    inner = [_weight(form, width, width, dtype) for _ in range(4)]
    outer = [_weight(form, width, width // 2, dtype) for _ in range(4)]
    packed = kernels.pack_experts(inner, outer)
    x = torch.randn(sizes.num_rows, width, device=device).to(dtype)
    logits = torch.randn(sizes.num_rows, 4, device=device).to(dtype)

    def run(rows: slice) -> Tensor:
        options = {"num_experts_per_tok": 2, "norm_topk_prob": True, "activation": "silu"}
        return kernels.experts(x[rows], logits[rows], packed, **options)  # type: ignore[no-any-return, arg-type]

    wide_inner, wide_outer = ([_exact_weight(weight, device) for weight in weights] for weights in (inner, outer))
    exact = truth.experts(x, logits, wide_inner, wide_outer, 2)
    return _verdict(run(slice(None)), exact, run(slice(1, 2)), rows=slice(1, 2))


def _embedding(kernels: Kernels, device: torch.device, dtype: torch.dtype, sizes: CheckSizes) -> Verdict:
    table = torch.randn(20, sizes.width, device=device).to(dtype)
    inputs = replace(make_inputs([3], [3], 16, device), token_ids=torch.tensor([19, 0, 7], device=device))
    return _verdict(kernels.embedding(table, "token_ids", inputs), table[[19, 0, 7]].double())


def _select_rows(kernels: Kernels, device: torch.device, dtype: torch.dtype, sizes: CheckSizes) -> Verdict:
    x = torch.randn(4, sizes.width, device=device).to(dtype)
    inputs = replace(make_inputs([4], [4], 16, device), logits_rows=torch.tensor([3, 1], device=device))
    return _verdict(kernels.select_rows(x, inputs), x[[3, 1]].double())


def _soft_cap(kernels: Kernels, device: torch.device, dtype: torch.dtype, sizes: CheckSizes) -> Verdict:
    x = (torch.randn(sizes.num_rows, sizes.width, device=device) * 30).to(dtype)
    exact = 20 * torch.tanh(x.double() / 20)
    return _verdict(kernels.soft_cap(x.clone(), 20.0), exact, kernels.soft_cap(x[1:2].clone(), 20.0), rows=slice(1, 2))


def _copy_blocks(kernels: Kernels, device: torch.device) -> Verdict:
    """A block that is a source and a destination."""
    storage = torch.randint(256, (2, 2, 6, 128), dtype=torch.uint8, device=device)
    wanted = storage.clone()
    wanted[:, :, [1, 4]] = storage[:, :, [0, 1]]
    kernels.copy_blocks(storage, torch.tensor([[0, 1], [1, 4]], device=device))
    return Verdict("", "", 0.0 if torch.equal(storage, wanted) else float("inf"), 0.0)


def _swap_blocks(kernels: Kernels, device: torch.device) -> Verdict:
    """Blocks go out to host memory, and come back into others."""
    storage = torch.randint(256, (2, 2, 6, 128), dtype=torch.uint8, device=device)
    slots = torch.zeros(3, 2, 2, 128, dtype=torch.uint8, pin_memory=device.type == "cuda")
    wanted = storage.clone()
    wanted[:, :, [4, 5]] = storage[:, :, [0, 1]]
    kernels.swap_blocks(storage, slots, torch.tensor([[0, 2], [1, 0]], device=device), inwards=False)
    kernels.swap_blocks(storage, slots, torch.tensor([[4, 2], [5, 0]], device=device), inwards=True)
    return Verdict("", "", 0.0 if torch.equal(storage, wanted) else float("inf"), 0.0)
