"""/openapi.json: the OpenAPI 3.1 document of exactly what is served, made from the table of routes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from paged_backend import __version__
from paged_backend.handlers.openai.protocol.base import HARMLESS, RequestBody, nested_bodies
from paged_backend.handlers.openai.wire import JSON_TYPE

if TYPE_CHECKING:
    from paged_backend.handlers.openai.routes import Route

Schema = dict[str, Any]

_REFERENCE = "#/components/schemas/{model}"

_PRINTABLE = "^[^\\x00-\\x1f\\x7f-\\x9f]+$"

_REASONS: Mapping[int, str] = {
    400: "A value is wrong, a field is unknown or not supported; `param` names it.",
    401: "No API key, or a wrong one.",
    404: "There is no such model.",
    408: "The body did not come to its end, and the client was silent for too long.",
    413: "The body is larger than the server allows.",
    429: "The queue is full, or the deadline cannot be met: come again after Retry-After.",
    500: "A fault of the server's, which its log tells of.",
    503: "The server starts, drains, or has lost its engine.",
}

_HEADERS: Mapping[int, tuple[str, Schema]] = {
    401: ("WWW-Authenticate", {"type": "string"}),
    429: ("Retry-After", {"type": "integer", "minimum": 1, "description": "Seconds."}),
}


def openapi_document(routes: Iterable[Route], *, needs_key: bool) -> dict[str, Any]:
    """The document of these routes.

    Args:
        needs_key: whether the server asks for an API key.
    """
    schemas: dict[str, Schema] = {}
    paths: dict[str, Schema] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas, needs_key)
    components: Schema = {"schemas": dict(sorted(schemas.items()))}
    if needs_key:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "paged-backend",
            "version": __version__,
            "description": "The same on TorchServe and BentoML: OpenAI's routes and Anthropic's, with vLLM's fields.",
        },
        # Relative to this document: TorchServe serves it below /predictions/NAME/VERSION.
        "servers": [{"url": "."}],
        "paths": paths,
        "components": components,
    }


def body_schema(kind: type[RequestBody], schemas: dict[str, Schema]) -> Schema:
    """The JSON schema of a request's body: what the model takes, null wherever a field may be left out, and the
    published fields that are ignored, or taken with values that ask for nothing.

    Args:
        schemas: takes the definitions that the schema refers to.
    """
    schema = _adopt(kind.model_json_schema(ref_template=_REFERENCE), schemas)
    _allow_null(schema)
    properties = schema.setdefault("properties", {})
    for name in sorted(HARMLESS.difference(kind.model_fields)):
        properties[name] = {"description": "Taken and ignored: it changes nothing about the answer."}
    _add_unsupported(kind, schema)
    for nested in _all_nested(kind):
        _allow_null(schemas[nested.__name__])
        _add_unsupported(nested, schemas[nested.__name__])
    return schema


def _add_unsupported(kind: type[RequestBody], schema: Schema) -> None:
    for name, refusal in sorted(kind.unsupported.items()):
        description = f"Not supported, and taken only if it asks for nothing: {refusal.why}."
        schema.setdefault("properties", {})[name] = {"enum": [None, *refusal.nothing], "description": description}


def _operation(route: Route, schemas: dict[str, Schema], needs_key: bool) -> Schema:
    operation: Schema = {
        "operationId": route.name,
        "summary": _first_line(route.answer.__doc__),
        "responses": {"200": _success(route, schemas)},
    }
    for parameter in re.findall(r"\{(\w+)\}", route.path):
        operation["parameters"] = [
            {"name": parameter, "in": "path", "required": True, "schema": {"type": "string", "pattern": _PRINTABLE}}
        ]
    if route.body is not None:
        schemas[route.body.__name__] = body_schema(route.body, schemas)
        operation["requestBody"] = {"required": True, "content": {JSON_TYPE: {"schema": _ref(route.body.__name__)}}}
    error = _reply_schema(route.error, schemas)
    statuses = {*route.refusals, 500, 503}
    if needs_key and route.needs_key:
        statuses.add(401)
        operation["security"] = [{"bearer": []}, {"x-api-key": []}]
    for status in sorted(statuses):
        response: Schema = {
            "description": _REASONS[status],
            "content": {JSON_TYPE: {"schema": error}},
        }
        if status in _HEADERS:
            header, schema = _HEADERS[status]
            response["headers"] = {header: {"required": True, "schema": schema}}
        operation["responses"][str(status)] = response
    return operation


def _success(route: Route, schemas: dict[str, Schema]) -> Schema:
    content: Schema = {}
    if isinstance(route.reply, str):
        content[route.reply.partition(";")[0]] = {"schema": {"type": "string"}}
    else:
        content[JSON_TYPE] = {"schema": _reply_schema(route.reply, schemas)}
    if route.stream is not None:
        content["text/event-stream"] = {"schema": dict(route.stream)}
    return {"description": _first_line(route.answer.__doc__), "content": content}


def _reply_schema(kind: Any, schemas: dict[str, Schema]) -> Schema:
    """The schema of what is answered: the fields that are named, and no others."""
    schema = TypeAdapter(kind).json_schema(ref_template=_REFERENCE, mode="serialization")
    definitions = schema.get("$defs", {})
    for part in (schema, *definitions.values()):
        if "properties" in part:
            part["additionalProperties"] = False
    schema = _adopt(schema, schemas)
    if "title" not in schema:
        return schema
    schemas[schema["title"]] = schema
    return _ref(schema["title"])


def _adopt(schema: Schema, schemas: dict[str, Schema]) -> Schema:
    """A schema whose definitions have gone to the document's own."""
    schemas.update(schema.pop("$defs", {}))
    return schema


def _all_nested(kind: type[RequestBody]) -> Iterator[type[RequestBody]]:
    for nested in nested_bodies(kind).values():
        yield nested
        yield from _all_nested(nested)


def _allow_null(schema: Schema) -> None:
    """Null means "not given" in every body: it is allowed where a field may be left out."""
    for name, field in schema.get("properties", {}).items():
        if name in schema.get("required", ()) or field == {}:
            continue
        given = field.get("anyOf") or [{key: field.pop(key) for key in tuple(field) if key not in _ABOUT}]
        if given == [{}]:
            continue
        if {"type": "null"} not in given:
            given = [*given, {"type": "null"}]
        field["anyOf"] = given


_ABOUT = frozenset({"default", "description", "title", "deprecated", "examples"})
"""What a schema says about a field beside the values that it takes."""


def _ref(name: str) -> Schema:
    return {"$ref": _REFERENCE.format(model=name)}


def _first_line(text: str | None) -> str:
    assert text, "a route says what it answers"
    return text.strip().splitlines()[0]
