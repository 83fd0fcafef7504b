"""`response_format` and `structured_outputs` on both routes: what reaches the engine, and what is refused how."""

from __future__ import annotations

import json
from typing import Any

import pytest

from paged_backend.sampling_params import StructuredOutputsParams

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPTS: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "Hello"},
    CHAT: {"messages": [{"role": "user", "content": "Hello"}]},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
routes = pytest.mark.parametrize("route", [COMPLETIONS, CHAT])


def by_schema(**more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, **more}}


@routes
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None, "structured_outputs": None}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True, "param": "response_format"}),
        ({"response_format": by_schema()}, {"json": SCHEMA, "param": "response_format"}),
        ({"response_format": by_schema(strict=True)}, {"json": SCHEMA, "param": "response_format"}),
        (
            {"response_format": by_schema(strict=None, description="D", whatever=None)},
            {"json": SCHEMA, "param": "response_format"},
        ),
        ({"structured_outputs": {"json": SCHEMA}}, {"json": SCHEMA}),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, {"json": json.dumps(SCHEMA)}),
        ({"structured_outputs": {"regex": "a+", "json": None}}, {"regex": "a+"}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
        ({"structured_outputs": {"grammar": "start: A"}}, {"grammar": "start: A"}),
        ({"structured_outputs": {"json_object": True}}, {"json_object": True}),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True, "whitespace_pattern": None}},
            {"json": SCHEMA, "disable_any_whitespace": True},
        ),
        (
            {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}},
            {"regex": "a"},
        ),
    ],
)
def test_what_the_engine_is_asked_for(
    call: Any, client: Any, route: str, fields: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    assert call(route, {**PROMPTS[route], **fields}).status == 200
    asked = client.submissions[-1]["params"].structured_outputs
    assert asked == (None if expected is None else StructuredOutputsParams(**expected))


@routes
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "text", "json_schema": {}}}, "response_format.json_schema"),
        ({"response_format": {"type": "structural_tag", "format": {}}}, "response_format.format"),
        (
            {"response_format": {"type": "structural_tag", "structures": [{"x": 1}], "triggers": []}},
            "response_format.structures.0.x",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format"),
        ({"response_format": by_schema(strict="yes")}, "response_format"),
        ({"response_format": by_schema(description=5)}, "response_format"),
        ({"response_format": by_schema(stric=True)}, "response_format.json_schema.stric"),
        ({"response_format": by_schema(schema={"const": "x" * 200_000})}, None),
        ({"response_format": "json_object"}, "body.response_format"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"jsn": SCHEMA}}, "structured_outputs.jsn"),
        ({"structured_outputs": {"param": "x", "regex": "a"}}, "structured_outputs.param"),
        ({"structured_outputs": ["a"]}, "body.structured_outputs"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
        ({"structured_outputs": {"regex": "a"}, "use_beam_search": True, "n": 2}, "use_beam_search"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos"),
        ({"guided_json": SCHEMA}, "guided_json"),
    ],
)
def test_wrong_fields(call: Any, route: str, fields: dict[str, Any], param: str | None) -> None:
    if param is None:  # the engine itself refuses it; the scripted one takes everything
        return
    response = call(route, {**PROMPTS[route], **fields})
    assert response.status == 400 and response.json["error"]["param"] == param, response.json
