"""/tokenize and /detokenize: a client's way to count tokens as this model does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.engine_port import TokenizerPort
from paged_backend.handlers.openai.generation import ServingContext
from paged_backend.handlers.openai.messages import parse_messages
from paged_backend.handlers.openai.prompts import encode_prompts, parse_prompts, require_tokenizer
from paged_backend.handlers.openai.protocol.tokenization import DetokenizeRequest, TokenizeRequest
from paged_backend.handlers.openai.rendering import Rendering, render_messages
from paged_backend.handlers.openai.tools import parse_tools
from paged_backend.handlers.openai.wire import HttpResponse, json_response


async def tokenize(context: ServingContext, request: TokenizeRequest) -> HttpResponse:
    """Token ids of a prompt or of rendered messages.

    Raises:
        PagedBackendError: whatever refuses it.
    """
    context.model_name(request.model)
    engine = context.engine
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequestError("Give either prompt or messages.", param="prompt")
    if request.prompt is not None:
        add_special_tokens = request.add_special_tokens is not False
        prompts = parse_prompts(request.prompt, max_length=None)
        # Counting is what this route is for: a text that is too long for the model has a count too.
        (token_ids,) = await encode_prompts(engine, prompts, add_special_tokens, must_fit=False)
    else:
        tools = parse_tools(request.tools, None).tools
        messages = parse_messages(request.messages, max_messages=engine.max_model_len)
        rendered = await render_messages(engine, messages, Rendering.of(request, tools), must_fit=False)
        token_ids = rendered.token_ids
    token_strs = None
    if request.return_token_strs:
        token_strs = await asyncio.to_thread(_decode_each, require_tokenizer(engine, "return_token_strs"), token_ids)
    return json_response(
        {
            "count": len(token_ids),
            "max_model_len": engine.max_model_len,
            "tokens": token_ids,
            "token_strs": token_strs,
        }
    )


async def detokenize(context: ServingContext, request: DetokenizeRequest) -> HttpResponse:
    """Text of token ids, special tokens included.

    Raises:
        PagedBackendError: whatever refuses it.
    """
    context.model_name(request.model)
    tokenizer = require_tokenizer(context.engine, "tokens")
    for token_id in request.tokens:
        if not 0 <= token_id < tokenizer.vocab_size:
            raise InvalidRequestError(
                f"tokens holds {token_id}, outside the vocabulary of {tokenizer.vocab_size}.", param="tokens"
            )
    text = await asyncio.to_thread(tokenizer.decode, request.tokens, skip_special_tokens=False)
    return json_response({"prompt": text})


def _decode_each(tokenizer: TokenizerPort, token_ids: Sequence[int]) -> list[str]:
    return [tokenizer.decode([token_id], skip_special_tokens=False) for token_id in token_ids]
