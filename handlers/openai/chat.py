"""/v1/chat/completions: a conversation in, the assistant's next message out."""

from __future__ import annotations

import dataclasses
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.generation import ResponseHead, ServingContext, submit_all
from paged_backend.handlers.openai.logprobs import chat_logprobs
from paged_backend.handlers.openai.prompts import encode_messages, parse_messages, room_for, truncate
from paged_backend.handlers.openai.protocol.chat import ChatRequest
from paged_backend.handlers.openai.protocol.generation import MAX_LOGPROBS, check_generation, sampling_params
from paged_backend.handlers.openai.streaming import UsageTally, collect_all, stream_response
from paged_backend.handlers.openai.wire import HttpResponse, json_response
from paged_backend.outputs import CompletionDelta, CompletionOutput

_KIND = "chat.completion"
_CHUNK_KIND = "chat.completion.chunk"


async def create_chat_completion(context: ServingContext, request: ChatRequest) -> HttpResponse:
    """Answers a chat request.

    Raises:
        PagedBackendError: whatever refuses it; nothing is left running.
    """
    head = ResponseHead.begin("chatcmpl", request, context)
    engine = context.engine
    check_generation(request, engine.config.scheduler.scheduling_policy)
    max_tokens_field, max_tokens = _max_tokens(request)
    num_top = _num_top(request)
    limit = engine.max_model_len
    try:
        # Checked before the prompt is rendered: a wrong value must not cost a long tokenisation.
        params = sampling_params(
            request,
            max_tokens=limit if max_tokens is None else max_tokens,
            logprobs=num_top,
            detokenize=engine.tokenizer is not None,
        )
    except InvalidRequestError as error:
        if error.param != "max_tokens":
            raise
        message = str(error).replace("max_tokens", max_tokens_field, 1)
        raise InvalidRequestError(message, param=max_tokens_field) from error
    prompt = await encode_messages(
        engine,
        parse_messages(request.messages, max_messages=limit),
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        chat_template_kwargs=request.chat_template_kwargs,
        add_special_tokens=request.add_special_tokens is True,
        must_fit=request.truncate_prompt_tokens is None,
    )
    prompt = truncate(prompt, request, max_model_len=limit, max_tokens=max_tokens)
    room = room_for(prompt, max_tokens, max_model_len=limit, prompt_field="messages", max_tokens_field=max_tokens_field)
    params = dataclasses.replace(params, max_tokens=room)
    requests = submit_all(
        context,
        request,
        [prompt],
        params,
        response_id=head.id,
        prompt_field="messages",
        max_tokens_field=max_tokens_field,
    )
    tally = UsageTally([len(prompt)])
    if request.stream:
        options = request.stream_options
        return stream_response(
            requests,
            _ChunkWriter(head, request, num_top, prompt, params.n),
            tally,
            include_usage=options is not None and options.include_usage,
            continuous_usage=options is not None and options.continuous_usage_stats,
        )
    (output,) = await collect_all(requests)
    tally.add_output(0, output)
    choices = [_choice(request, num_top, sample) for sample in output.outputs]
    response = head.body(_KIND, choices, tally.body())
    if request.return_token_ids:
        response["prompt_token_ids"] = prompt
    return json_response(response)


class _ChunkWriter:
    """Writes a stream's choices: first every sample's role, then the text."""

    def __init__(
        self, head: ResponseHead, request: ChatRequest, num_top: int | None, prompt: list[int], n: int
    ) -> None:
        self.head = head.chunk_head(_CHUNK_KIND)
        self._request = request
        self._num_top = num_top
        self._prompt = prompt
        self._n = n

    def first_choices(self, prompt_index: int) -> list[dict[str, Any]]:
        """The role of every sample."""
        choices = []
        for index in range(self._n):
            choice: dict[str, Any] = {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            if self._request.return_token_ids:
                choice["prompt_token_ids"] = self._prompt
            choices.append(choice)
        return choices

    def choice(self, prompt_index: int, delta: CompletionDelta) -> dict[str, Any]:
        """One sample's new text."""
        logprobs = None
        if delta.logprobs is not None and delta.token_ids:
            logprobs = chat_logprobs(
                delta.token_ids,
                delta.logprobs,
                num_top=self._num_top or 0,
                as_token_ids=self._request.return_tokens_as_token_ids,
            )
        choice: dict[str, Any] = {
            "index": delta.index,
            "delta": {"content": delta.text},
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if self._request.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice


def _max_tokens(request: ChatRequest) -> tuple[str, int | None]:
    """The field that bounds the output, and its value; the newer field wins over the deprecated one."""
    if request.max_completion_tokens is not None or request.max_tokens is None:
        return "max_completion_tokens", request.max_completion_tokens
    return "max_tokens", request.max_tokens


def _num_top(request: ChatRequest) -> int | None:
    """Candidates per token, or None where no log probabilities are asked for."""
    num_top = request.top_logprobs or 0
    if not 0 <= num_top <= MAX_LOGPROBS:
        raise InvalidRequestError(f"top_logprobs must be in 0..{MAX_LOGPROBS}, got {num_top}.", param="top_logprobs")
    if num_top and not request.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    return num_top if request.logprobs else None


def _choice(request: ChatRequest, num_top: int | None, sample: CompletionOutput) -> dict[str, Any]:
    logprobs = None
    if num_top is not None:
        logprobs = chat_logprobs(
            sample.token_ids,
            sample.logprobs or (),
            num_top=num_top,
            as_token_ids=request.return_tokens_as_token_ids,
        )
    choice: dict[str, Any] = {
        "index": sample.index,
        "message": {"role": "assistant", "content": sample.text, "refusal": None},
        "logprobs": logprobs,
        "finish_reason": sample.finish_reason,
        "stop_reason": sample.stop_reason,
    }
    if request.return_token_ids:
        choice["token_ids"] = sample.token_ids
    return choice
