"""/v1/cancel: ends a response from another connection than the one that waits for it."""

from __future__ import annotations

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.generation import RESPONSE_PREFIXES, ServingContext
from paged_backend.handlers.openai.protocol.cancellation import CancelReply, CancelRequest
from paged_backend.handlers.openai.wire import HttpResponse, json_response


async def cancel(context: ServingContext, request: CancelRequest) -> HttpResponse:
    """Ends what the tenant asked for under that name; asked again, it finds nothing left to end.

    The response that is ended closes as it would by itself, with what it has and finish_reason "abort".

    Raises:
        InvalidRequestError: neither or both of the names are given; or several models have it, and none was named.
        NotFoundError: no such model is served here.
    """
    if (request.id is None) == (request.request_id is None):
        raise InvalidRequestError(
            "Give either id, the response's own, or request_id, as it was in the request.", param="id"
        )
    if request.id is not None:
        names = [request.id]
    else:
        names = [f"{prefix}{request.request_id}" for prefix in RESPONSE_PREFIXES]
    model = None if request.model is None else context.models.named(request.model)
    cancelled = context.models.cancel(context.tenant, names, model=model)
    reply: CancelReply = {"object": "cancellation", "cancelled": bool(cancelled), "ids": cancelled}
    return json_response(reply)
