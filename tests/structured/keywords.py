"""JSON Schema's keywords, one small schema for each use of them, with instances that fit it and that do not."""

from __future__ import annotations

from typing import Any, NamedTuple


class KeywordCase(NamedTuple):
    """A schema for one keyword. Every instance of `good` is valid, none of `bad` is."""

    keyword: str
    schema: dict[str, Any]
    good: tuple[Any, ...]
    bad: tuple[Any, ...]


def _object(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


_NODE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["value", "next"],
    "additionalProperties": False,
}

_NUMBER = {"type": "integer"}
_SWITCH = {"type": "boolean"}
_POINT = _object({"x": {"type": "integer"}, "y": {"type": "integer"}}, "x", "y", additionalProperties=False)

CASES: tuple[KeywordCase, ...] = (
    # Types
    KeywordCase("type", {"type": "null"}, (None,), (0, "", False)),
    KeywordCase("type", {"type": "boolean"}, (True, False), (0, "true")),
    KeywordCase("type", {"type": "integer"}, (0, -7, 12345678901), (1.5, "1")),
    KeywordCase("type", {"type": "number"}, (0, -1.25, 2.5e10), ("1", None)),
    KeywordCase("type", {"type": "string"}, ("", "a b", 'say "hi"', "é", "\n"), (1, None)),
    KeywordCase("type", {"type": "array"}, ([], [1, "a", None], [[{}]]), ({}, "[]")),
    KeywordCase("type", {"type": "object"}, ({}, {"a": [1]}), ([], "x")),
    KeywordCase("type", {"type": ["string", "null"]}, ("x", None), (1, [])),
    KeywordCase("enum", {"enum": ["red", "green", 3, None, True]}, ("red", 3, None, True), ("blue", 4)),
    KeywordCase("enum", {"enum": [{"a": 1}, [1, 2]]}, ({"a": 1}, [1, 2]), ({"a": 2}, [1])),
    KeywordCase("const", {"const": "only this"}, ("only this",), ("only", 1)),
    KeywordCase("const", {"const": {"a": [1, "b"]}}, ({"a": [1, "b"]},), ({"a": []},)),
    # Strings
    KeywordCase("minLength", {"type": "string", "minLength": 3}, ("abc", "abcd"), ("", "ab")),
    KeywordCase("maxLength", {"type": "string", "maxLength": 3}, ("", "abc"), ("abcd",)),
    KeywordCase("maxLength", {"type": "string", "minLength": 2, "maxLength": 2}, ("ab", "éé"), ("a", "abc")),
    KeywordCase("pattern", {"type": "string", "pattern": "^[a-z]{2,4}$"}, ("ab", "abcd"), ("a", "AB", "abcde")),
    KeywordCase("pattern", {"type": "string", "pattern": "[0-9]"}, ("7", "a1b"), ("", "abc")),
    KeywordCase("pattern", {"type": "string", "pattern": "^(\\d{3}-)?\\d{4}$"}, ("555-1234", "1234"), ("12345",)),
    KeywordCase("format", {"type": "string", "format": "date"}, ("2024-02-28",), ("2024-13-01", "yesterday")),
    KeywordCase("format", {"type": "string", "format": "time"}, ("12:30:00Z",), ("25:00:00Z", "noon")),
    KeywordCase("format", {"type": "string", "format": "date-time"}, ("2024-02-28T12:30:00Z",), ("2024-02-28",)),
    KeywordCase("format", {"type": "string", "format": "duration"}, ("P3DT4H",), ("3 days",)),
    KeywordCase("format", {"type": "string", "format": "email"}, ("a@example.com",), ("nobody",)),
    KeywordCase("format", {"type": "string", "format": "hostname"}, ("www.example.com",), ("-a-.", "a b")),
    KeywordCase("format", {"type": "string", "format": "ipv4"}, ("127.0.0.1",), ("256.0.0.1", "1.2.3")),
    KeywordCase("format", {"type": "string", "format": "ipv6"}, ("::1", "2001:db8::8a2e:370:7334"), ("1::2::3",)),
    KeywordCase("format", {"type": "string", "format": "uuid"}, ("2f3b9a1e-5c4d-4e6f-8a7b-0123456789ab",), ("2f3b",)),
    KeywordCase("format", {"type": "string", "format": "uri"}, ("https://example.com/a?b=c",), ("no spaces allowed",)),
    # Numbers
    KeywordCase("minimum", {"type": "integer", "minimum": 5}, (5, 1000), (4, -5)),
    KeywordCase("maximum", {"type": "integer", "maximum": 5}, (5, -1000), (6, 50)),
    KeywordCase("minimum", {"type": "integer", "minimum": -3, "maximum": 12}, (-3, 0, 12), (-4, 13)),
    KeywordCase("exclusiveMinimum", {"type": "integer", "exclusiveMinimum": 5, "maximum": 9}, (6, 9), (5, 10)),
    KeywordCase("exclusiveMaximum", {"type": "integer", "minimum": 1, "exclusiveMaximum": 5}, (1, 4), (0, 5)),
    KeywordCase("minimum", {"type": "number", "minimum": 0.5, "maximum": 2.25}, (0.5, 1, 2.25), (0.4, 2.3)),
    KeywordCase("exclusiveMinimum", {"type": "number", "exclusiveMinimum": 0, "maximum": 1}, (0.01, 1), (0, 1.5)),
    KeywordCase("multipleOf", {"type": "integer", "multipleOf": 7}, (0, 7, 49), (1, 50)),
    KeywordCase("multipleOf", {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 2}, (0.25, 1.5), (0.3,)),
    # Arrays
    KeywordCase("items", {"type": "array", "items": {"type": "integer"}}, ([], [1, 2]), (["a"], [1, None])),
    KeywordCase("items", {"type": "array", "items": False}, ([],), ([1],)),
    KeywordCase("minItems", {"type": "array", "items": _SWITCH, "minItems": 2}, ([True, False],), ([], [True])),
    KeywordCase("maxItems", {"type": "array", "items": _SWITCH, "maxItems": 1}, ([], [True]), ([True] * 2,)),
    KeywordCase(
        "prefixItems",
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 2, "items": False},
        (["a", 1],),
        (["a"], [1, "a"], ["a", 1, 2]),
    ),
    KeywordCase(
        "prefixItems",
        {"type": "array", "prefixItems": [{"const": 1}], "items": {"type": "null"}},
        ([1], [1, None]),
        ([2], [1, 1]),
    ),
    KeywordCase("uniqueItems", {"type": "array", "items": _NUMBER, "uniqueItems": True}, ([1, 2],), ([1, 1],)),
    KeywordCase(
        "contains", {"type": "array", "items": {"type": "integer"}, "contains": {"const": 3}}, ([1, 3],), ([], [1])
    ),
    # Objects
    KeywordCase(
        "properties",
        _object({"a": {"type": "string"}, "b": {"type": "integer"}}, "a", "b", additionalProperties=False),
        ({"a": "x", "b": 1},),
        ({"a": "x"}, {"a": 1, "b": 1}, {"a": "x", "b": 1, "c": 2}),
    ),
    KeywordCase(
        "required",
        _object({"a": {"type": "string"}, "b": {"type": "integer"}}, "b", additionalProperties=False),
        ({"b": 1}, {"a": "x", "b": 1}),
        ({}, {"a": "x"}),
    ),
    KeywordCase("required", {"type": "object", "required": ["k"]}, ({"k": 1},), ({}, {"j": 1})),
    KeywordCase(
        "additionalProperties",
        {"type": "object", "properties": {"id": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}},
        ({}, {"id": 1, "on": True}),
        ({"id": 1, "on": 1},),
    ),
    KeywordCase(
        "patternProperties",
        {"type": "object", "patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False},
        ({}, {"n_a": 1}),
        ({"n_a": "x"}, {"m": 1}),
    ),
    KeywordCase(
        "minProperties",
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2},
        ({"a": 1, "b": 2},),
        ({}, {"a": 1}),
    ),
    KeywordCase(
        "maxProperties",
        {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 1},
        ({}, {"a": 1}),
        ({"a": 1, "b": 2},),
    ),
    KeywordCase(
        "propertyNames",
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": {"type": "integer"}},
        ({"ab": 1},),
        ({"A": 1},),
    ),
    KeywordCase(
        "dependentRequired",
        _object({"a": {"type": "integer"}, "b": {"type": "integer"}}, dependentRequired={"a": ["b"]}),
        ({"a": 1, "b": 2}, {}),
        ({"a": 1},),
    ),
    # Combinations
    KeywordCase("anyOf", {"anyOf": [_NUMBER, {"type": "string", "maxLength": 2}]}, (5, "ab"), ("abc", None)),
    KeywordCase("anyOf", {"anyOf": [_POINT, {"type": "null"}]}, ({"x": 1, "y": 2}, None), ({"x": 1}, 0)),
    KeywordCase(
        "oneOf",
        {
            "oneOf": [
                _object({"kind": {"const": "cat"}, "lives": {"type": "integer"}}, "kind", "lives"),
                _object({"kind": {"const": "dog"}, "tricks": {"type": "array"}}, "kind", "tricks"),
            ]
        },
        ({"kind": "cat", "lives": 9}, {"kind": "dog", "tricks": []}),
        ({"kind": "cow"}, {"kind": "cat"}),
    ),
    KeywordCase("oneOf", {"oneOf": [{"type": "integer"}, {"type": "boolean"}]}, (1, True), ("1", None)),
    KeywordCase(
        "oneOf",
        {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 10}]},
        (-1, 11),
        (5,),
    ),
    KeywordCase(
        "allOf",
        {"allOf": [_object({"a": {"type": "integer"}}, "a"), _object({"b": {"type": "string"}}, "b")]},
        ({"a": 1, "b": "x"},),
        ({"a": 1}, {"b": "x"}),
    ),
    KeywordCase("allOf", {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, (3, 5), (2, 6)),
    KeywordCase("not", {"type": "string", "not": {"const": "no"}}, ("yes",), ("no",)),
    KeywordCase(
        "if",
        {
            **_object({"a": {"type": "boolean"}, "b": {"type": "integer"}}, "a", "b"),
            "if": {"properties": {"a": {"const": True}}},
            "then": {"properties": {"b": {"minimum": 10}}},
        },
        ({"a": True, "b": 10}, {"a": False, "b": 1}),
        ({"a": True, "b": 1},),
    ),
    # References
    KeywordCase(
        "$ref",
        {**_object({"from": {"$ref": "#/$defs/p"}, "to": {"$ref": "#/$defs/p"}}, "from", "to"), "$defs": {"p": _POINT}},
        ({"from": {"x": 0, "y": 0}, "to": {"x": 1, "y": 1}},),
        ({"from": {"x": 0}, "to": {"x": 1, "y": 1}},),
    ),
    KeywordCase(
        "$ref",
        {"$ref": "#/definitions/s", "definitions": {"s": {"type": "string", "maxLength": 4}}},
        ("abcd",),
        ("abcde", 1),
    ),
    KeywordCase(
        "$ref",
        {"$ref": "#/$defs/node", "$defs": {"node": _NODE}},
        ({"value": 1, "next": {"value": 2, "next": None}},),
        ({"value": 1}, {"value": 1, "next": 3}),
    ),
    # What says nothing about the instance
    KeywordCase(
        "annotations",
        {"title": "T", "description": "D", "$comment": "C", "default": 1, "examples": [2], "type": "integer"},
        (3,),
        ("3",),
    ),
)
"""Every use of a keyword that clients send. What the engine does not support, it must refuse."""
