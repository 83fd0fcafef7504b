"""What the routes answer, field by field and no others: /openapi.json tells it, and the tests hold to it."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict


class ErrorDetails(TypedDict):
    """What is wrong.

    Attributes:
        param: the request's field at fault, or null.
        code: the HTTP status.
    """

    message: str
    type: str
    param: str | None
    code: int


class Error(TypedDict):
    """The body of every refusal."""

    error: ErrorDetails


class Health(TypedDict):
    """An empty object: the engine serves."""


class Version(TypedDict):
    """This package's version."""

    version: str


class Model(TypedDict):
    """A name that requests may use.

    Attributes:
        created: seconds since 1970 at which the server began to serve it.
        root: the model behind the name.
        max_model_len: most tokens of prompt and output together.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(TypedDict):
    """All names that requests may use."""

    object: Literal["list"]
    data: list[Model]


class PromptTokensDetails(TypedDict):
    """Of the prompt's tokens, those that came from the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """Of the output's tokens, those of the reasoning."""

    reasoning_tokens: int


class Preemptions(TypedDict):
    """How often a request gave its blocks back, by what brought them again."""

    recompute: int
    swap: int


class Receipt(TypedDict):
    """What one prompt took.

    The three times add up to its whole life in the engine. kv_block_seconds are blocks of the KV cache times the
    seconds that it held them; a block that several of its samples share counts for each.
    """

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    cached_tokens: int
    kv_block_seconds: float
    preemptions: Preemptions
    steps: int


class Usage(TypedDict):
    """Tokens, over all prompts and samples of a response."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: NotRequired[CompletionTokensDetails]
    receipts: NotRequired[list[Receipt]]


FinishReason = Literal["stop", "length", "repetition", "tool_calls", "abort", "error"]


class CompletionLogprobs(TypedDict):
    """Columns, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(TypedDict):
    """A candidate for a token of the prompt; rank 1 is the likeliest."""

    logprob: float
    rank: int
    decoded_token: str | None


PromptTokenLogprobs = dict[str, PromptLogprob]
"""By token id: the prompt's token, and the likeliest candidates beside it."""


class CompletionChoice(TypedDict):
    """One sample of one prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    prompt_logprobs: NotRequired[list[PromptTokenLogprobs | None] | None]
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]


class Completion(TypedDict):
    """A whole response of /v1/completions; a stream's chunks have the same fields, usage where asked for."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[CompletionChoice]
    usage: Usage


class TopLogprob(TypedDict):
    """A candidate: its text, its bytes in UTF-8, the logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A sampled token, and the likeliest candidates beside it."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """One entry per token."""

    content: list[TokenLogprob]


class CalledFunction(TypedDict):
    """A function, and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(TypedDict):
    """The message that the model makes.

    Attributes:
        role: "assistant", unless the request has the model go on with another one's message.
        reasoning: what the model thought first, where it marks that.
    """

    role: str
    content: str | None
    refusal: None
    reasoning: NotRequired[str | None]
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
    """One sample."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    token_ids: NotRequired[list[int]]


class ChatCompletion(TypedDict):
    """A whole response of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: NotRequired[list[PromptTokenLogprobs | None] | None]
    prompt_token_ids: NotRequired[list[int]]


class Tokenized(TypedDict):
    """Token ids of a prompt or a conversation.

    Attributes:
        token_strs: each token's text, where asked for.
    """

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    """The text of token ids."""

    prompt: str


OpenAPIDocument = dict[str, Any]
"""What /openapi.json answers."""
