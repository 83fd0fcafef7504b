"""Checked reading of what lies inside a body's lists: objects of several types, of which clients send back our own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.protocol.base import check_text
from paged_backend.handlers.openai.protocol.objects import ObjectKind


def wrong_type(place: str, what: str) -> InvalidRequestError:
    """What a value of a wrong JSON type is answered with: `what` says what it must be."""
    return InvalidRequestError(f"{place} must be {what}.", param=f"body.{place}")


def read_objects(value: Any, place: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The objects of a list, each with its place.

    Raises:
        InvalidRequestError: it is no list of objects.
    """
    if not isinstance(value, list):
        raise wrong_type(place, "a list of objects")
    for index, part in enumerate(value):
        if not isinstance(part, dict):
            raise wrong_type(f"{place}.{index}", "an object")
    return [(f"{place}.{index}", part) for index, part in enumerate(value)]


def read_text(item: Mapping[str, Any], name: str, place: str, *, default: str | None = None) -> str:
    """A field that is text.

    Args:
        default: stands for a field that is null or missing; None refuses that.

    Raises:
        InvalidRequestError: it is something else, or half a character.
    """
    value = item.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise wrong_type(f"{place}.{name}", "a string")
    check_text(value, f"{place}.{name}")
    return value


def kind_of(item: Mapping[str, Any], place: str, kinds: Mapping[str, ObjectKind]) -> str:
    """The type of an object, its fields checked by it.

    Raises:
        InvalidRequestError: it is of another type, or has a field that we do not have.
    """
    kind = item.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        raise unknown_kind(place, kind, kinds)
    kinds[kind].check(item, place)
    return kind


def read_parts(value: Any, place: str, kinds: Mapping[str, ObjectKind]) -> str:
    """The text of a content, given as a string or as parts.

    Args:
        kinds: parts by their type, all of them text.

    Raises:
        InvalidRequestError: it is neither, or a part is of another type, or has a field that we do not have.
    """
    if isinstance(value, str):
        check_text(value, place)
        return value
    if not isinstance(value, list):
        raise wrong_type(place, "a string or a list of parts")
    texts = []
    for part_place, part in read_objects(value, place):
        texts.append(read_text(part, kinds[kind_of(part, part_place, kinds)].text_field, part_place))
    return "\n".join(texts)


def unknown_kind(place: str, kind: Any, known: Iterable[str]) -> InvalidRequestError:
    """What an item or a part of a type that we do not have is answered with."""
    if not isinstance(kind, str):
        return wrong_type(f"{place}.type", f"one of {', '.join(known)}")
    return InvalidRequestError(
        f"{place}.type must be one of {', '.join(known)}: this server takes no {kind!r}.", param=f"{place}.type"
    )
