"""Tensors of the card, and what becomes of operations on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tests.simulated_gpu.card import Block, Card, Event, Graph, Recording, Stream, fill_with_garbage

aten: Any = torch.ops.aten
CUDA = torch.device("cuda", 0)

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal", "item", "unique2")
"""What brings a value to the host, or whose result's size is one."""

_pinned: dict[int, Tensor] = {}


class CardTensor(Tensor):
    """A tensor whose numbers are on the card: `held`, where the simulation alone looks."""

    held: Tensor
    block: Block | None

    @staticmethod
    def __new__(cls, held: Tensor, block: Block | None) -> CardTensor:
        with torch.inference_mode(False):
            made: CardTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=CUDA,
            )
        made.held = held
        made.block = block
        return made

    def __init__(self, held: Tensor, block: Block | None) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})

    def tolist(self) -> Any:
        """Waits."""
        return host_copy(self, "tolist").tolist()

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:
        """Of what is here or on the host."""
        return copied(aten.copy_.default, (self, source, non_blocking), {})

    def __getitem__(self, index: Any) -> Any:
        # torch's own asks the card for a guard, which a build without CUDA does not have.
        view, indices = viewed(self, index)
        return aten.index.Tensor(view, indices) if indices else view

    def __setitem__(self, index: Any, value: Any) -> None:
        view, indices = viewed(self, index)
        if indices:
            value = value if isinstance(value, Tensor) else torch.full((), value, dtype=self.dtype, device=CUDA)
            aten.index_put_.default(view, indices, value)
        elif isinstance(value, Tensor):
            view.copy_(value)
        else:
            view.fill_(value)

    def data_ptr(self) -> int:
        """Where the numbers are."""
        return self.held.data_ptr()

    def __repr__(self, **_: Any) -> str:
        return f"CardTensor({list(self.shape)}, {self.dtype})"


class Dispatched(TorchDispatchMode):
    """All operations, so that new tensors may be the card's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


def viewed(x: Any, index: Any) -> tuple[Any, list[Any]]:
    """What numbers and slices leave of a tensor, and the tensors among an index, by dimension of that."""
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [item for item in items if not isinstance(item, Tensor)]:
        place = next(place for place, item in enumerate(items) if item is Ellipsis)
        items[place : place + 1] = [slice(None)] * (x.dim() + 1 - len(items) + items.count(None))
    indices: list[Any] = []
    dim = 0
    for item in items:
        if isinstance(item, int) and not isinstance(item, bool):
            x = x.select(dim, item)
            continue
        if item is None:
            x = x.unsqueeze(dim)
        elif isinstance(item, slice):
            x = aten.slice.Tensor(x, dim, item.start, item.stop, item.step or 1)
        else:
            if not isinstance(item, CardTensor):
                card().note("places from the host")
                item = torch.as_tensor(item).to(CUDA, non_blocking=True)
            indices += [None] * (dim - len(indices)) + [item]
        dim += 1
    return x, indices


def card() -> Card:
    assert Card.active is not None
    return Card.active


def on_card(held: Tensor) -> CardTensor:
    """Memory of its own, with what is in it."""
    return CardTensor(held, Block(card(), held))


def held_of(x: Any) -> Any:
    return x.held if isinstance(x, CardTensor) else x


def is_pinned(x: Tensor) -> bool:
    return x.untyped_storage().data_ptr() in _pinned


def host_copy(x: CardTensor, why: str) -> Tensor:
    """What the host sees if it waits now."""
    card().note(why)
    card().finish(card().new_event())
    return x.held.clone()


def dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    flat, _ = tree_flatten((args, kwargs))
    mine = [x for x in flat if isinstance(x, CardTensor)]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    if asked is None and not mine:
        if kwargs.get("pin_memory"):
            return pinned(func, args, kwargs)
        if name == "is_pinned":
            return is_pinned(args[0])
        return copied(func, args, kwargs) if name == "copy_" else func(*args, **kwargs)
    if name in ("to", "_to_copy"):
        return moved(args, kwargs, asked) if name == "_to_copy" else composite(func, args, kwargs)
    if kwargs.get("pin_memory"):
        return pinned(func, args, kwargs)
    if asked is not None and asked.type == "cpu":
        kwargs = {**kwargs, "device": asked}
        return func(*tree_map(as_meta, args), **kwargs) if mine else func(*args, **kwargs)
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return composite(func, args, kwargs)
    if name == "copy_":
        return copied(func, args, kwargs)
    if name == "is_pinned":
        return False
    check_devices(name, flat)
    if any(name == wait or name.startswith(f"{wait}_") for wait in WAITS) or picks_by_mask(name, args):
        card().note(name)
        card().finish(card().new_event())
        result = func(*tree_map(held_of, args), **tree_map(held_of, kwargs))
        return tree_map(lambda x: on_card(x) if isinstance(x, Tensor) else x, result)
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    return computed(func, name, args, kwargs)


def composite(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What is made of other operations: those are looked at."""
    with Dispatched():
        return func.decompose(*args, **kwargs)


def as_meta(x: Any) -> Any:
    """Its shape alone."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") if isinstance(x, Tensor) else x


def check_devices(name: str, flat: list[Any]) -> None:
    for x in flat:
        if isinstance(x, Tensor) and not isinstance(x, CardTensor) and x.dim():
            raise RuntimeError(f"{name}: all tensors must be on the same device, found cuda:0 and a CPU's {x.shape}")


def picks_by_mask(name: str, args: Any) -> bool:
    """Whether places are counted before a result can be taken memory for."""
    if name not in ("index", "index_put", "index_put_"):
        return False
    return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])


def computed(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    args, kwargs_held = tree_map(lambda x: x, args), tree_map(held_of, kwargs)
    held = tree_map(held_of, args)
    if func.is_view:
        owner = args[0]
        return tree_map(
            lambda x: CardTensor(x, owner.block) if isinstance(x, Tensor) else x, func(*held, **kwargs_held)
        )
    card().launches.append(name)
    if func._schema.is_mutable:
        card().order(lambda: func(*held, **kwargs_held))
        written = [arg for arg in func._schema.arguments if arg.alias_info is not None and arg.alias_info.is_write]
        results = [
            kwargs[arg.name] if arg.name in kwargs else args[func._schema.arguments.index(arg)] for arg in written
        ]
        return results[0] if len(results) == 1 else tuple(results)
    shape = func(
        *tree_map(as_meta, args), **{**tree_map(as_meta, kwargs), **({"device": "meta"} if "device" in kwargs else {})}
    )
    leaves, spec = tree_flatten(shape)
    made = [empty(leaf) for leaf in leaves]
    if not name.startswith(("empty", "new_empty")):
        targets = [tensor.held for tensor in made]

        def work() -> None:
            for target, source in zip(targets, tree_flatten(func(*held, **kwargs_held))[0], strict=True):
                target.copy_(source)

        card().order(work)
    return tree_unflatten(made, spec)


def empty(like: Tensor) -> CardTensor:
    card().check_room(like.untyped_storage().nbytes())
    made = on_card(torch.empty_strided(like.shape, like.stride(), dtype=like.dtype))
    target = made.held
    card().order(lambda: fill_with_garbage(target))
    return made


def pinned(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    made: Tensor = func(*args, **{**kwargs, "pin_memory": False})
    _pinned[made.untyped_storage().data_ptr()] = made
    return made


def moved(args: Any, kwargs: dict[str, Any], asked: torch.device | None) -> Tensor:
    (source,) = args
    dtype = kwargs.get("dtype") or source.dtype
    if asked is None or asked.type == source.device.type:
        return computed(
            aten._to_copy.default, "_to_copy", args, {key: value for key, value in kwargs.items() if key != "device"}
        )
    if asked.type == "cpu":
        return host_copy(source, "copy to the host").to(dtype)
    target = empty(torch.empty_strided(source.shape, source.stride(), dtype=dtype, device="meta"))
    return copied(aten.copy_.default, (target, source, kwargs.get("non_blocking", False)), {})


def copied(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    target, source = args[:2]
    waits_not = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
    to_card, from_card = isinstance(target, CardTensor), isinstance(source, CardTensor)
    to, of = held_of(target), held_of(source)
    if not to_card and not from_card:
        to.copy_(of)
        return target  # type: ignore[no-any-return]
    card().launches.append("copy_" if to_card and from_card else "copy in" if to_card else "copy out")
    if to_card and from_card:
        card().order(lambda: to.copy_(of))
        return target  # type: ignore[no-any-return]
    host = source if to_card else target
    if waits_not and is_pinned(host):
        card().order(lambda: to.copy_(of))
        return target  # type: ignore[no-any-return]
    if to_card and not source.dim():
        of = of.clone()  # a number, which goes with the order
        card().order(lambda: to.copy_(of))
        return target  # type: ignore[no-any-return]
    card().note("copy from pageable memory" if to_card else "copy to the host")
    card().order(lambda: to.copy_(of))
    card().finish(card().new_event())
    return target  # type: ignore[no-any-return]


def launched(run: Callable[..., None]) -> Callable[..., None]:
    """Triton's interpreter, but late; all tensors must be where a kernel can reach them."""

    def late(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        tensors = [(name, x) for name, x in [*zip(self.arg_names, args, strict=False), *kwargs.items()]]
        given = [(name, x) for name, x in tensors if isinstance(x, Tensor)]
        if not any(isinstance(x, CardTensor) for _, x in given):
            return run(self, *args, grid=grid, warmup=warmup, **kwargs)
        for name, x in given:
            assert isinstance(x, CardTensor) or is_pinned(x), f"{self.fn.__name__}: {name} is on the CPU"
        args, kwargs = tree_map(held_of, (args, kwargs))
        card().launches.append(self.fn.__name__)
        card().order(lambda: run(self, *args, grid=grid, warmup=warmup, **kwargs))
        return None

    return late


@contextmanager
def simulated(patch: pytest.MonkeyPatch, made: Card) -> Iterator[Card]:
    """torch sees a GPU meanwhile, in this thread."""
    from triton.runtime.interpreter import InterpretedFunction

    torch._C._ensureCUDADeviceGuardSet()
    cuda: Any = torch.cuda
    stand_ins: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "set_device": lambda _: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device": lambda *_: nullcontext(),
        "get_device_name": lambda *_: "a simulated card",
        "get_device_capability": lambda *_: (9, 0),
        "Stream": made.new_stream,
        "Event": lambda **_: Event(made),
        "current_stream": lambda *_: made.current,
        "stream": lambda stream: streaming(made, stream),
        "CUDAGraph": Graph,
        "graph": Recording,
        "synchronize": lambda *_: (made.note("synchronize"), made.synchronize()),
        "memory_allocated": lambda *_: made.live_bytes,
        "max_memory_allocated": lambda *_: made.peak_bytes,
        "reset_peak_memory_stats": lambda *_: setattr(made, "peak_bytes", made.live_bytes),
        "empty_cache": lambda: None,
        "mem_get_info": lambda *_: (made.total_bytes - made.live_bytes, made.total_bytes),
    }
    for name, value in stand_ins.items():
        patch.setattr(cuda, name, value)
    patch.setattr(torch.version, "cuda", "13.0")
    patch.setattr(torch, "as_tensor", borrowing(torch.as_tensor))
    patch.setattr(InterpretedFunction, "run", launched(InterpretedFunction.run))
    patch.setattr(Card, "active", made)
    with Dispatched():
        yield made
    _pinned.clear()


def borrowing(as_tensor: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.as_tensor`, which also takes the card's memory, and does not keep it."""

    def borrowed(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        interface = getattr(data, "__cuda_array_interface__", None)
        if interface is None:
            return as_tensor(data, *args, **kwargs)
        graph = card().graphs[-1]
        pointer, dtype = interface["data"][0], {"<f4": torch.float32, "<i8": torch.int64}[interface["typestr"]]
        (block,) = [x for x in graph.alive.values() if 0 <= pointer - x.data_ptr() < x.untyped_storage().nbytes()]
        strides = [stride // dtype.itemsize for stride in interface["strides"]]
        offset = (pointer - block.data_ptr()) // dtype.itemsize
        held = torch.empty(0, dtype=dtype).set_(block.untyped_storage(), offset, interface["shape"], strides)
        return CardTensor(held, None)

    return borrowed


@contextmanager
def streaming(made: Card, stream: Stream) -> Iterator[None]:
    before, made.current = made.current, stream
    try:
        yield
    finally:
        made.current = before
