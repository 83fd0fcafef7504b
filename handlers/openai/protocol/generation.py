"""What all generating routes have in common: the fields, and what the engine is asked for by them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import WithJsonSchema, field_validator

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.engine_port import EnginePort
from paged_backend.handlers.openai.protocol.base import (
    ListOf,
    ObjectOf,
    Refusal,
    RequestBody,
    StreamOptions,
    check_text,
)
from paged_backend.handlers.openai.protocol.structured_outputs import FORMAT_SCHEMA, structured_outputs
from paged_backend.sampling_params import SamplingParams


class SamplingRequest(RequestBody):
    """What to sample, and when: the fields of every generating route, OpenAI's or a host's own. None means that the
    client did not say. What the engine's `SamplingParams` has under the same name, that explains.

    Attributes:
        model: one of the served models' names; None means the first.
        response_format: what the output must look like, in OpenAI's form.
        add_special_tokens: let the tokenizer add its own tokens (BOS) to a text.
        truncate_prompt_tokens: keep so many tokens of the prompt; -1 keeps what fits.
        truncation_side: "left" cuts the prompt's beginning off, "right" its end.
        priority: lower goes first, under scheduling_policy: priority.
        request_id: the client's name for the request, to end it by; None makes one.
        cache_salt: prefixes are shared only among requests of the same API key and the same salt.
        timeout_s: seconds in which it must be over; then it ends with what it has. None: the server's default.
    """

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
    stop: ListOf[str] | None = None
    stop_token_ids: ListOf[int] | None = None
    include_stop_str_in_output: bool | None = None
    repetition_detection: ObjectOf[int] | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: ListOf[int] | None = None
    logit_bias: ObjectOf[float] | None = None
    allowed_token_ids: ListOf[int] | None = None
    bad_words: ListOf[str] | None = None
    logits_processors: ListOf[str | dict[str, Any]] | None = None
    response_format: Annotated[dict[str, Any] | None, WithJsonSchema(FORMAT_SCHEMA)] = None
    structured_outputs: dict[str, Any] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None
    stream_interval: int | None = None
    priority: int = 0
    request_id: str | None = None
    cache_salt: str | None = None
    timeout_s: float | None = None

    @field_validator("stop", mode="before", json_schema_input_type=str | list[str] | None)
    @classmethod
    def _lone_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class GenerationRequest(SamplingRequest):
    """The fields that completions and chat have in common."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    return_receipt: bool = False
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False

    unsupported = MappingProxyType(
        {
            "ec_transfer_params": Refusal("it moves encoders' caches between servers, and this is a server by itself"),
            "kv_transfer_params": Refusal("it moves KV caches between servers, and this is a server by itself"),
            "mm_payload": Refusal("this model reads and writes text only", ("tensors",)),
            "return_mm_kwargs": Refusal("this model reads and writes text only", (False,)),
            "return_token_offsets": Refusal("it is for vLLM's routes that render without generating", (False,)),
            "return_weight_versions": Refusal("weights stay as they were loaded", (False,)),
            "routed_experts_prompt_start": Refusal("no model with routed experts is served", (0,)),
            "vllm_xargs": Refusal("a logits processor's arguments go with its name in logits_processors", ({},)),
            "watermarking": Refusal("outputs are not watermarked", (False,)),
        }
    )


def sampling_params(
    request: SamplingRequest,
    engine: EnginePort,
    *,
    max_tokens: int,
    logprobs: int | None,
    streams: bool,
    logprobs_field: str = "logprobs",
    echoed: bool = False,
    detokenize: bool = True,
) -> SamplingParams:
    """What the engine is asked for. What the request leaves out is as the model's generation_config.json says.

    Args:
        max_tokens: most new tokens; the caller knows the room that the prompt leaves. 0 only where something of the
            prompt is asked for.
        logprobs: candidates per token, or None.
        streams: whether the answer is to come piece by piece.
        logprobs_field: the request's field that says so.
        echoed: whether the response repeats the prompt, with log-probabilities if the output has them.
        detokenize: whether text is wanted, where the engine has a tokenizer.

    Raises:
        InvalidRequestError: a value is out of range; `param` is the request's field.
    """
    defaults = {} if request.use_beam_search else dict(engine.default_sampling_params)
    defaults.pop("max_tokens", None)  # the caller has looked at it
    given = {name: value for name in _sampling_fields(type(request)) if (value := getattr(request, name)) is not None}
    if request.logit_bias is not None:
        given["logit_bias"] = _token_biases(request.logit_bias)
    most = engine.config.model.max_logprobs
    check_count(logprobs_field, logprobs, most)
    check_count("prompt_logprobs", request.prompt_logprobs, most)
    if request.prompt_logprobs is not None and streams:
        raise InvalidRequestError(
            "prompt_logprobs are not there in streams: leave stream out, or use echo with logprobs.",
            param="prompt_logprobs",
        )
    scored = [count for count in (request.prompt_logprobs, logprobs if echoed else None) if count is not None]
    if max_tokens < 1 and not (max_tokens == 0 and (scored or echoed)):
        raise InvalidRequestError(
            f"max_tokens must be at least 1, or 0 with echo or prompt_logprobs, got {max_tokens}.", param="max_tokens"
        )
    if request.logprob_token_ids and logprobs is None:
        raise InvalidRequestError(
            "logprob_token_ids says of which tokens, and logprobs that they are wanted: set that, too.",
            param="logprob_token_ids",
        )
    params = SamplingParams(
        **{**defaults, **given},
        max_tokens=max_tokens,
        logprobs=None if request.logprob_token_ids else logprobs,
        prompt_logprobs=None if not scored else -1 if -1 in scored else max(scored),
        structured_outputs=structured_outputs(request.response_format, request.structured_outputs),
        detokenize=detokenize and engine.tokenizer is not None,
    )
    if streams:
        check_streamable(params)
    return params


def bounded_max_tokens(engine: EnginePort, max_tokens: int) -> int:
    """What is left of max_tokens where the model's generation_config.json, or its operator, sets a bound for all."""
    return min(max_tokens, int(engine.default_sampling_params.get("max_tokens", max_tokens)))


_CHECKED = frozenset({"max_tokens", "logprobs", "prompt_logprobs", "logit_bias", "structured_outputs", "detokenize"})


@functools.cache
def _sampling_fields(kind: type[SamplingRequest]) -> tuple[str, ...]:
    """A body's fields that are parameters of the engine's, under their names and as they are."""
    names = kind.model_fields.keys() - _CHECKED
    return tuple(field.name for field in fields(SamplingParams) if field.name in names)


def check_generation(request: GenerationRequest, scheduling_policy: str) -> None:
    """Checks the fields that no sampling parameter stands for.

    Raises:
        InvalidRequestError: one contradicts another, or the server's configuration.
    """
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("stream_options needs stream: true.", param="stream_options")
    check_scheduling(request, scheduling_policy)


def check_scheduling(request: SamplingRequest, scheduling_policy: str) -> None:
    """Checks the fields of every generating route that no sampling parameter stands for, OpenAI's or a host's own.

    Raises:
        InvalidRequestError: one is out of range, or contradicts the server's configuration.
    """
    priority, request_id = request.priority, request.request_id
    if priority != 0 and scheduling_policy != "priority":
        raise InvalidRequestError(
            f"priority needs a server with scheduling_policy: priority; here it is {scheduling_policy}.",
            param="priority",
        )
    if not -(2**63) <= priority < 2**63:
        raise InvalidRequestError("priority must be a signed 64-bit integer.", param="priority")
    for name, value, longest in (("request_id", request_id, 256), ("cache_salt", request.cache_salt, 1024)):
        if value is not None and not 1 <= len(value) <= longest:
            raise InvalidRequestError(f"{name} must have 1 to {longest} characters.", param=name)
        check_text(value, name)
    if request_id is not None and not request_id.isprintable():
        raise InvalidRequestError("request_id must be printable.", param="request_id")
    for text in request.stop or ():
        check_text(text, "stop")
    if request.truncation_side not in (None, "left", "right"):
        raise InvalidRequestError(
            f"truncation_side must be left or right, got {request.truncation_side!r}.", param="truncation_side"
        )


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


def check_count(name: str, count: int | None, most: int) -> None:
    """Bounds the candidates per token, of which -1 means all.

    Args:
        name: the request's field.
        most: max_logprobs; -1 for no bound.

    Raises:
        InvalidRequestError: they are out of range.
    """
    if count is None or (most == -1 and count >= -1) or 0 <= count <= most:
        return
    bounds = "0 or more, or -1 for all" if most == -1 else f"in 0..{most}"
    raise InvalidRequestError(f"{name} must be {bounds}, got {count}.", param=name)


def _token_biases(biases: Mapping[str, float]) -> dict[int, float]:
    """Biases by token id: JSON's keys are strings."""
    result = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdigit() and len(key) < 20):
            raise InvalidRequestError(f"logit_bias keys must be token ids, got {key!r}.", param="logit_bias")
        result[int(key)] = bias
    return result
