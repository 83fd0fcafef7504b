"""Body and reply of /v1/cancel."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from paged_backend.handlers.openai.protocol.base import RequestBody


class CancelRequest(RequestBody):
    """Body of /v1/cancel: which response to end, by one of its two names.

    Attributes:
        model: whose response; it may be left out where only one of the models has it.
    """

    id: str | None = None
    request_id: str | None = None
    model: str | None = None


class CancelReply(TypedDict):
    """What was ended.

    Attributes:
        cancelled: whether there was anything to end: false where the response is over, unknown, or of another key.
        ids: of the responses that were ended; several where routes were given the same request_id.
    """

    object: Literal["cancellation"]
    cancelled: bool
    ids: list[str]
