"""Fields inside of messages, parts, blocks, items, calls and tools: the SDKs' types say which there are; each is read,
harmless or refused, and what nobody knows is refused too."""

from __future__ import annotations

import anthropic.types
import jsonschema
import openai.types.chat
import openai.types.completion_create_params
import openai.types.responses
import openai.types.shared_params
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from openai.types.chat import (
    chat_completion_message_function_tool_call_param,
    chat_completion_named_tool_choice_param,
    completion_create_params,
)
from openai.types.responses import response_create_params, response_input_item_param, response_reasoning_item_param
from openai.types.shared_params import response_format_json_schema

from paged_backend.handlers.openai.protocol import blocks, chat_objects, input_items
from paged_backend.handlers.openai.protocol.anthropic import (
    CountTokensRequest,
    MessagesRequest,
    OutputConfig,
    OutputFormat,
    Thinking,
    ToolChoice,
)
from paged_backend.handlers.openai.protocol.base import HARMLESS, RequestBody, StreamOptions
from paged_backend.handlers.openai.protocol.chat import ChatRequest
from paged_backend.handlers.openai.protocol.completions import CompletionRequest
from paged_backend.handlers.openai.protocol.objects import ObjectKind
from paged_backend.handlers.openai.protocol.responses import (
    ReasoningConfig,
    ResponsesRequest,
    ResponsesStreamOptions,
    TextConfig,
    TextFormat,
)
from paged_backend.handlers.openai.protocol.structured_outputs import FORMATS, JSON_SCHEMA

CHAT, TOKENIZE = "/v1/chat/completions", "/tokenize"
MESSAGES, COUNT, RESPONSES = "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"
HELLO = {"role": "user", "content": "yo"}
A, C, R, S = anthropic.types, openai.types.chat, openai.types.responses, openai.types.shared_params


def names_of(kind):
    """The fields of an SDK's type, of a request's or a reply's."""
    fields = getattr(kind, "model_fields", None)
    if fields is None:
        return {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})} | set(
            kind.__annotations__
        )
    return {field.alias or name for name, field in fields.items()}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (blocks.MESSAGES["user"], (A.UserMessageParam,)),
        (blocks.MESSAGES["assistant"], (A.AssistantMessageParam,)),
        (blocks.MESSAGES["system"], (A.SystemMessageParam,)),
        (blocks.TEXT, (A.TextBlockParam, A.TextBlock, A.ParsedTextBlock)),
        (blocks.THINKING, (A.ThinkingBlockParam, A.ThinkingBlock)),
        (blocks.REDACTED_THINKING, (A.RedactedThinkingBlockParam, A.RedactedThinkingBlock)),
        (blocks.TOOL_USE, (A.ToolUseBlockParam, A.ToolUseBlock)),
        (blocks.TOOL_RESULT, (A.ToolResultBlockParam,)),
        (blocks.TOOL, (A.ToolParam,)),
        (MessagesRequest, (message_create_params.MessageCreateParamsBase,)),
        (CountTokensRequest, (message_count_tokens_params.MessageCountTokensParams,)),
        (ToolChoice, (A.ToolChoiceAutoParam, A.ToolChoiceAnyParam, A.ToolChoiceToolParam, A.ToolChoiceNoneParam)),
        (Thinking, (A.ThinkingConfigEnabledParam, A.ThinkingConfigAdaptiveParam, A.ThinkingConfigDisabledParam)),
        (OutputConfig, (A.OutputConfigParam,)),
        (OutputFormat, (A.JSONOutputFormatParam,)),
        (
            input_items.MESSAGE,
            (R.EasyInputMessageParam, R.ResponseOutputMessageParam, R.ResponseOutputMessage),
        ),
        (input_items.MESSAGE, (response_input_item_param.Message,)),
        (input_items.PARTS["input_text"], (R.ResponseInputTextParam,)),
        (input_items.PARTS["output_text"], (R.ResponseOutputTextParam, R.ParsedResponseOutputText)),
        (input_items.PARTS["refusal"], (R.ResponseOutputRefusalParam,)),
        (input_items.REASONING, (R.ResponseReasoningItemParam, R.ResponseReasoningItem)),
        (input_items.REASONING_PARTS["reasoning_text"], (response_reasoning_item_param.Content,)),
        (input_items.REASONING_PARTS["summary_text"], (response_reasoning_item_param.Summary,)),
        (
            input_items.FUNCTION_CALL,
            (R.ResponseFunctionToolCallParam, R.ResponseFunctionToolCallItem, R.ParsedResponseFunctionToolCall),
        ),
        (input_items.FUNCTION_CALL_OUTPUT, (response_input_item_param.FunctionCallOutput,)),
        (input_items.TOOL, (R.FunctionToolParam,)),
        (ResponsesRequest, (response_create_params.ResponseCreateParamsBase,)),
        (ResponsesStreamOptions, (response_create_params.StreamOptions,)),
        (TextConfig, (R.ResponseTextConfigParam,)),
        (TextFormat, (R.ResponseFormatTextJSONSchemaConfigParam,)),
        (ReasoningConfig, (S.Reasoning,)),
        (chat_objects.MESSAGES["system"], (C.ChatCompletionSystemMessageParam,)),
        (chat_objects.MESSAGES["developer"], (C.ChatCompletionDeveloperMessageParam,)),
        (chat_objects.MESSAGES["user"], (C.ChatCompletionUserMessageParam,)),
        (
            chat_objects.MESSAGES["assistant"],
            (C.ChatCompletionAssistantMessageParam, C.ChatCompletionMessage, C.ParsedChatCompletionMessage),
        ),
        (chat_objects.MESSAGES["tool"], (C.ChatCompletionToolMessageParam,)),
        (chat_objects.TEXT, (C.ChatCompletionContentPartTextParam,)),
        (chat_objects.REFUSAL, (C.ChatCompletionContentPartRefusalParam,)),
        (
            chat_objects.CALL,
            (C.ChatCompletionMessageFunctionToolCallParam, C.ChatCompletionMessageToolCall, C.ParsedFunctionToolCall),
        ),
        (
            chat_objects.CALLED_FUNCTION,
            (chat_completion_message_function_tool_call_param.Function, C.ParsedFunction),
        ),
        (chat_objects.TOOL, (C.ChatCompletionFunctionToolParam,)),
        (chat_objects.FUNCTION, (S.FunctionDefinition,)),
        (chat_objects.CHOICE, (C.ChatCompletionNamedToolChoiceParam,)),
        (chat_objects.CHOSEN_FUNCTION, (chat_completion_named_tool_choice_param.Function,)),
        (FORMATS["text"], (S.ResponseFormatText,)),
        (FORMATS["json_object"], (S.ResponseFormatJSONObject,)),
        (FORMATS["json_schema"], (S.ResponseFormatJSONSchema,)),
        (JSON_SCHEMA, (response_format_json_schema.JSONSchema,)),
        (StreamOptions, (C.ChatCompletionStreamOptionsParam,)),
        (ChatRequest, (completion_create_params.CompletionCreateParamsBase,)),
        (CompletionRequest, (openai.types.completion_create_params.CompletionCreateParamsBase,)),
    ],
    ids=lambda value: value[0].__name__ if isinstance(value, tuple) else "",
)
def test_every_published_field_is_told_of(ours: ObjectKind | type[RequestBody], theirs):
    if isinstance(ours, ObjectKind):
        known = {*ours.required, *ours.optional, *ours.harmless, *ours.unsupported}
        jsonschema.Draft202012Validator.check_schema(ours.schema())
    else:
        known = {field.alias or name for name, field in ours.model_fields.items()} | set(ours.unsupported) | HARMLESS
    for kind in theirs:
        assert names_of(kind) <= known, kind.__name__


def _in_messages(role, **block):
    return MESSAGES, {"messages": [HELLO, {"role": role, "content": [block]}], "max_tokens": 5}


def _in_input(**item):
    return RESPONSES, {"input": [{"role": "user", "content": "yo"}, item]}


def _in_chat(role, path=CHAT, **fields):
    return path, {"messages": [HELLO, {"role": role, **fields}]}


def _in_call(**fields):
    return _in_chat("assistant", tool_calls=[{"id": "1", "function": {"name": "f", "arguments": "{}"}, **fields}])


def _in_format(**fields):
    return CHAT, {"messages": [HELLO], "response_format": fields}


def _in_tool(path, **fields):
    if path == CHAT:
        tool = {"type": "function", "function": {"name": "f"}, **fields}
        return path, {"messages": [HELLO], "tools": [tool]}
    if path == RESPONSES:
        return path, {"input": "yo", "tools": [{"type": "function", "name": "f", **fields}]}
    tool = {"name": "f", "input_schema": {"type": "object"}, **fields}
    return path, {"messages": [HELLO], "max_tokens": 5, "tools": [tool]}


TEXT = {"type": "text", "text": "x"}
USE = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "1"}
CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "x"}
SAID = {"role": "assistant", "content": [{"type": "output_text", "text": "x"}]}


@pytest.fixture(autouse=True)
def model(client):
    client.tokenizer.chat_template = "<think> </think> <tool_call> developer"
    client.max_model_len = 1000


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (_in_chat("user", content="x", foo=1), "messages.1.foo"),
        (_in_chat("user", content="x", foo=[]), "messages.1.foo"),
        (_in_chat("user", content="x", foo=1, path=TOKENIZE), "messages.1.foo"),
        (_in_chat("user", content="x", reasoning="hm"), "messages.1.reasoning"),
        (_in_chat("user", content="x", tool_call_id="1"), "messages.1.tool_call_id"),
        (_in_chat("user", content=[{**TEXT, "foo": 1}]), "messages.1.content.0.foo"),
        (_in_chat("user", content=[{"type": "refusal", "refusal": "no"}]), "messages.1.content.0.type"),
        (_in_chat("tool", content=[{**TEXT, "foo": 1}]), "messages.1.content.0.foo"),
        (_in_chat("assistant", content="x", audio={"id": "a"}), "messages.1.audio"),
        (_in_chat("assistant", content="x", images=[{"url": "x"}]), "messages.1.images"),
        (_in_chat("assistant", content="x", function_call={"name": "f"}), "messages.1.function_call"),
        (_in_chat("assistant", refusal="no"), "messages.1.refusal"),
        (_in_call(foo=1), "messages.1.tool_calls.0.foo"),
        (_in_call(type="custom"), "messages.1.tool_calls.0.type"),
        (_in_call(function={"name": "f", "foo": 1}), "messages.1.tool_calls.0.function.foo"),
        (_in_tool(CHAT, foo=1), "tools.0.foo"),
        (_in_tool(CHAT, type="custom"), "tools.0.type"),
        (_in_tool(CHAT, function={"name": "f", "foo": 1}), "tools.0.function.foo"),
        (_in_format(type="json_object", foo=1), "response_format.foo"),
        (_in_format(type="json_schema", json_schema={"name": "a", "schema": {}, "f": 1}), "format.json_schema.f"),
        (_in_messages("user", **TEXT, foo=1), "messages.1.content.0.foo"),
        (_in_messages("user", **TEXT, cache_contrl={}), "messages.1.content.0.cache_contrl"),
        (_in_messages("user", **RESULT, foo=1), "messages.1.content.0.foo"),
        (_in_messages("user", **RESULT, content=[{**TEXT, "foo": 1}]), "messages.1.content.0.content.0.foo"),
        (_in_messages("user", **RESULT, is_error="yes"), "messages.1.content.0.is_error"),
        (_in_messages("user", **RESULT, is_error=1), "messages.1.content.0.is_error"),
        (_in_messages("user", **RESULT, toolset_name="t"), "messages.1.content.0.toolset_name"),
        (_in_messages("assistant", **USE, foo=1), "messages.1.content.0.foo"),
        (_in_messages("assistant", **USE, caller={"type": "x"}), "messages.1.content.0.caller"),
        (_in_messages("assistant", type="thinking", thinking="x", foo=1), "messages.1.content.0.foo"),
        (_in_messages("assistant", type="redacted_thinking", data="x", foo=1), "messages.1.content.0.foo"),
        (_in_messages("system", **TEXT, foo=1), "messages.1.content.0.foo"),
        ((MESSAGES, {"messages": [{**HELLO, "name": "me"}], "max_tokens": 5}), "messages.0.name"),
        ((MESSAGES, {"messages": [HELLO], "max_tokens": 5, "system": [{**TEXT, "foo": 1}]}), "system.0.foo"),
        ((COUNT, {"messages": [{**HELLO, "name": "me"}]}), "messages.0.name"),
        (_in_tool(MESSAGES, foo=1), "tools.0.foo"),
        (_in_tool(MESSAGES, defer_loading=True), "tools.0.defer_loading"),
        (_in_tool(MESSAGES, allowed_callers=["code_execution_20260120"]), "tools.0.allowed_callers"),
        (_in_tool(MESSAGES, input_examples=["x"]), "tools.0.input_examples"),
        (_in_tool(MESSAGES, input_examples={}), "tools.0.input_examples"),
        (_in_input(role="user", content="x", foo=1), "input.1.foo"),
        (_in_input(role="user", content="x", name="me"), "input.1.name"),
        (_in_input(role="user", content=[{"type": "input_text", "text": "x", "foo": 1}]), "input.1.content.0.foo"),
        (_in_input(type="message", **{**SAID, "statuss": "completed"}), "input.1.statuss"),
        (_in_input(type="reasoning", summary=[], foo=1), "input.1.foo"),
        (
            _in_input(type="reasoning", summary=[{"type": "summary_text", "text": "x", "foo": 1}]),
            "input.1.summary.0.foo",
        ),
        (_in_input(**CALL, foo=1), "input.1.foo"),
        (_in_input(**CALL, namespace="n"), "input.1.namespace"),
        (_in_input(**CALL, caller={"type": "program", "caller_id": "x"}), "input.1.caller"),
        (_in_input(**OUTPUT, foo=1), "input.1.foo"),
        (_in_tool(RESPONSES, foo=1), "tools.0.foo"),
        (_in_tool(RESPONSES, defer_loading=True), "tools.0.defer_loading"),
        (_in_tool(RESPONSES, output_schema={"type": "string"}), "tools.0.output_schema"),
        ((RESPONSES, {"input": "yo", "text": {"verbosity": "low"}}), "text.verbosity"),
        ((RESPONSES, {"input": "yo", "reasoning": {"mode": "pro"}}), "reasoning.mode"),
        ((RESPONSES, {"input": "yo", "reasoning": {"summary": "long"}}), "reasoning.summary"),
        ((RESPONSES, {"input": "yo", "text": {"format": {"type": "text", "schema": {}}}}), "text.format.schema"),
        ((RESPONSES, {"input": "yo", "text": {"format": {"type": "json_object", "name": "x"}}}), "text.format.name"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_served_is_refused_by_its_place(call, client, asked, param, stream):
    path, body = asked
    if stream and path not in (COUNT, TOKENIZE):
        body = {**body, "stream": True}
    reply = call(path, body)
    assert reply.status == 400
    error = reply.json["error"]
    assert param in error["message"]
    if path not in (MESSAGES, COUNT):
        assert error["param"].removeprefix("body.").endswith(param)
    assert not client.submissions


HINT = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
LABELS = {"id": "x_1", "status": "completed"}


@pytest.mark.parametrize(
    ("plain", "marked"),
    [
        (
            _in_chat("user", content=[TEXT]),
            _in_chat("user", content=[{**TEXT, **HINT, "foo": None}], **HINT, foo=None, tool_calls=[], reasoning=None),
        ),
        (
            _in_chat("assistant", content="x"),
            _in_chat("assistant", content="x", annotations=[{}], parsed={"a": 1}, refusal="", images=[], audio=None),
        ),
        (
            _in_chat("assistant", content="no"),
            _in_chat("assistant", content=[{"type": "refusal", "refusal": "no"}], function_call=None),
        ),
        (
            _in_chat("assistant", content="x"),
            _in_chat("assistant", content="x", thinking_blocks=[{}], provider_specific_fields={"refusal": None}),
        ),
        (
            _in_call(),
            _in_call(index=0, type="function", function={"name": "f", "arguments": "{}", "parsed_arguments": {}}),
        ),
        (_in_tool(CHAT), _in_tool(CHAT, **HINT, function={"name": "f", "strict": False, "foo": None})),
        ((CHAT, {"messages": [HELLO]}), _in_format(type="text", foo=None)),
        (_in_messages("user", **TEXT), _in_messages("user", **TEXT, **HINT, citations=[{"type": "char_location"}])),
        (_in_messages("user", **TEXT), _in_messages("user", **TEXT, parsed_output={"a": 1}, whatever=None)),
        (_in_messages("user", **RESULT), _in_messages("user", **RESULT, **HINT, is_error=False, toolset_name=None)),
        (_in_messages("assistant", **USE), _in_messages("assistant", **USE, **HINT, caller={"type": "direct"})),
        (
            _in_messages("assistant", type="thinking", thinking="x"),
            _in_messages("assistant", type="thinking", thinking="x", signature="s"),
        ),
        (
            _in_tool(MESSAGES),
            _in_tool(
                MESSAGES,
                **HINT,
                type="custom",
                strict=True,
                defer_loading=False,
                eager_input_streaming=True,
                allowed_callers=["direct"],
            ),
        ),
        (_in_input(**SAID), _in_input(type="message", **SAID, **LABELS, phase="final_answer")),
        (
            _in_input(**SAID),
            _in_input(
                role="assistant",
                content=[{"type": "output_text", "text": "x", "annotations": [{}], "logprobs": [], "parsed": {"a": 1}}],
            ),
        ),
        (_in_input(**CALL), _in_input(**CALL, **LABELS, caller={"type": "direct"}, parsed_arguments={}, async_=None)),
        (_in_input(**OUTPUT), _in_input(**OUTPUT, **LABELS, namespace=None)),
        (
            _in_input(type="reasoning", summary=[]),
            _in_input(type="reasoning", summary=[], content=None, **LABELS, encrypted_content="x"),
        ),
        (_in_tool(RESPONSES), _in_tool(RESPONSES, strict=True, defer_loading=False, description=None)),
        (
            (RESPONSES, {"input": "yo"}),
            (RESPONSES, {"input": "yo", "text": {"verbosity": "medium"}, "reasoning": {"summary": "auto"}}),
        ),
    ],
    ids=lambda value: str(value[1])[-60:],
)
def test_hints_and_labels_change_nothing(call, client, plain, marked):
    for path, body in (plain, marked):
        assert call(path, body).status == 200
        prompts = [submission["prompt"] for submission in client.submissions]
    assert prompts[0] == prompts[1]


def test_a_tool_that_failed_says_so(call, client):
    for content, text in (
        ("no such city", "Error: no such city"),
        ([TEXT], "Error: x"),
        ("", "Error"),
        (None, "Error"),
    ):
        path, body = _in_messages("user", **RESULT, content=content, is_error=True)
        assert call(path, body).status == 200
        assert client.tokenizer.messages[-1] == {"role": "tool", "tool_call_id": "1", "content": text}


def test_the_name_of_a_tools_output_goes_on(call, client):
    path, body = _in_input(**OUTPUT, name="weather")
    assert call(path, body).status == 200
    assert client.tokenizer.messages[-1] == {"role": "tool", "tool_call_id": "1", "content": "x", "name": "weather"}


def test_examples_of_a_tools_input_are_shown(call, client):
    examples = [{"city": "Bonn"}, {}]
    path, body = _in_tool(MESSAGES, input_examples=examples)
    assert call(path, body).status == 200
    (tool,) = client.tokenizer.template_arguments["tools"]
    assert tool["function"]["parameters"] == {"type": "object", "examples": examples}
