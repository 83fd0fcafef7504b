"""/v1/chat/completions: a conversation in, the assistant's next message out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paged_backend.handlers.openai.chat_job import ChatJob, prepare_chat
from paged_backend.handlers.openai.generation import ResponseHead, ServingContext
from paged_backend.handlers.openai.logprobs import chat_logprobs, prompt_logprobs_body
from paged_backend.handlers.openai.parsing.events import CallArguments, CallBegin, Content, Event, Message, Reasoning
from paged_backend.handlers.openai.protocol.chat import ChatRequest
from paged_backend.handlers.openai.streaming import ChunkFrames, UsageTally, collect_all, stream_response
from paged_backend.handlers.openai.wire import HttpResponse, json_response
from paged_backend.outputs import CompletionDelta, CompletionOutput, PromptLogprobs, TokenLogprobs

_KIND = "chat.completion"
_CHUNK_KIND = "chat.completion.chunk"


async def create_chat_completion(context: ServingContext, request: ChatRequest) -> HttpResponse:
    """Answers a chat request.

    Raises:
        PagedBackendError: whatever refuses it; nothing is left running.
    """
    head = ResponseHead.begin("chatcmpl", request, context)
    job = await prepare_chat(context, request)
    accepted = job.submit(context, head.id)
    tally = UsageTally([len(job.prompt)], receipts=request.return_receipt)
    if request.stream:
        writer = _ChunkWriter(head, job, tally)
        return await stream_response(accepted, ChunkFrames.of(request.stream_options, writer, tally))
    (output,) = await collect_all(accepted)
    tally.add_output(0, output)
    choices = [_choice(job, sample, tally) for sample in output.outputs]
    response = head.body(_KIND, choices, tally.body())
    if request.prompt_logprobs is not None:
        entries, num_top = output.prompt_logprobs, request.prompt_logprobs
        response["prompt_logprobs"] = entries and prompt_logprobs_body(job.prompt, entries, num_top)
    if request.return_token_ids:
        response["prompt_token_ids"] = job.prompt
    return json_response(response)


class _ChunkWriter:
    """Writes a stream's choices: first every sample's role, then what its parser finds."""

    def __init__(self, head: ResponseHead, job: ChatJob, tally: UsageTally) -> None:
        self.head = self.first_head = head.chunk_head(_CHUNK_KIND)
        if job.request.return_token_ids:
            self.first_head = head.chunk_head(_CHUNK_KIND, {"prompt_token_ids": job.prompt})
        self._job = job
        self._tally = tally
        samples = range(job.params.n)
        self._parsers = [job.reader.parser() for _ in samples]
        self._counts = [job.reader.reasoning_count() for _ in samples]

    def first_choices(self, prompt_index: int) -> list[dict[str, Any]]:
        """The role of every sample, and what it begins with."""
        delta = {"role": self._job.role, "content": self._job.echo}
        return [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            for index in range(self._job.params.n)
        ]

    def take_prompt(self, prompt_index: int, logprobs: PromptLogprobs) -> None:
        """Never: they are not there in a chat's stream."""

    def choices(self, prompt_index: int, delta: CompletionDelta) -> list[dict[str, Any]]:
        """What one sample's new text has made certain; its tokens come with the first choice, its end with the last."""
        index, end = delta.index, delta.finish_reason
        parser, count = self._parsers[index], self._counts[index]
        events = parser.push(delta.text)
        if end is not None:
            events += parser.finish()
        if count is not None:
            self._tally.num_reasoning_tokens = (self._tally.num_reasoning_tokens or 0) + count.add(delta.token_ids)
        choices: list[dict[str, Any]] = [
            {"index": index, "delta": found, "logprobs": None, "finish_reason": None}
            for event in events
            if (found := _delta(event))
        ]
        tells_tokens = delta.logprobs is not None or self._job.request.return_token_ids
        if not choices:
            if end is None and not (tells_tokens and delta.token_ids):
                return choices
            choices.append({"index": index, "delta": {"content": ""}, "logprobs": None, "finish_reason": None})
        if tells_tokens:
            self._add_tokens(choices, delta)
        if end is not None:
            choices[-1]["finish_reason"] = parser.finish_reason(end)
            choices[-1]["stop_reason"] = delta.stop_reason
        return choices

    def _add_tokens(self, choices: Sequence[dict[str, Any]], delta: CompletionDelta) -> None:
        """Says of which tokens the choices are made: in the first of them."""
        if delta.token_ids:
            choices[0]["logprobs"] = _logprobs(self._job, delta.token_ids, delta.logprobs)
        if self._job.request.return_token_ids:
            for choice in choices:
                choice["token_ids"] = []
            choices[0]["token_ids"] = delta.token_ids


def _delta(event: Event) -> dict[str, Any] | None:
    """What a chunk says of an event; None where it says nothing."""
    if isinstance(event, Content):
        return {"content": event.text}
    if isinstance(event, Reasoning):
        return {"reasoning": event.text}
    if isinstance(event, CallArguments):
        return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}
    if isinstance(event, CallBegin):
        function = {"name": event.name, "arguments": ""}
        return {"tool_calls": [{"index": event.index, "id": event.id, "type": "function", "function": function}]}
    return None


def _logprobs(
    job: ChatJob, token_ids: Sequence[int], candidates: Sequence[TokenLogprobs] | None
) -> dict[str, Any] | None:
    if candidates is None or job.num_top is None:
        return None
    # What was asked for by id is named whatever it is worth.
    num_top = None if job.request.logprob_token_ids else job.num_top
    return chat_logprobs(token_ids, candidates, num_top=num_top, as_token_ids=job.request.return_tokens_as_token_ids)


def _choice(job: ChatJob, sample: CompletionOutput, tally: UsageTally) -> dict[str, Any]:
    parser, count = job.reader.parser(), job.reader.reasoning_count()
    message = Message.of([*parser.push(sample.text), *parser.finish()])
    if count is not None:
        tally.num_reasoning_tokens = (tally.num_reasoning_tokens or 0) + count.add(sample.token_ids)
    content = job.echo + (message.content or "") or None
    said: dict[str, Any] = {"role": job.role, "content": content, "refusal": None}
    if job.reader.reasoning is not None:
        said["reasoning"] = message.reasoning
    if message.tool_calls:
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    elif content is None and message.reasoning is None:
        said["content"] = ""
    choice: dict[str, Any] = {
        "index": sample.index,
        "message": said,
        "logprobs": _logprobs(job, sample.token_ids, sample.logprobs or ()),
        "finish_reason": parser.finish_reason(sample.finish_reason),
        "stop_reason": sample.stop_reason,
    }
    if job.request.return_token_ids:
        choice["token_ids"] = sample.token_ids
    return choice
