"""What a request says of functions that change its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from paged_backend.errors import InvalidRequestError

LogitsProcessor = Callable[[Sequence[int], Sequence[int], Any], Any]
"""(prompt's token ids, those drawn after it, float32 logits [vocab_size], to read or to change) -> logits like them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsProcessorConstructor:
    """What makes a request's processor. Names are those of vLLM's class.

    Attributes:
        qualname: "package.module:name" of a class or function, one that the engine was configured with.
        args, kwargs: what it is called with.
    """

    qualname: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)


def as_processor(value: Any) -> LogitsProcessor | LogitsProcessorConstructor | str:
    """An entry of `logits_processors`, its mapping made into what it stands for.

    Raises:
        InvalidRequestError: it is none.
    """
    if isinstance(value, Mapping):
        try:
            value = LogitsProcessorConstructor(**{"args": (), **value})
        except TypeError as error:
            raise _refusal(
                f"an object with qualname, args and kwargs, got the fields {sorted(map(str, value))}"
            ) from error
    if isinstance(value, LogitsProcessorConstructor):
        listed = isinstance(value.args, Sequence) and not isinstance(value.args, str)
        if not isinstance(value.qualname, str) or not listed or not isinstance(value.kwargs, Mapping):
            raise _refusal("an object with qualname (a string), args (a list) and kwargs (an object)")
        return value
    if not isinstance(value, str) and not callable(value):
        raise _refusal(f"names, objects with qualname, args and kwargs, or functions, got {value!r}")
    return cast("LogitsProcessor | str", value)


def _refusal(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"logits_processors must hold {what}.", param="logits_processors")
