"""What every body has in common: exact types, known names, and one wording of what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, FailFast, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from paged_backend.config import unknown_name_message
from paged_backend.errors import InvalidRequestError

_Item = TypeVar("_Item")
_NUM_AT_ONCE = 1000


def _piecewise(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Checks a large object in pieces, and no further than the first that has a fault."""
    if not isinstance(value, dict) or len(value) <= _NUM_AT_ONCE:
        return check(value)
    items, checked = iter(value.items()), {}
    while piece := dict(islice(items, _NUM_AT_ONCE)):
        checked.update(check(piece))
    return checked


class _FailFast(FailFast):
    """Pydantic's own, but one that typing can hash, as it must inside of a union."""

    __hash__ = object.__hash__


ListOf = Annotated[list[_Item], _FailFast()]
"""A list in a body. Of a plain one, every wrong item would be told, which takes seconds where there are millions."""

ObjectOf = Annotated[dict[str, _Item], WrapValidator(_piecewise)]
"""An object in a body whose names are the client's, for the same reason."""


class Refusal(NamedTuple):
    """Of a published field that we do not have.

    Attributes:
        why: ends the sentence "NAME is not supported by this server: ...".
        nothing: values (beside null) that ask for nothing, and are taken.
    """

    why: str
    nothing: tuple[Any, ...] = ()


class RequestBody(BaseModel):
    """A JSON body. Types are exact ("16" is no integer), and unknown fields are errors."""

    model_config = ConfigDict(strict=True, extra="forbid")

    unsupported: ClassVar[Mapping[str, Refusal]] = MappingProxyType({})
    """Published fields that we do not have."""


class StreamOptions(RequestBody):
    """What a stream sends beside its tokens. `include_obfuscation` pads chunks at OpenAI; here nothing does."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool | None = None


HARMLESS = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "user",
    }
)
"""Published fields that change nothing about the answer: labels and hints. They are ignored."""

_Body = TypeVar("_Body", bound=RequestBody)


def parse_body(kind: type[_Body], body: Mapping[str, Any]) -> _Body:
    """Checks a body's fields and types.

    Null means "not given" everywhere.

    Raises:
        InvalidRequestError: a field is unknown, not supported, missing, or of a wrong type (`param` is then
            "body.FIELD").
    """
    try:
        return kind.model_validate(_given(kind, body))
    except ValidationError as error:
        raise _translate(error) from None


def nested_bodies(kind: type[RequestBody]) -> Mapping[str, type[RequestBody]]:
    """The fields of a body that are objects with fields of their own, and what those are."""
    nested = {}
    for name, field in kind.model_fields.items():
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, RequestBody):
                nested[field.alias or name] = candidate
    return nested


def check_text(value: str | None, param: str) -> None:
    """Refuses a lone surrogate: JSON can spell one, and no tokenizer can read it.

    Raises:
        InvalidRequestError: there is one.
    """
    if value is None or value.isascii():
        return
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{param} holds half a character (the surrogate U+{ord(value[error.start]):04X} alone).",
            param=param,
        ) from None


def check_supported(name: str, value: Any, refusal: Refusal, prefix: str = "") -> None:
    """Refuses a published field that we do not have, unless it asks for nothing.

    Args:
        prefix: where its object lies in the body, such as "stream_options.".

    Raises:
        InvalidRequestError: it asks for something.
    """
    if not any(_same(value, nothing) for nothing in refusal.nothing):
        raise InvalidRequestError(
            f"{prefix}{name} is not supported by this server: {refusal.why}.", param=f"{prefix}{name}"
        )


def unknown_field(name: str, known: Sequence[str], prefix: str = "") -> InvalidRequestError:
    """What a field that nobody knows is answered with; the arguments are those of `check_supported`."""
    place = f"{prefix}{name}"
    message = unknown_name_message("request field", name, known)
    return InvalidRequestError(f"{place}: {message}" if prefix else message, param=place)


def _same(value: Any, nothing: Any) -> bool:
    """Equality in which true is not 1: JSON's types matter."""
    return value == nothing and isinstance(value, bool) == isinstance(nothing, bool)


def _given(kind: type[RequestBody], body: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields that are given, names checked; objects inside have the whole body's rules.

    Args:
        prefix: where the object lies in the body, such as "stream_options.".
    """
    fields = [field.alias or name for name, field in kind.model_fields.items()]
    harmless = () if prefix else HARMLESS.difference(fields)
    nested = nested_bodies(kind)
    given = {}
    for name, value in body.items():
        if value is None or name in harmless:
            continue
        if name in kind.unsupported:
            check_supported(name, value, kind.unsupported[name], prefix)
            continue
        inner = isinstance(value, dict) and name in nested
        given[name] = _given(nested[name], value, f"{prefix}{name}.") if inner else value
    known = (*fields, *harmless, *kind.unsupported)
    for name in body:
        if name not in known:
            raise unknown_field(str(name), known, prefix)
    return given


def _translate(error: ValidationError) -> InvalidRequestError:
    """Pydantic's complaint in our words: one sentence per field, the first field as `param`."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    places = [".".join(str(part) for part in detail["loc"]) for detail in details]
    shown = [f"{place}: {detail['msg']}" for place, detail in zip(places, details, strict=True)][:3]
    return InvalidRequestError("; ".join(shown) + ".", param=f"body.{places[0]}")
