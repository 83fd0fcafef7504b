"""What the routes for conversations beside the chat's own have in common: vLLM's fields, for the engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.protocol.base import ListOf, ObjectOf, RequestBody, parse_body
from paged_backend.handlers.openai.protocol.chat import ChatRequest


class ConversationRequest(RequestBody):
    """The fields that are the chat's own, name and meaning. None means that the client did not say."""

    model: str | None = None
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop_token_ids: ListOf[int] | None = None
    include_stop_str_in_output: bool | None = None
    repetition_detection: ObjectOf[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    logit_bias: ObjectOf[float] | None = None
    allowed_token_ids: ListOf[int] | None = None
    bad_words: ListOf[str] | None = None
    logits_processors: ListOf[str | dict[str, Any]] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    stream_interval: int | None = None
    priority: int = 0
    request_id: str | None = None
    cache_salt: str | None = None
    timeout_s: float | None = None
    return_receipt: bool = False

    def as_chat(self, fields: Mapping[str, Any], names: Mapping[str, str]) -> ChatRequest:
        """The chat request that this is.

        Args:
            fields: those of the chat that have no field of their own name here.
            names: what those are called here, for complaints.

        Raises:
            InvalidRequestError: as `parse_body`, in this body's own words.
        """
        same = {name: getattr(self, name) for name in ConversationRequest.model_fields}
        with renamed(names):
            return parse_body(ChatRequest, {**same, **fields})


_PLACE = re.compile(r"(?<![\w.])(body\.)?(\w+(?:\.\w+){0,4})")
"""A field's name in a sentence, dotted where it lies deeper; other names are shorter than that."""


class renamed:  # noqa: N801 - reads as a statement
    """Has what the chat complains about inside the block told under another body's names.

    Args:
        names: the body's own name of each of the chat's fields, dotted where it lies deeper.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not isinstance(error, InvalidRequestError):
            return
        param = None if error.param is None else self._rename(error.param)
        raise InvalidRequestError(self._rename(str(error)), param=param) from error

    def _rename(self, text: str) -> str:
        return _PLACE.sub(lambda match: f"{match[1] or ''}{self._own(match[2])}", text)

    def _own(self, place: str) -> str:
        """A place in this body's words: the longest part of it that has another name gets that."""
        head, tail = place, ""
        while head not in self._names:
            head, dot, last = head.rpartition(".")
            if not dot:
                return place
            tail = f".{last}{tail}"
        return self._names[head] + tail
