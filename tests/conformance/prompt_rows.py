"""Prompts and messages of every form, and bodies that are none."""

from __future__ import annotations

import json
from typing import Any

from tests.conformance.case import (
    BASE,
    BOTH,
    CHAT,
    COMPLETIONS,
    CONVERSATION,
    PROMPT,
    Case,
    accepted,
    refused,
    wrong_types,
)
from tests.conformance.checks import prompt_of, same_as

_ON_TEXT = (COMPLETIONS,)
_ON_CHAT = (CHAT,)
_SAID = {"role": "user", "content": "Hello"}

_PROMPTS = [
    *accepted("prompt", "A", on=_ON_TEXT),
    *accepted("prompt", [PROMPT], same_as(prompt=PROMPT), on=_ON_TEXT),
    *accepted("prompt", ["Once upon", "The fox", "A"], on=_ON_TEXT),
    *accepted("prompt", ["Once upon", "The fox"], n=2, on=_ON_TEXT),
    *accepted("prompt", ["Once upon", "The fox"], n=2, temperature=0.9, seed=8, logprobs=1, on=_ON_TEXT),
    *accepted("prompt", ["Same", "Same"], on=_ON_TEXT),
    *accepted("prompt", [100, 101, 102], prompt_of(3), on=_ON_TEXT),
    *accepted("prompt", [[100, 101, 102]], same_as(prompt=[100, 101, 102]), on=_ON_TEXT),
    *accepted("prompt", [[100, 101], [102]], prompt_of(3), on=_ON_TEXT),
    *accepted("prompt", "Grüße, 世界 🦊", echo=True, on=_ON_TEXT),
    *accepted("prompt", "a" * 300, on=_ON_TEXT),
    *refused("prompt", "", on=_ON_TEXT),
    *refused("prompt", [], on=_ON_TEXT),
    *refused("prompt", ["A", ""], on=_ON_TEXT),
    *refused("prompt", [[]], on=_ON_TEXT),
    *refused("prompt", [10_000_000], on=_ON_TEXT),
    *refused("prompt", [100] * 5000, on=_ON_TEXT),
    *refused("prompt", "x " * 5000, on=_ON_TEXT),
    *refused("prompt", "\udc00", on=_ON_TEXT),
    *wrong_types("prompt", 5, {"a": 1}, [1.5], [True], ["a", 1], [[1], "a"], [-1], [None], on=_ON_TEXT),
    *wrong_types("prompt", None, on=_ON_TEXT),
    *refused("prompt", "A", on=_ON_CHAT),
    *refused("messages", list(CONVERSATION), on=_ON_TEXT),
]


def _place(index: int, field: str) -> str:
    return f"messages.{index}.{field}"


_MESSAGES = [
    *accepted("messages", [_SAID], on=_ON_CHAT),
    *accepted("messages", [{"role": "system", "content": "Be brief."}, _SAID], on=_ON_CHAT),
    *accepted(
        "messages",
        [{"role": "developer", "content": "Be brief."}, _SAID],
        same_as(messages=[{"role": "system", "content": "Be brief."}, _SAID]),
        on=_ON_CHAT,
    ),
    *accepted("messages", [_SAID, {"role": "assistant", "content": "Hi."}, _SAID], on=_ON_CHAT),
    *accepted(
        "messages",
        [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        same_as(messages=[_SAID]),
        on=_ON_CHAT,
    ),
    *accepted(
        "messages",
        [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}],
        on=_ON_CHAT,
    ),
    *accepted("messages", [{**_SAID, "name": "Ann"}], on=_ON_CHAT),
    *accepted("messages", [_SAID], n=2, logprobs=True, top_logprobs=1, on=_ON_CHAT),
    *accepted("messages", [{"role": "user", "content": "Grüße 🦊"}], on=_ON_CHAT),
    *refused("messages", [], on=_ON_CHAT),
    *refused("messages", [{"role": "wizard", "content": "x"}], _place(0, "role"), on=_ON_CHAT),
    *refused("messages", [{"content": "x"}], _place(0, "role"), on=_ON_CHAT),
    *refused("messages", [{"role": "user", "content": "\ud83d"}], _place(0, "content"), on=_ON_CHAT),
    *refused(
        "messages",
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        _place(0, "content.0.type"),
        on=_ON_CHAT,
    ),
    *refused(
        "messages",
        [_SAID, {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        _place(1, "content.0.type"),
        on=_ON_CHAT,
    ),
    *refused("messages", [{"role": "user", "content": "x " * 5000}], on=_ON_CHAT),
    *refused("messages", [{"role": "user"}], "body.messages.0.content", on=_ON_CHAT),
    *refused("messages", [{"role": "user", "content": 5}], "body.messages.0.content", on=_ON_CHAT),
    *refused("messages", [{"role": "user", "content": [5]}], "body.messages.0.content.0", on=_ON_CHAT),
    *refused(
        "messages", [{"role": "user", "content": [{"type": "text"}]}], "body.messages.0.content.0.text", on=_ON_CHAT
    ),
    *wrong_types("messages", "Hello", {"role": "user"}, 5, None, on=_ON_CHAT),
    *wrong_types("messages", ["Hello"], param="body.messages.0", on=_ON_CHAT),
    *accepted("add_generation_prompt", True, same_as(add_generation_prompt=None), on=_ON_CHAT),
    *accepted("add_generation_prompt", False, on=_ON_CHAT),
    *accepted(
        "continue_final_message",
        True,
        add_generation_prompt=False,
        messages=[_SAID, {"role": "assistant", "content": "Once upon a"}],
        on=_ON_CHAT,
    ),
    *accepted("continue_final_message", False, same_as(continue_final_message=None), on=_ON_CHAT),
    *refused("continue_final_message", True, on=_ON_CHAT),
    *wrong_types("add_generation_prompt", 1, on=_ON_CHAT),
    *wrong_types("continue_final_message", "yes", on=_ON_CHAT),
    *accepted("chat_template_kwargs", {}, same_as(chat_template_kwargs=None), on=_ON_CHAT),
    *accepted("chat_template_kwargs", {"mood": "fine"}, on=_ON_CHAT),
    *refused("chat_template_kwargs", {"tokenize": True}, on=_ON_CHAT),
    *wrong_types("chat_template_kwargs", [1], "x", on=_ON_CHAT),
]

_NAMES = [
    *refused("temprature", 1),
    *refused("max_token", 5),
    *refused("", 1, ""),
    *refused("nonsense", {"deep": [1]}),
]


def _missing(path: str, model: Any, param: str | None = "model") -> Case:
    return Case(f"{path} of model {model!r}", path, {**BASE[path], "model": model}, status=404, param=param)


def _with_number(path: str, field: str, number: str) -> bytes:
    """A body with what Python's parser takes for a number, and JSON does not."""
    return json.dumps({**BASE[path], field: "?"}).replace('"?"', number).encode()


_BODIES = [
    *(_missing(path, model) for path in BOTH for model in ("other", "", "../../etc/passwd", "Paged-Tiny")),
    *(
        Case(f"{path} {name}", path, content, status=400, param=param)
        for path in (*BOTH, "/tokenize", "/detokenize")
        for name, content, param in (
            ("malformed", b'{"model": "paged-tiny", ', "body"),
            ("not UTF-8", b'{"model": "\xff\xfe"}', "body"),
            ("a list", [1, 2], "body"),
            ("a string", "text", "body"),
            ("a number", 5, "body"),
            ("null", b"null", "body"),
            ("nothing", b"", "body"),
        )
    ),
    *(
        Case(f"{path} without its prompt", path, {"model": "paged-tiny"}, status=400, param=param)
        for path, param in ((COMPLETIONS, "body.prompt"), (CHAT, "body.messages"))
    ),
    *refused("model", 5, "body.model"),
    *refused("model", ["paged-tiny"], "body.model"),
    *(
        Case(f"{path} with {field} {number}", path, _with_number(path, field, number), status=400, param="body")
        for path in BASE
        for field in ("temperature", "user")
        for number in ("NaN", "Infinity", "-Infinity", "1e400", "-1E999")
    ),
]

ROWS = [*_PROMPTS, *_MESSAGES, *_NAMES, *_BODIES]
