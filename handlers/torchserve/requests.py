"""Turns what TorchServe hands over for one request into the service's `HttpRequest`.

The path below `/predictions/NAME/VERSION/` arrives in the header `url_path`. Without one, the request is a plain
TorchServe prediction, and goes to the route that its body fits:

- a JSON object with `messages`: `/v1/chat/completions`;
- any other JSON object: `/v1/completions`;
- any other text: `/v1/completions`, with the text as its prompt.

`model` may be left out of a plain prediction, as its URL names the model already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paged_backend.handlers.openai.wire import HttpRequest, decode_json

PATH_HEADER = "url_path"
CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"

_BODY_NAMES = ("body", "data")
"""TorchServe calls a body "body"; "data" is its clients' usual name for a form's file."""


def read_request(data: Mapping[str, Any], raw_headers: Mapping[str, Any], *, model_name: str) -> HttpRequest:
    """Builds the service's request.

    Args:
        data: the body's parts by name, as bytes or as what TorchServe's JSON parser made of them.
        raw_headers: as the client spelled them; entries that are not text (they describe the body's parts) are
            dropped.
        model_name: what a plain prediction is for.
    """
    headers = {
        name.lower(): value for name, value in raw_headers.items() if isinstance(value, str) and name not in data
    }
    path = headers.pop(PATH_HEADER, None)
    body = _read_body(data)
    if path is not None and path.strip("/"):
        return HttpRequest(path="/" + path.lstrip("/"), headers=headers, body=body)
    return _read_prediction(headers, body, model_name)


def _read_body(data: Mapping[str, Any]) -> Any:
    for name in _BODY_NAMES:
        if name in data:
            return _plain(data[name])
    if not data:
        return None
    # A form: its fields are the request's.
    return {name: _text(value) for name, value in data.items()}


def _read_prediction(headers: Mapping[str, str], body: Any, model_name: str) -> HttpRequest:
    fields = body
    if isinstance(body, (bytes, str)):
        content_type = headers.get("content-type", "")
        try:
            fields = decode_json(body)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict) and not content_type.startswith("application/json"):
            fields = {"prompt": _text(body)}
    if not isinstance(fields, dict):
        # Malformed JSON, a list, or nothing at all: the service knows what to answer.
        return HttpRequest(path=COMPLETIONS_PATH, headers=headers, body=body)
    fields = {"model": model_name, **fields}
    path = CHAT_PATH if "messages" in fields else COMPLETIONS_PATH
    return HttpRequest(path=path, headers=headers, body=fields)


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, bytearray) else value


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, (bytes, bytearray)) else value
