"""What the native API takes and gives, as pydantic types: BentoML draws its Swagger page from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import bentoml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from typing_extensions import Self

from paged_backend.config import unknown_name_message
from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.attribute_help import attribute_help
from paged_backend.handlers.bento.edge import CURRENT_EXCHANGE
from paged_backend.handlers.openai.protocol.base import ListOf, check_text
from paged_backend.handlers.openai.protocol.generation import SamplingRequest, check_scheduling
from paged_backend.handlers.openai.wire import decode_body
from paged_backend.outputs import FinishReason
from paged_backend.sampling_params import SamplingParams

if TYPE_CHECKING:
    from starlette.requests import Request

_PICKLE = "application/vnd.bentoml+pickle"
"""How services of one server talk to each other; BentoML refuses it from outside."""


class NativeRequest(bentoml.IODescriptor):  # type: ignore[misc]  # it ships no types
    """A body of the native API. Types are exact, and unknown fields are errors."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Self:
        """Reads a body, as JSON whatever its Content-Type says.

        A wrong one gets its answer here: BentoML would log each with a traceback and with what the client sent.
        The method is called all the same, with nothing in the fields, and has to look.
        """
        parsed: Self
        if serde.media_type == _PICKLE:
            parsed = await super().from_http_request(request, serde)
            return parsed
        try:
            parsed = cls.from_body(await request.body())
        except InvalidRequestError as error:
            exchange = CURRENT_EXCHANGE.get()
            assert exchange is not None, "the edge middleware is missing"
            exchange.refuse(error)
            parsed = cls.model_construct(**dict.fromkeys(cls.model_fields))
        return parsed

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Reads a body as the OpenAI routes read theirs; an empty one has no fields.

        Raises:
            InvalidRequestError: it is no JSON object, or a field is unknown or of a wrong type.
        """
        fields = decode_body(body)
        if not isinstance(fields, (dict, type(None))):
            raise InvalidRequestError("The body must be a JSON object.", param="body")
        try:
            parsed: Self = cls.model_validate(fields or {})
        except ValidationError as error:
            raise as_invalid_request(error, cls) from None
        return parsed


def as_invalid_request(error: ValidationError, kind: type[BaseModel]) -> InvalidRequestError:
    """Pydantic's first finding, in the words of the OpenAI routes."""
    finding = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in finding["loc"])
    if finding["type"] == "extra_forbidden" and len(finding["loc"]) == 1:
        message = unknown_name_message("request field", place, tuple(kind.model_fields))
        return InvalidRequestError(message, param=place)
    return InvalidRequestError(f"{place}: {finding['msg']}.", param=f"body.{place}")


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "user", "assistant"] = Field(description="Who says it.")
    content: str = Field(description="What is said.")


def _describe(schema: dict[str, Any]) -> None:
    """Puts what the engine's parameters, and the fields of all routes, say of themselves into a JSON schema."""
    known = {**attribute_help(SamplingRequest), **attribute_help(SamplingParams)}
    for name, field in schema["properties"].items():
        if name in known:  # a field that is ours alone describes itself
            field["description"] = known[name]
    schema["example"] = {"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0.0}


class GenerateRequest(NativeRequest, SamplingRequest):
    """What to generate from, and how. Give exactly one of `prompt`, `prompt_token_ids` and `messages`. What is left
    out, or null, is as the model's generation_config.json says, and then as in vLLM."""

    model_config = ConfigDict(json_schema_extra=_describe)

    prompt: str | None = Field(None, description="Text to continue.")
    prompt_token_ids: ListOf[int] | None = Field(None, description="Token ids to continue.")
    messages: ListOf[ChatMessage] | None = Field(
        None, description="A conversation to answer, rendered with the model's chat template."
    )
    max_tokens: int | None = Field(16, description="New tokens at most; null means as many as fit in the context.")
    logprobs: int | None = Field(
        None,
        description="Report that many most likely tokens per position (max_logprobs of them, at most), beside the "
        "sampled one; -1 for all.",
    )
    bad_words_token_ids: ListOf[ListOf[int]] | None = None
    skip_reading_prefix_cache: bool | None = None
    detokenize: bool | None = None

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _text_keys(cls, value: Any) -> Any:
        """Callers from Python may give numbers where JSON has texts."""
        return {str(key): bias for key, bias in value.items()} if isinstance(value, dict) else value

    def check(self, scheduling_policy: str) -> None:
        """Checks what no sampling parameter stands for.

        Raises:
            InvalidRequestError: fields contradict each other, or the server's configuration.
        """
        inputs = ("prompt", "prompt_token_ids", "messages")
        given = [name for name in inputs if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRequestError(
                f"Give exactly one of prompt, prompt_token_ids and messages, got {', '.join(given) or 'none'}.",
                param=given[1] if given else "prompt",
            )
        check_text(self.prompt, "prompt")
        check_scheduling(self, scheduling_policy)


class TokenLogprob(BaseModel):
    """One candidate at one position."""

    token_id: int
    token: str | None = Field(description="Its text alone.")
    logprob: float = Field(description="Natural logarithm of its probability.")
    rank: int = Field(description="1 is the most likely one.")


class GeneratedSample(BaseModel):
    """One sample."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    stop_reason: int | str | None = Field(description="The stop string or token id that ended it, if one did.")
    cumulative_logprob: float | None = None
    logprobs: list[list[TokenLogprob]] | None = Field(
        None, description="Per token: the sampled one first, then the others by rank."
    )


class GenerateResponse(bentoml.IODescriptor):  # type: ignore[misc]  # it ships no types
    """All samples of one request."""

    request_id: str
    outputs: list[GeneratedSample]
    num_prompt_tokens: int
    num_cached_tokens: int = Field(description="Prompt tokens that the prefix cache had.")
    prompt_logprobs: list[list[TokenLogprob] | None] | None = Field(
        None, description="Per token of the prompt, like a sample's, where they were asked for; null for the first."
    )


class AbortRequest(NativeRequest):
    """Which request to end."""

    request_id: str = Field(description="The id that it was given, or that its response shows.")
    model: str | None = Field(None, description="Its model; null where only one of the models has that id.")


class AbortResponse(bentoml.IODescriptor):  # type: ignore[misc]  # it ships no types
    """The abort was passed on; a request that has ended, or never was, is no error."""

    request_id: str
