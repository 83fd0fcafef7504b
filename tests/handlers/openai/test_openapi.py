"""/openapi.json: well formed, complete, and as strict as the server. (That replies keep to it, `call` checks.)"""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from paged_backend import __version__
from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.protocol.base import parse_body
from paged_backend.handlers.openai.routes import ROUTES, Route, find_route
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import OpenAIService
from tests.handlers.openai.conftest import gate_of

from .documented import check_documented, document, validator

CHECKED_LATER = ("prompt", "messages", "input", "system", "tools", "tool_choice", "response_format")
"""Fields whose types are checked beyond `parse_body`."""

POSTS = [route for route in ROUTES if route.body is not None]


def test_it_is_served(call, client):
    reply = call("/openapi.json", method="GET")
    assert reply.json["openapi"] == "3.1.0" and reply.json["info"]["version"] == __version__
    assert reply.json == document(needs_key=False)
    locked = OpenAIService(ServedModels.one(client, ("tiny",)), gate=gate_of("k"))
    assert call("/openapi.json", service=locked).status == 401
    reply = call("/openapi.json", service=locked, headers={"authorization": "Bearer k"})
    assert reply.json == document(needs_key=True)


def test_every_route_is_in_it_and_nothing_else():
    listed = {(method.upper(), path) for path, methods in document()["paths"].items() for method in methods}
    assert listed == {(route.method, route.path) for route in ROUTES}
    names = [operation["operationId"] for methods in document()["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


def test_the_docs_list_them():
    text = (Path(__file__).parents[3] / "docs" / "routes.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(GET|POST) (\S+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted((route.method, route.path) for route in ROUTES)


def test_keys_and_their_refusals_are_told_where_there_are_keys():
    for needs_key in (False, True):
        for route in ROUTES:
            operation = document(needs_key)["paths"][route.path][route.method.lower()]
            asks = needs_key and route.needs_key
            assert ("401" in operation["responses"]) == ("security" in operation) == asks
        assert ("securitySchemes" in document(needs_key)["components"]) == needs_key


def test_references_and_schemas_are_sound():
    text = json.dumps(document())
    assert "$defs" not in text
    schemas = document()["components"]["schemas"]
    for name in re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', text):
        assert name in schemas
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema.get("additionalProperties") is False, f"{schema['title']} says what else it may hold"


def test_paths():
    assert find_route("/v1/models/org/name%20x") == (find_route("/v1/models/x")[0], "org/name x")
    assert find_route("/v1/models/")[0].path == "/v1/models"
    assert find_route("/") is None and find_route("/v1") is None and find_route("/v1/modelsx") is None


@pytest.mark.parametrize("route", POSTS, ids=lambda route: route.path)
def test_a_body_fits_the_document_as_it_fits_the_server(route: Route):
    """Field by field: values of every JSON type, in the document's opinion and in the server's."""
    check = validator(json.dumps({"$ref": f"#/components/schemas/{route.body.__name__}"}))
    required = document()["components"]["schemas"][route.body.__name__].get("required", [])
    valid = {
        "prompt": "x",
        "messages": [{"role": "user", "content": "x"}],
        "tokens": [1],
        "input": "x",
        "max_tokens": 1,
    }
    valid = {name: valid[name] for name in required}
    fields = [*route.body.model_fields, *route.body.unsupported, "user", "store", "unknown_field"]
    for name in fields:
        for value in (None, True, False, 1, 0.5, "x", "none", [], ["x"], [1], {}, {"type": "text"}, {"a": 1}):
            if name in required and value is None:
                continue
            body = {**valid, name: value}
            try:
                parse_body(route.body, body)
                taken = True
            except InvalidRequestError:
                taken = False
            documented = check.is_valid(body)
            assert documented <= taken, f"the document allows {name}: {value!r}, and the server refuses it"
            if name not in CHECKED_LATER:
                assert documented == taken, f"the server takes {name}: {value!r}, and the document does not tell"


def test_the_check_itself_notices():
    good = b'{"version":"1"}'
    headers = {"Content-Type": "application/json"}
    check_documented("/version", "GET", 200, headers, good)
    wrong = [
        (200, headers, b'{"version":1}'),
        (200, headers, b'{"version":"1","more":1}'),
        (200, {"Content-Type": "text/plain"}, good),
        (404, headers, b'{"error":{"message":"x","type":"x","param":null,"code":404}}'),
        (401, headers, b'{"error":{"message":"x","type":"x","param":null,"code":401}}'),
        (503, headers, b'{"error":{"message":"x"}}'),
    ]
    for status, reply_headers, body in wrong:
        with pytest.raises((AssertionError, jsonschema.ValidationError)):
            check_documented("/version", "GET", status, reply_headers, body)
