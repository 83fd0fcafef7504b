"""/v1/responses: OpenAI's newer form of a conversation. No response is kept: each request brings all of it."""

from __future__ import annotations

import time
import uuid

from paged_backend.handlers.openai.generation import ServingContext
from paged_backend.handlers.openai.protocol.responses import ResponsesRequest
from paged_backend.handlers.openai.responses_input import as_chat
from paged_backend.handlers.openai.responses_items import ID_PREFIX, ResponseFrame, output_items
from paged_backend.handlers.openai.responses_stream import ResponseEvents
from paged_backend.handlers.openai.spoken import SpokenAnswer, submit_conversation
from paged_backend.handlers.openai.streaming import collect_all, stream_response
from paged_backend.handlers.openai.text_logprobs import TextLogprobs
from paged_backend.handlers.openai.wire import HttpResponse, json_response


async def create_response(context: ServingContext, request: ResponsesRequest) -> HttpResponse:
    """Answers a conversation in OpenAI's newer form, without keeping anything of it.

    Raises:
        PagedBackendError: whatever refuses it; nothing is left running.
    """
    chat, names = as_chat(request)
    response_id = f"{ID_PREFIX}_{request.request_id or uuid.uuid4().hex}"
    model = context.model_name(request.model)
    job, accepted = await submit_conversation(context, chat, names, response_id)
    frame = ResponseFrame(response_id, int(time.time()), model, request, job.params)
    answer, logprobs = SpokenAnswer(job), TextLogprobs(job)
    if request.stream:
        return await stream_response(accepted, ResponseEvents(frame, answer, logprobs))
    (output,) = await collect_all(accepted)
    message = answer.read_whole(output)
    complete = answer.finish_reason not in ("length", "abort")
    items = output_items(message, response_id, logprobs.of(output.outputs[0]), complete=complete)
    return json_response(frame.ended(answer.finish_reason, items, answer.tally))
