"""The objects inside of a body's lists, such as blocks and items: which fields each kind of them may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paged_backend.handlers.openai.protocol.base import Refusal, check_supported, unknown_field

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
OBJECT: Schema = {"type": "object"}
DIRECT_CALLER = Refusal('all calls are the model\'s own, {"type": "direct"}', ({"type": "direct"},))
DIRECT_CALLERS = Refusal('all calls are the model\'s own, ["direct"]', (["direct"],))
ALL_AT_ONCE = Refusal("all tools are shown to the model from the beginning", (False,))
"""What both vendors publish for tools that run beside the model, of which there are none here."""


@dataclass(frozen=True, slots=True)
class ObjectKind:
    """One kind of object.

    Clients send back what they got, with the fields that it leaves empty: a null is no field, whatever its name.

    Attributes:
        required, optional: the fields that are read, each with the JSON schema of what they hold.
        harmless: published fields that by their nature change nothing about the answer. They are ignored.
        unsupported: published fields that we do not have.
        text_field: the one that has the text, of an object that is text and no more.
    """

    required: Mapping[str, Schema]
    optional: Mapping[str, Schema] = field(default_factory=dict)
    harmless: tuple[str, ...] = ()
    unsupported: Mapping[str, Refusal] = field(default_factory=dict)
    text_field: str = "text"

    def check(self, value: Mapping[str, Any], place: str) -> None:
        """Looks at the names of an object's fields; their values are for those who read them.

        Args:
            place: where the object lies in the body, such as "input.0".

        Raises:
            InvalidRequestError: one is unknown, or not supported; `param` is its place.
        """
        known = (*self.required, *self.optional, *self.harmless)
        for name, given in value.items():
            if given is None or name in known:
                continue
            if name not in self.unsupported:
                raise unknown_field(name, (*known, *self.unsupported), f"{place}.")
            check_supported(name, given, self.unsupported[name], f"{place}.")

    def schema(self) -> Schema:
        """What such an object looks like."""
        properties: Schema = dict(self.required)
        for name, schema in self.optional.items():
            properties[name] = {"anyOf": [schema, {"type": "null"}]}
        for name in self.harmless:
            properties[name] = {"description": "Taken and ignored."}
        for name, refusal in self.unsupported.items():
            properties[name] = {"enum": [None, *refusal.nothing]}
        return {
            "type": "object",
            "required": list(self.required),
            "properties": properties,
            "additionalProperties": {"type": "null"},
        }


def of_type(name: str) -> dict[str, Schema]:
    """The field that says of which kind an object is."""
    return {"type": {"const": name}}


def list_of(*kinds: ObjectKind) -> Schema:
    """The schema of a list of objects of these kinds."""
    schemas = [kind.schema() for kind in kinds]
    return {"type": "array", "items": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}


def text_or(*kinds: ObjectKind) -> Schema:
    """The schema of a content: a string, or a list of such objects."""
    return {"anyOf": [{"type": "string"}, list_of(*kinds)]}
