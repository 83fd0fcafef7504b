"""Bodies and replies of /v1/messages: Anthropic's form."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, WithJsonSchema
from typing_extensions import NotRequired, TypedDict

from paged_backend.handlers.openai.protocol.base import ListOf, Refusal, RequestBody
from paged_backend.handlers.openai.protocol.blocks import MESSAGES_SCHEMA, SYSTEM_SCHEMA, TOOLS_SCHEMA
from paged_backend.handlers.openai.protocol.conversation import ConversationRequest
from paged_backend.handlers.openai.protocol.replies import Receipt


class Thinking(RequestBody):
    """Whether the model is to think first, how many tokens at most, and whether the thoughts are told.

    Attributes:
        budget_tokens: for type "enabled".
        display: "omitted" leaves the thoughts out; nobody summarises them, so "summarized" has all of them.
    """

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class ToolChoice(RequestBody):
    """Whether tools are called, or which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class OutputFormat(RequestBody):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any]

    model_config = ConfigDict(alias_generator=lambda name: name.rstrip("_"))


class OutputConfig(RequestBody):
    """The text's form, and how much effort the model is to take."""

    format: OutputFormat | None = None
    effort: str | None = None


class PromptRequest(ConversationRequest):
    """What makes a prompt. `messages`, `system` and `tools` are checked where they are turned into the chat's."""

    messages: Annotated[Any, WithJsonSchema(MESSAGES_SCHEMA)]
    system: Annotated[Any, WithJsonSchema(SYSTEM_SCHEMA)] = None
    tools: Annotated[Any, WithJsonSchema(TOOLS_SCHEMA)] = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None

    unsupported = MappingProxyType(
        {
            "container": Refusal("leave it out"),
            "context_management": Refusal("leave it out"),
            "diagnostics": Refusal("usage tells what the prefix cache had", ({},)),
            "inference_geo": Refusal("there is one server, and it is where it is"),
            "max_completion_tokens": Refusal("use max_tokens"),
            "mcp_servers": Refusal("calls are the client's to make", ([],)),
            "response_format": Refusal("use output_config"),
            "speed": Refusal("there is one speed", ("standard",)),
            "stop": Refusal("use stop_sequences"),
            "user_profile_id": Refusal("no profiles are kept here"),
            "workspace_id": Refusal("there are no workspaces here, a key is a tenant"),
        }
    )


class MessagesRequest(PromptRequest):
    """Body of /v1/messages."""

    max_tokens: int
    stop_sequences: ListOf[str] | None = None


class CountTokensRequest(PromptRequest):
    """Body of /v1/messages/count_tokens; fields that make no prompt are taken and change nothing."""

    max_tokens: int | None = None
    stop_sequences: ListOf[str] | None = None


class TextBlock(TypedDict):
    """What the model said."""

    type: Literal["text"]
    text: str
    citations: None


class ThinkingBlock(TypedDict):
    """What the model thought; nobody signs it."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(TypedDict):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(TypedDict):
    """Tokens: the prompt's are those of `input_tokens` and those that were read from the prefix cache."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    receipts: NotRequired[list[Receipt]]


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn"]


class Message(TypedDict):
    """A whole response of /v1/messages.

    Attributes:
        stop_reason: "pause_turn" where it was cancelled, or out of time.
    """

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: StopReason
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(TypedDict):
    """How many tokens the prompt has."""

    input_tokens: int


class AnthropicErrorDetails(TypedDict):
    """What is wrong."""

    type: str
    message: str


class AnthropicError(TypedDict):
    """The body of every refusal, in Anthropic's form."""

    type: Literal["error"]
    error: AnthropicErrorDetails
