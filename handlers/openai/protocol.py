"""The request bodies: their fields, which of them we have, and what a wrong one is answered with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from paged_backend.config import unknown_name_message
from paged_backend.errors import InvalidRequestError
from paged_backend.sampling_params import SamplingParams

MAX_LOGPROBS = 20
"""Most candidates per token that a request may ask for: OpenAI's and vLLM's own limit."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class RequestBody(BaseModel):
    """A JSON body. Types are exact ("16" is no integer), and unknown fields are errors."""

    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(RequestBody):
    """What a stream sends beside its tokens."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(RequestBody):
    """The fields that completions and chat have in common. None means that the client did not say."""

    model: str | None = None
    n: int | None = None
    best_of: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Annotated[list[str], BeforeValidator(_as_list)] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    priority: int = 0
    request_id: str | None = None
    cache_salt: str | None = None
    timeout_s: float | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False


class CompletionRequest(GenerationRequest):
    """Body of /v1/completions. `prompt` is checked where it is encoded."""

    prompt: Any
    echo: bool = False
    logprobs: int | None = None


class ChatRequest(GenerationRequest):
    """Body of /v1/chat/completions. `messages` are checked where they are rendered."""

    messages: Any
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeRequest(RequestBody):
    """Body of /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Any = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False


class DetokenizeRequest(RequestBody):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[int]


_HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "user",
    }
)
"""Published fields that change nothing about the answer: labels and hints. They are ignored."""

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "bad_words": ([],),
        "ec_transfer_params": (),
        "kv_transfer_params": (),
        "logprob_token_ids": ([],),
        "mm_payload": ("tensors",),
        "prompt_logprobs": (),
        "repetition_detection": (),
        "response_format": ({"type": "text"},),
        "return_mm_kwargs": (False,),
        "return_token_offsets": (False,),
        "return_weight_versions": (False,),
        "routed_experts_prompt_start": (0,),
        "spaces_between_special_tokens": (True,),
        "stream_interval": (1,),
        "structured_outputs": (),
        "thinking_token_budget": (),
        "vllm_xargs": ({},),
        "watermarking": (False,),
    }
)
"""Published fields that we do not have, each with the values (beside null) that ask for nothing."""

_UNSUPPORTED_COMPLETION = MappingProxyType({**_UNSUPPORTED, "prompt_embeds": (), "suffix": ("",)})

_UNSUPPORTED_CHAT = MappingProxyType(
    {
        **_UNSUPPORTED,
        "audio": (),
        "chat_template": (),
        "documents": ([],),
        "echo": (False,),
        "function_call": ("none",),
        "functions": ([],),
        "include_reasoning": (True,),
        "media_io_kwargs": ({},),
        "mm_processor_kwargs": ({},),
        "modalities": (["text"],),
        "reasoning_effort": (),
        "return_prompt_text": (False,),
        "tool_choice": ("none",),
        "tools": ([],),
        "verbosity": ("medium",),
        "web_search_options": (),
    }
)

_NOT_PASSED_ON = MappingProxyType({CompletionRequest: _UNSUPPORTED_COMPLETION, ChatRequest: _UNSUPPORTED_CHAT})

_Body = TypeVar("_Body", bound=RequestBody)


def parse_body(kind: type[_Body], body: Mapping[str, Any]) -> _Body:
    """Checks a body's fields and types.

    Null means "not given" everywhere.

    Raises:
        InvalidRequestError: a field is unknown, not supported, missing, or of a wrong type (`param` is then
            "body.FIELD").
    """
    unsupported: Mapping[str, tuple[Any, ...]] = _NOT_PASSED_ON.get(kind, {})
    given = {}
    for name, value in body.items():
        if value is None or name in _HARMLESS:
            continue
        if name in unsupported:
            if not any(_same(value, nothing) for nothing in unsupported[name]):
                raise InvalidRequestError(f"{name} is not supported by this server: leave it out.", param=name)
            continue
        given[name] = value
    _check_names(kind, body, (*kind.model_fields, *_HARMLESS, *unsupported))
    options = given.get("stream_options")
    if isinstance(options, dict) and "stream_options" in kind.model_fields:
        given["stream_options"] = {name: value for name, value in options.items() if value is not None}
        _check_names(StreamOptions, options, tuple(StreamOptions.model_fields), prefix="stream_options.")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _translate(error) from None


def sampling_params(
    request: GenerationRequest, *, max_tokens: int, logprobs: int | None, detokenize: bool
) -> SamplingParams:
    """What the engine is asked for.

    Args:
        max_tokens: most new tokens; the caller knows the room that the prompt leaves.
        logprobs: candidates per token, or None.
        detokenize: False where the deployment has no tokenizer.

    Raises:
        InvalidRequestError: a value is out of range; `param` is the request's field.
    """
    given = {name: value for name in _SAMPLING_FIELDS if (value := getattr(request, name)) is not None}
    if request.logit_bias is not None:
        given["logit_bias"] = _token_biases(request.logit_bias)
    check_logprobs(logprobs)
    params = SamplingParams(**given, max_tokens=max_tokens, logprobs=logprobs, detokenize=detokenize)
    if request.stream:
        check_streamable(params)
    return params


_SAMPLING_FIELDS = (
    "n",
    "best_of",
    "use_beam_search",
    "length_penalty",
    "early_stopping",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "allowed_token_ids",
    "skip_special_tokens",
)


def check_generation(request: GenerationRequest, scheduling_policy: str) -> None:
    """Checks the fields that no sampling parameter stands for.

    Raises:
        InvalidRequestError: one contradicts another, or the server's configuration.
    """
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("stream_options needs stream: true.", param="stream_options")
    check_scheduling(
        scheduling_policy,
        priority=request.priority,
        request_id=request.request_id,
        cache_salt=request.cache_salt,
        stop=request.stop,
    )
    if request.truncation_side not in (None, "left", "right"):
        raise InvalidRequestError(
            f"truncation_side must be left or right, got {request.truncation_side!r}.",
            param="truncation_side",
        )


def check_scheduling(
    scheduling_policy: str,
    *,
    priority: int,
    request_id: str | None,
    cache_salt: str | None,
    stop: Sequence[str] | None,
) -> None:
    """Checks the fields that every generating route has, OpenAI's or a host's own.

    Raises:
        InvalidRequestError: one is out of range, or contradicts the server's configuration.
    """
    if priority != 0 and scheduling_policy != "priority":
        raise InvalidRequestError(
            f"priority needs a server with scheduling_policy: priority; here it is {scheduling_policy}.",
            param="priority",
        )
    if not -(2**63) <= priority < 2**63:
        raise InvalidRequestError("priority must be a signed 64-bit integer.", param="priority")
    for name, value, longest in (("request_id", request_id, 256), ("cache_salt", cache_salt, 1024)):
        if value is not None and not 1 <= len(value) <= longest:
            raise InvalidRequestError(f"{name} must have 1 to {longest} characters.", param=name)
        check_text(value, name)
    if request_id is not None and not request_id.isprintable():
        raise InvalidRequestError("request_id must be printable.", param="request_id")
    for text in stop or ():
        check_text(text, "stop")


def check_streamable(params: SamplingParams) -> None:
    """Refuses to stream what is known at the end only, as vLLM does.

    Raises:
        InvalidRequestError: it is a beam search, or asks for the best of more samples than it wants.
    """
    if params.chooses_at_end:
        what = "beam search" if params.use_beam_search else "best_of above n"
        raise InvalidRequestError(
            f"{what} chooses its outputs at the end, so it cannot be streamed: leave stream out.", param="stream"
        )


def check_logprobs(logprobs: int | None) -> None:
    """Bounds the candidates per token.

    Raises:
        InvalidRequestError: they are out of range.
    """
    if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
        raise InvalidRequestError(f"logprobs must be in 0..{MAX_LOGPROBS}, got {logprobs}.", param="logprobs")


def check_text(value: str | None, param: str) -> None:
    """Refuses a lone surrogate: JSON can spell one, and no tokenizer can read it.

    Raises:
        InvalidRequestError: there is one.
    """
    if value is None or value.isascii():
        return
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{param} holds half a character (the surrogate U+{ord(value[error.start]):04X} alone).",
            param=param,
        ) from None


def _same(value: Any, nothing: Any) -> bool:
    """Equality in which true is not 1: JSON's types matter."""
    return value == nothing and isinstance(value, bool) == isinstance(nothing, bool)


def _check_names(kind: type[RequestBody], body: Mapping[str, Any], known: tuple[str, ...], *, prefix: str = "") -> None:
    for name in body:
        if name not in known:
            raise InvalidRequestError(unknown_name_message("request field", str(name), known), param=f"{prefix}{name}")


def _token_biases(biases: Mapping[str, float]) -> dict[int, float]:
    """Biases by token id: JSON's keys are strings."""
    result = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdigit() and len(key) < 20):
            raise InvalidRequestError(f"logit_bias keys must be token ids, got {key!r}.", param="logit_bias")
        result[int(key)] = bias
    return result


def _translate(error: ValidationError) -> InvalidRequestError:
    """Pydantic's complaint in our words: one sentence per field, the first field as `param`."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    places = [".".join(str(part) for part in detail["loc"]) for detail in details]
    shown = [f"{place}: {detail['msg']}" for place, detail in zip(places, details, strict=True)][:3]
    return InvalidRequestError("; ".join(shown) + ".", param=f"body.{places[0]}")
