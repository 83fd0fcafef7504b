"""The routes that generate nothing, and what is no route."""

from __future__ import annotations

from typing import Any

from paged_backend import __version__
from tests.conformance.case import BASE, CHAT, COMPLETIONS, MODEL, PROMPT, Case, Check
from tests.conformance.checks import answers, fields
from tests.conformance.exchange import Exchange


def _get(path: str, *checks: Check, **expected: Any) -> Case:
    return Case(f"GET {path}", path, method="GET", checks=checks, **expected)


def _post(path: str, body: dict[str, Any], *checks: Check, **expected: Any) -> Case:
    return Case(f"{path} {body}"[:90], path, body, checks=checks, **expected)


def _lists_the_model(exchange: Exchange) -> None:
    assert exchange.json["object"] == "list"
    (model,) = (one for one in exchange.json["data"] if one["id"] == MODEL)
    assert model["object"] == "model" and model["max_model_len"] == 2048


def _tokenizes(text: str, *, specials: bool = False) -> Check:
    """The ids are counted, and make the text again."""

    def check(exchange: Exchange) -> None:
        answer = exchange.json
        assert answer["count"] == len(answer["tokens"]) and answer["max_model_len"] == 2048
        assert exchange.caller.ask("POST", "/detokenize", {"tokens": answer["tokens"]}).json == {"prompt": text}
        if exchange.body.get("return_token_strs"):
            assert "".join(answer["token_strs"]) == text

    return check


def _counts_what_chat_counts(exchange: Exchange) -> None:
    chat = exchange.caller.ask("POST", CHAT, {"messages": exchange.body["messages"], "max_tokens": 1})
    assert chat.json["usage"]["prompt_tokens"] == exchange.json["count"]


def _describes_what_is_served(exchange: Exchange) -> None:
    """Every route of this list, and nothing that no route answers to."""
    paths = set(exchange.json["paths"])
    assert exchange.json["openapi"].startswith("3.1")
    assert paths >= {*BASE, "/tokenize", "/detokenize", "/v1/models", "/health", "/version", "/metrics", "/v1/cancel"}
    for path in paths:
        methods = exchange.json["paths"][path].keys()
        assert "get" not in methods or exchange.caller.ask("GET", path.replace("{model}", MODEL)).reply.status == 200


_HELLO = [{"role": "user", "content": "Hello"}]
_RENDERED = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"

ROWS = [
    _get("/v1/models", _lists_the_model, fields("object", "data")),
    _get(f"/v1/models/{MODEL}", answers(id=MODEL, object="model", max_model_len=2048)),
    _get("/v1/models/other", status=404, param="model"),
    _get("/version", answers(version=__version__), fields("version")),
    _get("/health", fields()),
    _get("/v1/unknown", status=404),
    _get("/openapi.json", _describes_what_is_served),
    _post("/v1/unknown", {"a": 1}, status=404),
    _post("/v1/embeddings", {"input": "x"}, status=404),
    _post("/tokenize", {"model": MODEL, "prompt": PROMPT}, _tokenizes(PROMPT)),
    _post("/tokenize", {"prompt": PROMPT, "return_token_strs": True}, _tokenizes(PROMPT)),
    _post("/tokenize", {"prompt": "", "add_special_tokens": False}, _tokenizes("")),
    _post("/tokenize", {"prompt": "Grüße 🦊"}, _tokenizes("Grüße 🦊")),
    _post("/tokenize", {"messages": _HELLO}, _tokenizes(_RENDERED), _counts_what_chat_counts),
    _post(
        "/tokenize",
        {"messages": _HELLO, "add_generation_prompt": False},
        _tokenizes(_RENDERED.removesuffix("<|im_start|>assistant\n")),
    ),
    _post("/tokenize", {}, status=400, param="prompt"),
    _post("/tokenize", {"prompt": "x", "messages": _HELLO}, status=400, param="prompt"),
    _post("/tokenize", {"prompt": 5}, status=400, param="body.prompt"),
    _post("/tokenize", {"promt": "x"}, status=400, param="promt"),
    _post("/tokenize", {"prompt": "x", "model": "other"}, status=404, param="model"),
    _post("/tokenize", {"messages": []}, status=400, param="messages"),
    _post("/detokenize", {"tokens": [100, 101]}, fields("prompt")),
    _post("/detokenize", {"tokens": []}, answers(prompt="")),
    _post("/detokenize", {}, status=400, param="body.tokens"),
    _post("/detokenize", {"tokens": [10**9]}, status=400, param="tokens"),
    _post("/detokenize", {"tokens": [-1]}, status=400, param="tokens"),
    _post("/detokenize", {"tokens": ["1"]}, status=400, param="body.tokens.0"),
    _post("/detokenize", {"tokens": 5}, status=400, param="body.tokens"),
    _post("/detokenize", {"tokens": [1], "model": "other"}, status=404, param="model"),
    *(
        Case(f"{method} {path}", path, method=method, status=405, needs_method=True)
        for path, methods in (
            (COMPLETIONS, ("GET", "PUT", "DELETE")),
            (CHAT, ("GET", "PATCH")),
            ("/tokenize", ("GET",)),
            ("/v1/models", ("POST", "DELETE")),
            ("/version", ("POST",)),
        )
        for method in methods
    ),
]
