"""What the native API takes and gives, as pydantic types: BentoML draws its Swagger page from them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import bentoml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from paged_backend.config import unknown_name_message
from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.bento.edge import CURRENT_EXCHANGE
from paged_backend.handlers.openai.protocol.base import ListOf, check_text
from paged_backend.handlers.openai.protocol.generation import check_scheduling
from paged_backend.outputs import FinishReason
from paged_backend.sampling_params import SamplingParams

if TYPE_CHECKING:
    from starlette.requests import Request

_PICKLE = "application/vnd.bentoml+pickle"
"""How services of one server talk to each other; BentoML refuses it from outside."""

_DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(SamplingParams)}


class NativeRequest(bentoml.IODescriptor):  # type: ignore[misc]  # it ships no types
    """A body of the native API. Types are exact, and unknown fields are errors."""

    model_config = ConfigDict(strict=True, extra="forbid")

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
            parsed = cls.model_validate_json(await request.body() or b"{}")
        except ValidationError as error:
            exchange = CURRENT_EXCHANGE.get()
            assert exchange is not None, "the edge middleware is missing"
            exchange.refuse(as_invalid_request(error, cls))
            parsed = cls.model_construct(**dict.fromkeys(cls.model_fields))
        return parsed


def as_invalid_request(error: ValidationError, kind: type[BaseModel]) -> InvalidRequestError:
    """Pydantic's first finding, in the words of the OpenAI routes."""
    finding = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in finding["loc"])
    if finding["type"] == "extra_forbidden" and len(finding["loc"]) == 1:
        message = unknown_name_message("request field", place, tuple(kind.model_fields))
        return InvalidRequestError(message, param=place)
    if not place:
        return InvalidRequestError(f"The body must be a JSON object: {finding['msg']}.", param="body")
    return InvalidRequestError(f"{place}: {finding['msg']}.", param=f"body.{place}")


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "user", "assistant"] = Field(description="Who says it.")
    content: str = Field(description="What is said.")


class GenerateRequest(NativeRequest):
    """What to generate from, and how. Give exactly one of `prompt`, `prompt_token_ids` and `messages`."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0.0}},
    )

    model: str | None = Field(None, description="One of the served models' names; null means the first.")
    prompt: str | None = Field(None, description="Text to continue.")
    prompt_token_ids: ListOf[int] | None = Field(None, description="Token ids to continue.")
    messages: ListOf[ChatMessage] | None = Field(
        None, description="A conversation to answer, rendered with the model's chat template."
    )
    add_special_tokens: bool = Field(True, description="Let the tokenizer add its own tokens (BOS) to `prompt`.")
    max_tokens: int | None = Field(
        _DEFAULTS["max_tokens"], description="New tokens at most; null means as many as fit in the context."
    )
    min_tokens: int = Field(
        _DEFAULTS["min_tokens"], description="No end of sequence and no stop token before that many tokens."
    )
    n: int = Field(_DEFAULTS["n"], description="Samples of the same prompt.")
    best_of: int | None = Field(
        None, description="As many samples or beams run, and the n best are returned; null runs n. Not with streams."
    )
    use_beam_search: bool = Field(
        _DEFAULTS["use_beam_search"],
        description="Search for the likeliest continuations instead of drawing. Not with streams.",
    )
    length_penalty: float = Field(
        _DEFAULTS["length_penalty"], description="Above 0, a search favours long continuations, below 0 short ones."
    )
    early_stopping: bool | Literal["never"] = Field(
        _DEFAULTS["early_stopping"],
        description="Whether a search is over when best_of continuations have ended, or, if false, when no beam "
        'scores better than the worst of them; "never": when none can any more.',
    )
    temperature: float = Field(
        _DEFAULTS["temperature"],
        description="0 takes the most likely token; otherwise logits are divided by it.",
    )
    top_k: int = Field(_DEFAULTS["top_k"], description="Keep the k most likely tokens; 0 or -1 keeps all.")
    top_p: float = Field(
        _DEFAULTS["top_p"],
        description="Keep the smallest set of most likely tokens that reaches it, in (0, 1].",
    )
    min_p: float = Field(
        _DEFAULTS["min_p"],
        description="Drop tokens less likely than it times the most likely one, in [0, 1].",
    )
    repetition_penalty: float = Field(
        _DEFAULTS["repetition_penalty"],
        description="Above 1, tokens of prompt and output become less likely.",
    )
    presence_penalty: float = Field(
        _DEFAULTS["presence_penalty"], description="Taken once from tokens that the output has, in [-2, 2]."
    )
    frequency_penalty: float = Field(
        _DEFAULTS["frequency_penalty"], description="Taken per occurrence in the output, in [-2, 2]."
    )
    seed: int | None = Field(None, description="The same seed gives the same tokens; null lets the engine choose.")
    stop: ListOf[str] | str | None = Field(None, description="Up to 4 strings that end a sample.")
    stop_token_ids: ListOf[int] | None = Field(None, description="Token ids that end a sample, beside the model's own.")
    include_stop_str_in_output: bool = Field(
        _DEFAULTS["include_stop_str_in_output"], description="Keep the stop string in the text."
    )
    ignore_eos: bool = Field(_DEFAULTS["ignore_eos"], description="Go on past the end of sequence.")
    logprobs: int | None = Field(
        None,
        description="Report that many most likely tokens per position (max_logprobs of them, at most), beside the "
        "sampled one; -1 for all.",
    )
    logit_bias: dict[int, float] | None = Field(
        None, description="Added to the logits of these token ids, each in [-100, 100]."
    )
    allowed_token_ids: ListOf[int] | None = Field(None, description="If given, no other token can be sampled.")
    skip_special_tokens: bool = Field(
        _DEFAULTS["skip_special_tokens"], description="Leave special tokens out of the text."
    )
    request_id: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Your name for the request, for `abort`; null makes one.",
    )
    priority: int = Field(0, description="Lower goes first, under scheduling_policy: priority.")
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description="Prefixes are shared only among requests of the same API key and the same salt.",
    )
    timeout_s: float | None = Field(
        None, description="Seconds in which it must be over; then it ends with what it has. Null: the server's default."
    )

    def sampling_params(self, *, detokenize: bool) -> SamplingParams:
        """The engine's sampling parameters.

        Raises:
            InvalidRequestError: a value is out of range.
        """
        given = self.model_dump(include=_SAMPLING_FIELDS, exclude_none=True)
        # Null has a meaning of its own here: as many tokens as fit.
        return SamplingParams(**{**given, "max_tokens": self.max_tokens}, detokenize=detokenize)

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
        check_scheduling(
            scheduling_policy,
            priority=self.priority,
            request_id=self.request_id,
            cache_salt=self.cache_salt,
            stop=[self.stop] if isinstance(self.stop, str) else self.stop,
        )


_SAMPLING_FIELDS = frozenset(_DEFAULTS) & frozenset(GenerateRequest.model_fields)


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


class AbortRequest(NativeRequest):
    """Which request to end."""

    request_id: str = Field(description="The id that it was given, or that its response shows.")


class AbortResponse(bentoml.IODescriptor):  # type: ignore[misc]  # it ships no types
    """The abort was passed on; a request that has ended, or never was, is no error."""

    request_id: str
