"""From parameters to what is compiled, or to what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest

from paged_backend.errors import InvalidRequestError
from paged_backend.sampling_params import SamplingParams, StructuredOutputsParams
from paged_backend.structured.source import MAX_SOURCE_CHARACTERS, GrammarSource
from tests.structured.conftest import Compile

POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"json_object": False},
        {"regex": "a", "choice": ["b"]},
        {"regex": 5},
        {"choice": "ab"},
        {"choice": []},
        {"choice": ["a", ""]},
        {"choice": ["a", 1]},
        {"json": 7},
        {"json": [POINT]},
        {"json_object": "yes"},
        {"json": POINT, "disable_any_whitespace": 1},
        {"json": POINT, "whitespace_pattern": 1},
        {"json": POINT, "whitespace_pattern": " ", "disable_any_whitespace": True},
    ],
    ids=repr,
)
def test_wrong_parameters(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        StructuredOutputsParams(**given)
    assert caught.value.param == "structured_outputs"


@pytest.mark.parametrize("other", [{"use_beam_search": True, "n": 2}, {"ignore_eos": True}])
def test_what_excludes_a_structure(other: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="exclude each other") as caught:
        SamplingParams(structured_outputs=StructuredOutputsParams(regex="a"), **other)
    assert caught.value.param in other
    with pytest.raises(InvalidRequestError, match="StructuredOutputsParams"):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]


def test_parameters_travel() -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(json=POINT))
    assert pickle.loads(pickle.dumps(params)) == params
    assert dataclasses.replace(params, seed=1).structured_outputs == params.structured_outputs
    hash(params)


def test_what_is_compiled() -> None:
    schema = {"b": 1, "a": POINT}
    by_value = GrammarSource.of(StructuredOutputsParams(json=schema))
    by_text = GrammarSource.of(StructuredOutputsParams(json=json.dumps(schema), param="response_format"))
    assert by_value == by_text and hash(by_value) == hash(by_text)
    assert list(json.loads(by_value.text)) == ["b", "a"]  # the order is that of the output
    schema["a"] = False
    assert json.loads(by_value.text)["a"] == POINT  # what the caller changes later does not count
    assert by_value != GrammarSource.of(StructuredOutputsParams(json={"a": 1}, disable_any_whitespace=True))
    assert GrammarSource.of(StructuredOutputsParams(json_object=True)).text == '{"type": "object"}'


def test_no_additional_properties() -> None:
    schema = {"properties": {"a": {"items": [POINT]}, "b": {"patternProperties": {}, "additionalProperties": True}}}
    source = GrammarSource.of(StructuredOutputsParams(json=schema, disable_additional_properties=True))
    closed = json.loads(source.text)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["items"][0]["additionalProperties"] is False
    assert closed["properties"]["b"]["additionalProperties"] is True
    assert "additionalProperties" not in POINT


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"json": "{"}, "cannot be used"),
        ({"json": "[1]"}, "must be a JSON object"),
        ({"json": {"a": float("nan")}}, "cannot be used"),
        ({"json": {"a": {1, 2}}}, "cannot be used"),
        ({"json": nested(5000)}, "nested too deeply"),
        ({"json": '{"items":' * 5000 + "{}" + "}" * 5000}, "nested too deeply"),
        ({"json": {"const": "x" * MAX_SOURCE_CHARACTERS}}, "shorten it"),
        ({"json": "x" * (MAX_SOURCE_CHARACTERS + 1)}, "shorten it"),
        ({"regex": "x" * (MAX_SOURCE_CHARACTERS + 1)}, "shorten it"),
        ({"choice": ["x" * 100] * 2000}, "shorten it"),
    ],
    ids=[str(number) for number in range(10)],
)
def test_what_is_refused_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        GrammarSource.of(StructuredOutputsParams(**given, param="response_format"))
    assert caught.value.param == "response_format"
    assert str(caught.value).startswith("response_format: ")


WRONG: list[dict[str, Any]] = [
    {"json": {"type": "strin"}},
    {"json": {"type": "integer", "minimum": 5, "maximum": 3}},
    {"json": {"type": "object", "properties": {"a": False}, "required": ["a"]}},
    {"json": {"$ref": "#/$defs/nowhere"}},
    {"json": {"$ref": "http://example.com/schema.json"}},
    {"json": {"type": "string", "pattern": "("}},
    {"json": {"const": "\ud800"}},
    # What a schema says to the library itself changes nothing.
    {"json": {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}},
    {"json": {"x-guidance": {"coerce_one_of": True}, "oneOf": [{"type": "integer"}, {"type": "number"}]}},
    {"json": POINT, "whitespace_pattern": "("},
    {"regex": "("},
    {"regex": "a(?=b)"},
    {"regex": "[a&&b]"},
    {"regex": "\ud800"},
    {"choice": ["\ud800"]},
    {"grammar": "what is this?"},
    {"grammar": 'root ::= "a" | missing'},
    {"grammar": "start: start"},
    {"grammar": "start: missing"},
    {"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000},
    {"structural_tag": "{"},
    {"structural_tag": "[]"},
    {"structural_tag": '{"format": {}}'},
    {"structural_tag": '{"structures": [], "triggers": []}'},
    {"structural_tag": '{"structures": [{"begin": "<f>", "schema": {}, "end": ""}], "triggers": ["<g"]}'},
    {"structural_tag": '{"structures": [{"begin": "<f>", "schema": 5, "end": ""}], "triggers": ["<f"]}'},
    {"structural_tag": '{"structures": [{"schema": {}}], "triggers": ["<f"]}'},
    {"structural_tag": '{"structures": 5, "triggers": 5}'},
]


@pytest.mark.parametrize("given", WRONG, ids=[f"{i}-{next(iter(given))}" for i, given in enumerate(WRONG)])
def test_what_the_compiler_refuses(given: dict[str, Any], compile_grammar: Compile) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        compile_grammar(**given)
    message = str(caught.value)
    assert message.startswith("structured_outputs: the ") and message.endswith(".")
    assert "\n" not in message and len(message) < 450
    assert caught.value.param == "structured_outputs"
