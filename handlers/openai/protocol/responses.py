"""Body and reply of /v1/responses."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, WithJsonSchema
from typing_extensions import NotRequired, TypedDict

from paged_backend.handlers.openai.protocol.base import ListOf, ObjectOf, Refusal, RequestBody
from paged_backend.handlers.openai.protocol.conversation import ConversationRequest
from paged_backend.handlers.openai.protocol.input_items import INPUT_SCHEMA, TOOLS_SCHEMA
from paged_backend.handlers.openai.protocol.replies import Receipt, TokenLogprob

INCLUDABLE = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
"""What `include` may name. The log probabilities alone are something that we have."""

_TOOL_CHOICE_SCHEMA = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        {
            "type": "object",
            "required": ["type", "name"],
            "properties": {"type": {"const": "function"}, "name": {"type": "string"}},
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}


class TextFormat(RequestBody):
    """What the text has to look like."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = None
    strict: bool | None = None

    model_config = ConfigDict(alias_generator=lambda name: name.rstrip("_"))


class TextConfig(RequestBody):
    """The text's form."""

    format: TextFormat | None = None

    unsupported = MappingProxyType({"verbosity": Refusal("no model here knows of it", ("medium",))})


class ReasoningConfig(RequestBody):
    """How much the model should reason. Summaries are not made: the reasoning itself is returned."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None

    unsupported = MappingProxyType(
        {
            "context": Refusal("the chat template says which turns' reasoning the model sees", ("auto",)),
            "mode": Refusal("there is one mode", ("standard",)),
        }
    )


class ResponsesStreamOptions(RequestBody):
    """`include_obfuscation` pads events at OpenAI; here nothing does."""

    include_obfuscation: bool | None = None


class ResponsesRequest(ConversationRequest):
    """Body of /v1/responses. `input` and `tools` are checked where they are turned into the chat's."""

    input: Annotated[Any, WithJsonSchema(INPUT_SCHEMA)]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: Annotated[Any, WithJsonSchema(TOOLS_SCHEMA)] = None
    tool_choice: Annotated[Any, WithJsonSchema(_TOOL_CHOICE_SCHEMA)] = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: ListOf[str] | None = None
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: ObjectOf[str] | None = None
    stream_options: ResponsesStreamOptions | None = None
    previous_response_id: str | None = None
    user: str | None = None

    unsupported = MappingProxyType(
        {
            "access_programs": Refusal("leave it out"),
            "background": Refusal("responses are not kept", (False,)),
            "background_options": Refusal("responses are not kept"),
            "context_management": Refusal("leave it out", ([],)),
            "conversation": Refusal("use input"),
            "image": Refusal("this model reads and writes text only"),
            "max_completion_tokens": Refusal("use max_output_tokens"),
            "max_tokens": Refusal("use max_output_tokens"),
            "max_tool_calls": Refusal("calls are the client's to make"),
            "messages": Refusal("use input"),
            "moderation": Refusal("leave it out"),
            "prompt": Refusal("no prompts are kept here"),
            "response_format": Refusal("use text.format"),
        }
    )


class InputTokensDetails(TypedDict):
    """Of the input's tokens, those that came from the prefix cache; none are paid for being written to it."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(TypedDict):
    """Of the output's tokens, those of the reasoning."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Tokens of one response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int
    receipts: NotRequired[list[Receipt]]


class OutputText(TypedDict):
    """What the model said."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprob]


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(TypedDict):
    """The assistant's message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class ReasoningText(TypedDict):
    """What the model thought."""

    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(TypedDict):
    """The model's reasoning."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[Any]
    content: list[ReasoningText]
    encrypted_content: None


class OutputCall(TypedDict):
    """A call of a function; `arguments` is JSON, unless the output was cut short."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | OutputReasoning | OutputCall


class ResponseError(TypedDict):
    """Why a response failed."""

    code: Literal["server_error"]
    message: str


class IncompleteDetails(TypedDict):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseReasoning(TypedDict):
    """As it was asked for."""

    effort: str | None
    summary: str | None


class ResponseFormat(TypedDict):
    """As it was asked for."""

    type: Literal["text", "json_object", "json_schema"]
    name: NotRequired[str]
    description: NotRequired[str | None]
    schema: NotRequired[dict[str, Any]]
    strict: NotRequired[bool | None]


class ResponseText(TypedDict):
    """As it was asked for."""

    format: ResponseFormat


class Response(TypedDict):
    """A whole response of /v1/responses; it is kept by nobody.

    Attributes:
        status: "incomplete" where it met max_output_tokens, "cancelled" where it was cancelled or out of time.
    """

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "failed", "in_progress", "cancelled", "incomplete"]
    background: Literal[False]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: ResponseReasoning
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: ResponseText
    tool_choice: Any
    tools: list[Any]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    user: str | None
