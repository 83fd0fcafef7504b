"""From a body's `prompt` to token ids, and what makes any prompt fit the model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.engine_port import EnginePort, TokenizerPort
from paged_backend.handlers.openai.protocol.base import check_text
from paged_backend.handlers.openai.protocol.generation import SamplingRequest

INLINE_CHARACTERS = 4_000
"""Longer texts are encoded in a thread: it takes milliseconds, in which every stream would stand still."""


def count_prompts(value: Any) -> int:
    """How many prompts a completion's `prompt` seems to hold, told from its first element alone."""
    several = isinstance(value, list) and bool(value) and isinstance(value[0], (str, list))
    return len(value) if several else 1


def parse_prompts(value: Any, *, max_length: int | None) -> list[str | list[int]]:
    """The prompts of a completion: text, texts, token ids, or lists of token ids.

    Args:
        max_length: most token ids in a prompt, which a longer one is refused for before any of them is looked at;
            None where the prompt will be truncated.

    Raises:
        InvalidRequestError: it is none of these, empty, or too long.
    """
    if isinstance(value, list) and value and isinstance(value[0], (str, list)):
        for part in value:
            check_length(part, max_length, "prompt")
    else:
        check_length(value, max_length, "prompt")
    if isinstance(value, str):
        check_text(value, "prompt")
        return [value]
    if isinstance(value, list) and not value:
        raise InvalidRequestError("prompt must not be empty.", param="prompt")
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        for text in value:
            check_text(text, "prompt")
        return list(value)
    if _are_token_ids(value):
        return [value]
    if isinstance(value, list) and all(_are_token_ids(part) for part in value):
        return list(value)
    raise InvalidRequestError(
        "prompt: must be a string, a list of strings, a list of token ids, or a list of lists of token ids.",
        param="body.prompt",
    )


def check_length(value: Any, max_length: int | None, prompt_field: str) -> None:
    """Refuses a list that is longer than max_length; None allows every length.

    Raises:
        InvalidRequestError: it is.
    """
    if max_length is not None and isinstance(value, list) and len(value) > max_length:
        raise too_long(f"{len(value)} input tokens", max_length, prompt_field)


async def encode_prompts(
    engine: EnginePort,
    prompts: Sequence[str | list[int]],
    add_special_tokens: bool,
    *,
    must_fit: bool,
) -> list[list[int]]:
    """Token ids of each prompt, without holding up the event loop.

    Args:
        must_fit: refuse a text that is too long for the model whatever its tokens are, before it is encoded.

    Raises:
        InvalidRequestError: a prompt is hopeless, or is text and the deployment has no tokenizer.
    """
    num_characters = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
    if not num_characters and not any(isinstance(prompt, str) for prompt in prompts):
        return [prompt for prompt in prompts if isinstance(prompt, list)]
    tokenizer = require_tokenizer(engine, "prompt")
    if must_fit:
        for prompt in prompts:
            if isinstance(prompt, str):
                check_hope(prompt, tokenizer, engine.max_model_len, "prompt")

    def encode() -> list[list[int]]:
        return [
            tokenizer.encode(prompt, add_special_tokens) if isinstance(prompt, str) else prompt for prompt in prompts
        ]

    return await asyncio.to_thread(encode) if num_characters > INLINE_CHARACTERS else encode()


def truncate(
    token_ids: list[int], request: SamplingRequest, *, max_model_len: int, max_tokens: int | None
) -> list[int]:
    """Applies truncate_prompt_tokens: keeps that many tokens of the prompt's end, or of its beginning.

    Args:
        max_tokens: new tokens that must fit beside the prompt where truncate_prompt_tokens is -1.

    Raises:
        InvalidRequestError: the bound is 0 or more than the model's context.
    """
    bound = request.truncate_prompt_tokens
    if bound is None:
        return token_ids
    if bound == -1:
        bound = max(1, max_model_len - (max_tokens or 1))
    if not 1 <= bound <= max_model_len:
        raise InvalidRequestError(
            f"truncate_prompt_tokens must be in 1..{max_model_len} (the model's context length), or -1 "
            f"for what fits, got {bound}.",
            param="truncate_prompt_tokens",
        )
    if request.truncation_side == "right":
        return token_ids[:bound]
    return token_ids[-bound:]


def room_for(
    token_ids: Sequence[int],
    max_tokens: int | None,
    *,
    max_model_len: int,
    prompt_field: str,
    max_tokens_field: str,
) -> int:
    """How many new tokens a request gets: what it asked for, or all that fit.

    Args:
        max_tokens: None asks for all that fit; 0 for nothing but what is known of the prompt.
        prompt_field, max_tokens_field: the request's fields at fault where it does not fit.

    Raises:
        InvalidRequestError: the prompt is empty, or leaves no room for as many tokens as were asked for.
    """
    num_tokens = len(token_ids)
    if not num_tokens:
        raise InvalidRequestError(f"{prompt_field} must not be empty.", param=prompt_field)
    if num_tokens > max_model_len or (num_tokens == max_model_len and max_tokens != 0):
        raise too_long(f"{num_tokens} input tokens", max_model_len, prompt_field)
    if max_tokens is None:
        return max_model_len - num_tokens
    if num_tokens + max_tokens > max_model_len:
        raise InvalidRequestError(
            f"{_limit(max_model_len)} However, you requested {num_tokens + max_tokens} tokens ({num_tokens} in the "
            f"{prompt_field}, {max_tokens} in the completion). Please reduce the length of the "
            f"{prompt_field} or completion.",
            param=max_tokens_field,
        )
    return max_tokens


def require_tokenizer(engine: EnginePort, param: str) -> TokenizerPort:
    """The engine's tokenizer.

    Raises:
        InvalidRequestError: the deployment runs without one.
    """
    if engine.tokenizer is None:
        raise InvalidRequestError("This server runs without a tokenizer: send token ids as the prompt.", param=param)
    return engine.tokenizer


def _limit(max_model_len: int) -> str:
    return f"This model's maximum context length is {max_model_len} tokens."


def too_long(found: str, max_model_len: int, prompt_field: str) -> InvalidRequestError:
    """The error for a prompt that leaves no room; `found` says how much there is."""
    return InvalidRequestError(
        f"{_limit(max_model_len)} However, your request has {found}, which leaves no room for an "
        f"output token. Please reduce the length of the {prompt_field}.",
        param=prompt_field,
    )


def check_hope(text: str, tokenizer: TokenizerPort, max_model_len: int, prompt_field: str) -> None:
    """Refuses a text that has too many tokens whatever they are: encoding it may take seconds.

    Raises:
        InvalidRequestError: it has.
    """
    longest = tokenizer.longest_token_characters
    if longest is not None and len(text) > max_model_len * longest:
        raise too_long(f"at least {-(-len(text) // longest)} input tokens", max_model_len, prompt_field)


def _are_token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)
