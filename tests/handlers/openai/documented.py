"""Holds replies to the OpenAPI document."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import jsonschema

from paged_backend.handlers.openai.openapi import openapi_document
from paged_backend.handlers.openai.routes import ROUTES, find_route

UNMATCHED = (404, 405)
"""What a path that is not in the document, or another method, is answered with."""


@functools.cache
def document(needs_key: bool = True) -> dict[str, Any]:
    """The document, read back from its JSON."""
    return json.loads(json.dumps(openapi_document(ROUTES, needs_key=needs_key)))


@functools.cache
def validator(schema: str) -> jsonschema.Draft202012Validator:
    """Of one schema of the document, given as JSON."""
    whole = {**json.loads(schema), "components": document()["components"]}
    return jsonschema.Draft202012Validator(whole)


def check_documented(path: str, method: str | None, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Fails unless the route's operation has this status, and says that its body and headers look like this.

    A field that a route has learned to answer belongs into its type in handlers/openai/protocol.
    """
    found = find_route(path.partition("?")[0])
    if found is None:
        assert status in (401, 404)
        return
    route = found[0]
    if method not in (None, route.method, "HEAD"):
        assert status in (401, 405)
        return
    operation = document()["paths"][route.path][route.method.lower()]
    response = operation["responses"].get(str(status))
    assert response is not None, f"{route.path} does not tell of a status {status}"
    media_type = headers["Content-Type"].partition(";")[0]
    assert media_type in response["content"], f"{route.path} does not tell of {media_type}"
    assert set(response.get("headers", {})) <= set(headers)
    if media_type == "application/json" and method != "HEAD":
        validator(json.dumps(response["content"][media_type]["schema"])).validate(json.loads(body))
