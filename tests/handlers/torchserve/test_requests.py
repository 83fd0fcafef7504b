"""What TorchServe hands over, and the service's request that it becomes."""

from __future__ import annotations

from typing import Any

import pytest

from paged_backend.handlers.torchserve.requests import read_request

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("url_path", "path"),
    [
        ("v1/chat/completions", "/v1/chat/completions"),
        ("/v1/models", "/v1/models"),
        ("metrics", "/metrics"),
        ("v1/models/", "/v1/models/"),
    ],
)
def test_path_comes_from_the_header(url_path: str, path: str) -> None:
    request = read_request({"body": bytearray(b"{}")}, {"url_path": url_path, **JSON}, model_name="m")
    assert (request.path, request.body) == (path, b"{}")
    assert request.headers == {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "content_type", "path", "fields"),
    [
        (b'{"messages": []}', "application/json", "/v1/chat/completions", {"model": "m", "messages": []}),
        (b'{"prompt": "a"}', "application/json", "/v1/completions", {"model": "m", "prompt": "a"}),
        (b'{"prompt": "a"}', "text/plain", "/v1/completions", {"model": "m", "prompt": "a"}),
        (b'{"prompt": "a", "model": "n"}', "", "/v1/completions", {"model": "n", "prompt": "a"}),
        (b"Once upon", "text/plain", "/v1/completions", {"model": "m", "prompt": "Once upon"}),
        (b"[1, 2]", "text/plain", "/v1/completions", {"model": "m", "prompt": "[1, 2]"}),
        ({"prompt": "a"}, "application/json", "/v1/completions", {"model": "m", "prompt": "a"}),
        (b"{bad", "application/json", "/v1/completions", b"{bad"),
        (b"[1, 2]", "application/json", "/v1/completions", b"[1, 2]"),
        (b'{"prompt": "a", "seed": NaN}', "application/json", "/v1/completions", b'{"prompt": "a", "seed": NaN}'),
        (b"[" * 100_000, "application/json", "/v1/completions", b"[" * 100_000),
    ],
)
def test_plain_prediction(body: Any, content_type: str, path: str, fields: Any) -> None:
    request = read_request({"body": body}, {"content-type": content_type}, model_name="m")
    assert (request.path, request.body) == (path, fields)


def test_form_fields_are_the_request() -> None:
    request = read_request({"prompt": bytearray(b"hi")}, {"prompt": {"content-type": None}}, model_name="m")
    assert request.body == {"model": "m", "prompt": "hi"}


def test_form_file_named_data_is_the_body() -> None:
    request = read_request({"data": b"Once upon"}, {}, model_name="m")
    assert request.body == {"model": "m", "prompt": "Once upon"}


def test_no_body_is_left_to_the_service() -> None:
    assert read_request({}, {"url_path": "health"}, model_name="m").body is None
