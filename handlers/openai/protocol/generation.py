"""What completions and chat have in common: the fields, and what the engine is asked for by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.protocol.base import RequestBody, StreamOptions, check_text
from paged_backend.sampling_params import SamplingParams

MAX_LOGPROBS = 20
"""Most candidates per token that a request may ask for: OpenAI's and vLLM's own limit."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


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
    stop: Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])] | None = None
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
    return_receipt: bool = False
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False

    unsupported = MappingProxyType(
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


def _token_biases(biases: Mapping[str, float]) -> dict[int, float]:
    """Biases by token id: JSON's keys are strings."""
    result = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdigit() and len(key) < 20):
            raise InvalidRequestError(f"logit_bias keys must be token ids, got {key!r}.", param="logit_bias")
        result[int(key)] = bias
    return result
