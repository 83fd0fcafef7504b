"""From a checked chat request to what the engine is asked for, and to how its answers are read.

This is the core of every route that holds a conversation. /v1/chat/completions is one; a route with another form of the
same request makes a `ChatRequest` of its body, prepares and submits it, and writes the parsers' events in its own form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paged_backend.config import ChatConfig
from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.answers import AnswerReader, AnswerStyle
from paged_backend.handlers.openai.engine_port import StreamPort
from paged_backend.handlers.openai.generation import ServingContext, submit_all
from paged_backend.handlers.openai.messages import parse_messages
from paged_backend.handlers.openai.prompts import require_tokenizer, room_for, truncate
from paged_backend.handlers.openai.protocol.chat import ChatRequest
from paged_backend.handlers.openai.protocol.generation import bounded_max_tokens, check_generation, sampling_params
from paged_backend.handlers.openai.reasoning import AnswerReasoning, with_thinking_budget
from paged_backend.handlers.openai.rendering import Rendering, render_messages
from paged_backend.handlers.openai.tools import ToolUse, parse_tools
from paged_backend.sampling_params import SamplingParams, StructuredOutputsParams


@dataclass(frozen=True, slots=True)
class ChatJob:
    """A chat request that was checked and rendered; nothing runs yet.

    Attributes:
        prompt: token ids.
        params: what is sampled, `max_tokens` filled in.
        reader: makes a parser for each of the `params.n` samples.
        num_top: candidates per token; None where no log probabilities are asked for.
        max_tokens_field: the request's field that bounds the output.
        role: whose message the answer is.
        echo: content that comes before the answer's own.
    """

    request: ChatRequest
    prompt: list[int]
    params: SamplingParams
    reader: AnswerReader
    num_top: int | None
    max_tokens_field: str
    role: str
    echo: str

    def submit(self, context: ServingContext, response_id: str) -> Sequence[StreamPort]:
        """Hands the job to the engine.

        Raises:
            InvalidRequestError: `param` is the request's field.
            AdmissionError, EngineUnavailableError: as from the engine.
        """
        return submit_all(
            context,
            self.request,
            [self.prompt],
            self.params,
            response_id=response_id,
            prompt_field="messages",
            max_tokens_field=self.max_tokens_field,
        )


async def prepare_chat(context: ServingContext, request: ChatRequest) -> ChatJob:
    """Checks a request's values, renders its conversation, and chooses how its answers are read.

    Raises:
        InvalidRequestError: `param` is the request's field.
    """
    engine = context.engine
    check_generation(request, engine.config.scheduler.scheduling_policy)
    max_tokens_field, max_tokens = _max_tokens(request)
    num_top = _num_top(request)
    limit = engine.max_model_len
    try:
        # Checked before the prompt is rendered: a wrong value must not cost a long tokenisation.
        params = sampling_params(
            request,
            engine,
            max_tokens=limit if max_tokens is None else max_tokens,
            logprobs=num_top,
            streams=request.stream,
            logprobs_field="top_logprobs",
        )
    except InvalidRequestError as error:
        if error.param != "max_tokens":
            raise
        message = str(error).replace("max_tokens", max_tokens_field, 1)
        raise InvalidRequestError(message, param=max_tokens_field) from error
    tool_use = parse_tools(request.tools, request.tool_choice)
    if tool_use.is_forced:
        params = _forced(params, tool_use, single=not request.parallel_tool_calls)
    messages = parse_messages(request.messages, max_messages=limit)
    config, tokenizer = engine.config.chat, require_tokenizer(engine, "messages")
    rendering = Rendering.of(request, shown_tools(config, tool_use))
    style = AnswerStyle.choose(config, tokenizer, rendering.source(tokenizer), tool_use)
    rendered = await render_messages(engine, messages, rendering, must_fit=request.truncate_prompt_tokens is None)
    prompt = truncate(rendered.token_ids, request, max_model_len=limit, max_tokens=max_tokens)
    room = room_for(prompt, max_tokens, max_model_len=limit, prompt_field="messages", max_tokens_field=max_tokens_field)
    params = dataclasses.replace(params, max_tokens=bounded_max_tokens(engine, room))
    if style.keeps_special_tokens:
        params = dataclasses.replace(params, skip_special_tokens=False)
    reasoning = None
    if style.markers is not None:
        continued = messages[-1]["content"] if request.continue_final_message else None
        reasoning = AnswerReasoning.of(style.markers, tokenizer, rendered.text, continued)
    if params.structured_outputs is not None and reasoning is not None:
        # A grammar knows the reasoning's end by its token only; without one, there is none before its text.
        reasoning = None if reasoning.token_ids is None else reasoning
        params = params if reasoning is None else reasoning.constrained(params)
    if request.thinking_token_budget not in (None, -1):
        params = with_thinking_budget(params, request.thinking_token_budget, reasoning)
    reader = AnswerReader(
        new_calls=style.calls,
        reasoning=reasoning,
        include_reasoning=request.include_reasoning,
        single_call=not request.parallel_tool_calls,
        names_call=tool_use.choice == "named",
    )
    role = "assistant" if request.add_generation_prompt else messages[-1]["role"]
    echo = messages[-1]["content"] if request.echo and messages[-1]["role"] == role else ""
    return ChatJob(request, prompt, params, reader, num_top, max_tokens_field, role, echo)


def shown_tools(config: ChatConfig, tool_use: ToolUse) -> Sequence[Mapping[str, Any]]:
    """The tools that the prompt tells of."""
    hides = tool_use.choice == "none" and config.exclude_tools_when_tool_choice_none
    return () if hides else tool_use.tools


def _max_tokens(request: ChatRequest) -> tuple[str, int | None]:
    """The field that bounds the output, and its value; the newer field wins over the deprecated one."""
    if request.max_completion_tokens is not None or request.max_tokens is None:
        return "max_completion_tokens", request.max_completion_tokens
    return "max_tokens", request.max_tokens


def _num_top(request: ChatRequest) -> int | None:
    """Candidates per token, or None where no log probabilities are asked for."""
    num_top = request.top_logprobs or 0
    if num_top and not request.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    return num_top if request.logprobs else None


def _forced(params: SamplingParams, tool_use: ToolUse, *, single: bool) -> SamplingParams:
    """Parameters that make the answer the calls that `tool_choice` asks for."""
    other = params.structured_outputs
    if other is not None:
        raise InvalidRequestError(
            f"tool_choice makes the answer a call, and {other.param} makes it something else: leave one out.",
            param="tool_choice",
        )
    # A space at the most between JSON's tokens: with any number of them, a model that finds no end says nothing else.
    calls = StructuredOutputsParams(json=tool_use.schema(single=single), whitespace_pattern=" ?", param="tools")
    return dataclasses.replace(params, structured_outputs=calls)
