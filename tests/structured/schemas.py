"""Many JSON schemas: one for each use of a keyword, and random ones that combine them."""

from __future__ import annotations

import random
from typing import Any

from tests.structured.keywords import CASES

REFUSED = frozenset(("uniqueItems", "contains", "propertyNames", "dependentRequired", "not", "if"))
"""Keywords that no output is promised to keep to: schemas that have them are refused."""

_NAMES = ("id", "name", "kind", "tags", "size", "when", "notes", "ok", "parent", "n")
_FORMATS = ("date", "time", "date-time", "ipv4", "uuid", "email")
_DIGIT = {"type": "integer", "minimum": -9, "maximum": 9}
_DEFS = {
    "point": {
        "type": "object",
        "properties": {"x": _DIGIT, "y": _DIGIT},
        "required": ["x"],
        "additionalProperties": False,
    }
}
_PATTERNS = ("^[a-z]{1,6}$", "^[A-Z]{2}-[0-9]{1,4}$", "^(on|off|auto)$", "^#[0-9a-f]{6}$", "^x?y+z{0,3}$")


def supported(schema: Any) -> bool:
    """Whether a schema is to be served: it has none of REFUSED, and alternatives that exclude each other."""
    if isinstance(schema, list):
        return all(map(supported, schema))
    if not isinstance(schema, dict):
        return True
    overlapping = "oneOf" in schema and all(part.get("type") == "integer" for part in schema["oneOf"])
    return REFUSED.isdisjoint(schema) and not overlapping and all(map(supported, schema.values()))


def many_schemas(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """So many schemas that are supported: those of CASES, then random ones. The same for the same seed."""
    schemas = [case.schema for case in CASES if supported(case.schema)]
    draw = random.Random(seed)
    schemas += [{**random_schema(draw, depth=3), "$defs": _DEFS} for _ in range(count - len(schemas))]
    return schemas[:count]


def random_schema(draw: random.Random, depth: int) -> dict[str, Any]:
    """A schema whose outputs are mostly short."""
    kinds = [_string, _integer, _number, _choice, lambda draw, depth: {"type": draw.choice(("boolean", "null"))}]
    if depth > 0:
        kinds += [_array, _tuple, _object, _object, _map, _any_of, _tagged, _all_of, _shared]
    return draw.choice(kinds)(draw, depth - 1)


def _string(draw: random.Random, depth: int) -> dict[str, Any]:
    least = draw.randrange(4)
    return draw.choice(
        (
            {"type": "string", "minLength": least, "maxLength": least + draw.randrange(8)},
            {"type": "string", "pattern": draw.choice(_PATTERNS)},
            {"type": "string", "format": draw.choice(_FORMATS)},
        )
    )


def _integer(draw: random.Random, depth: int) -> dict[str, Any]:
    low = draw.randrange(-50, 50)
    high = low + draw.randrange(5, 300)
    return draw.choice(
        (
            {"type": "integer", "minimum": low, "maximum": high},
            {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high},
            {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": draw.choice((2, 5, 7))},
        )
    )


def _number(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "number", "minimum": draw.randrange(-9, 1), "maximum": draw.randrange(2, 90) / 4}


def _choice(draw: random.Random, depth: int) -> dict[str, Any]:
    values = draw.sample(["a", "b b", "ü", 1, -2.5, None, True, ["x", 1], {"k": []}], 3)
    return {"const": values[0]} if draw.random() < 0.3 else {"enum": values}


def _array(draw: random.Random, depth: int) -> dict[str, Any]:
    least = draw.randrange(3)
    return {
        "type": "array",
        "items": random_schema(draw, depth),
        "minItems": least,
        "maxItems": least + draw.randrange(3),
    }


def _tuple(draw: random.Random, depth: int) -> dict[str, Any]:
    parts = [random_schema(draw, depth) for _ in range(draw.randrange(1, 4))]
    return {"type": "array", "prefixItems": parts, "minItems": len(parts), "items": False}


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample(_NAMES, draw.randrange(1, 5))
    schema = {
        "type": "object",
        "properties": {name: random_schema(draw, depth) for name in names},
        "required": [name for name in names if draw.random() < 0.7],
        "additionalProperties": False,
    }
    return {"title": "A thing", "description": "What it is.", **schema} if draw.random() < 0.3 else schema


def _map(draw: random.Random, depth: int) -> dict[str, Any]:
    rest = {"patternProperties": {"^k[0-9]$": random_schema(draw, depth)}, "additionalProperties": False}
    return {"type": "object", **rest} if draw.random() < 0.5 else {"type": "object", **rest, "maxProperties": 3}


def _any_of(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(draw, depth) for _ in range(draw.randrange(2, 4))]}


def _tagged(draw: random.Random, depth: int) -> dict[str, Any]:
    parts = []
    for tag in draw.sample(("cat", "dog", "cow"), 2):
        own = {"kind": {"const": tag}, "value": random_schema(draw, depth)}
        required = ["kind", "value"]
        parts.append({"type": "object", "properties": own, "required": required, "additionalProperties": False})
    return {"oneOf": parts}


def _all_of(draw: random.Random, depth: int) -> dict[str, Any]:
    first, second = draw.sample(_NAMES, 2)
    return {
        "type": "object",
        "allOf": [
            {"properties": {first: random_schema(draw, depth)}, "required": [first]},
            {"properties": {second: random_schema(draw, depth)}, "required": [second]},
        ],
        "properties": {first: True, second: True},
        "additionalProperties": False,
    }


def _shared(draw: random.Random, depth: int) -> dict[str, Any]:
    point = {"$ref": "#/$defs/point"}
    pair = {"type": "array", "items": point, "minItems": 1, "maxItems": 2}
    return {
        "type": "object",
        "properties": {"from": point, "via": pair},
        "required": ["from"],
        "additionalProperties": False,
    }
