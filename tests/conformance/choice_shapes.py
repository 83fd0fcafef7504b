"""What completions and the chat's answers must look like."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.conformance.case import CHAT, COMPLETIONS, MODEL
from tests.conformance.exchange import Exchange
from tests.conformance.reply import comparable, text_of

_ID_PREFIXES = {COMPLETIONS: "cmpl-", CHAT: "chatcmpl-"}
_KINDS = {COMPLETIONS: ("text_completion", "text_completion"), CHAT: ("chat.completion", "chat.completion.chunk")}
_TYPES: dict[str, tuple[Any, Any]] = {
    COMPLETIONS: (Completion, Completion),
    CHAT: (ChatCompletion, ChatCompletionChunk),
}


def num_prompts(body: Mapping[str, Any]) -> int:
    """How many prompts a completion's body holds; a conversation is one."""
    prompt = body.get("prompt")
    return len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], (str, list)) else 1


def check(exchange: Exchange) -> None:
    """The form of a completion, or of a chat's."""
    body = exchange.body
    assert exchange.reply.streamed == bool(body.get("stream"))
    answer = exchange.answer
    _check_head(answer, exchange, _KINDS[exchange.path][exchange.reply.streamed])
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == list(range((body.get("n") or 1) * num_prompts(body)))
    for choice in choices:
        assert choice["finish_reason"] in _reasons(body), choice
        if exchange.path == CHAT:
            assert choice["message"]["role"] == _role(body)
        _check_logprobs(exchange, choice)
        assert ("token_ids" in choice) == bool(body.get("return_token_ids"))
    if exchange.reply.streamed:
        _check_stream(exchange, answer)
    else:
        if exchange.path == COMPLETIONS or _role(body) == "assistant":
            _TYPES[exchange.path][0].model_validate(_as_openai(answer, bool(body.get("echo"))))
        _check_usage(answer["usage"], exchange)


def _check_head(answer: Mapping[str, Any], exchange: Exchange, kind: str) -> None:
    prefix, own = _ID_PREFIXES[exchange.path], exchange.body.get("request_id")
    assert re.fullmatch(re.escape(prefix + own) if own else prefix + "[0-9a-f]{32}", answer["id"])
    assert answer["object"] == kind
    assert abs(answer["created"] - time.time()) < 3600
    assert answer["model"] == (exchange.body.get("model") or MODEL)


def _check_stream(exchange: Exchange, answer: Mapping[str, Any]) -> None:
    """A stream says what the whole answer says, in chunks of one response."""
    body, chunks = exchange.body, exchange.reply.chunks
    for chunk in chunks:
        if exchange.path == COMPLETIONS:  # OpenAI has one type for both, in which every choice has ended
            chunk = {**chunk, "choices": [{**one, "finish_reason": "stop"} for one in chunk["choices"]]}
        _TYPES[exchange.path][1].model_validate(_as_openai(chunk, bool(body.get("echo"))))
    options = body.get("stream_options") or {}
    with_usage = [chunk for chunk in chunks if chunk.get("usage") is not None]
    if options.get("continuous_usage_stats"):
        assert with_usage == chunks
    else:
        assert with_usage == (chunks[-1:] if options.get("include_usage") else [])
    # OpenAI: with include_usage "all other chunks will also include a usage field, but with a null value".
    assert all("usage" in chunk for chunk in chunks) or not options.get("include_usage")
    if options.get("include_usage"):
        assert chunks[-1]["choices"] == []
        chunks = chunks[:-1]
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    if exchange.path == CHAT:
        begun: set[int] = set()
        for choice in (chunk["choices"][0] for chunk in chunks):
            assert choice["delta"].get("role") == (None if choice["index"] in begun else _role(body)), choice
            begun.add(choice["index"])
    whole = exchange.asked(stream=None, stream_options=None).answer
    assert comparable(answer["choices"]) == comparable(whole["choices"])
    if options.get("include_usage"):
        _check_usage(answer["usage"], exchange)
        assert comparable(answer["usage"]) == comparable(whole["usage"])


def _reasons(body: Mapping[str, Any]) -> tuple[str, ...]:
    """OpenAI's reasons, and vLLM's one where it was asked for."""
    return (
        "stop",
        "length",
        *(("tool_calls",) if body.get("tools") else ()),
        *(("repetition",) if body.get("repetition_detection") else ()),
    )


def _as_openai(answer: Mapping[str, Any], echo: bool) -> dict[str, Any]:
    """As OpenAI's types take it: they know neither vLLM's reason nor that a prompt's first token has no likelihood."""
    choices = []
    for choice in answer["choices"]:
        changes: dict[str, Any] = {"logprobs": None} if echo else {}
        if choice["finish_reason"] == "repetition":
            changes["finish_reason"] = "stop"
        choices.append({**choice, **changes})
    return {**answer, "choices": choices}


def _role(body: Mapping[str, Any]) -> str:
    """Who speaks: the assistant, or as in vLLM, where the template opens no message, who spoke last."""
    return "assistant" if body.get("add_generation_prompt") is not False else body["messages"][-1]["role"]


def _check_usage(usage: Mapping[str, Any], exchange: Exchange) -> None:
    body = exchange.body
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    most = body.get("max_completion_tokens") or body.get("max_tokens") or (16 if exchange.path == COMPLETIONS else None)
    num_samples = max(body.get("best_of") or 1, body.get("n") or 1) * num_prompts(body)
    if most is not None:
        assert usage["completion_tokens"] <= most * num_samples
    if body.get("return_token_ids") and "best_of" not in body:
        answer = exchange.answer
        assert usage["completion_tokens"] == sum(len(choice["token_ids"]) for choice in answer["choices"])
        # A conversation has one prompt; of a completion, every sample tells its prompt's.
        prompts = [one["prompt_token_ids"] for one in (answer, *answer["choices"]) if one.get("prompt_token_ids")]
        assert usage["prompt_tokens"] == sum(len(ids) for ids in prompts[:: body.get("n") or 1])


def _check_logprobs(exchange: Exchange, choice: Mapping[str, Any]) -> None:
    body = exchange.body
    asked = body.get("logprobs")
    if asked is None or asked is False:
        assert choice.get("logprobs") is None
        return
    logprobs = choice["logprobs"]
    if exchange.path == CHAT:
        num_top = None if body.get("logprob_token_ids") else body.get("top_logprobs") or 0
        _check_chat_logprobs(choice, logprobs["content"], num_top, _named(body))
        return
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert len({len(column) for column in logprobs.values()}) == 1
    most = max(asked, len(body.get("logprob_token_ids") or ()))
    for number, (token, value, top) in enumerate(
        zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    ):
        if value is None:  # nothing is known of a prompt's first token
            assert number == 0 and body.get("echo") and top is None
            continue
        # Two candidates with the same text, such as two halves of a character, have one entry.
        assert value <= 0 and 1 <= len(top) <= most + 1 and top[token] >= value
        assert max(top.values()) <= 0
    if not _named(body):
        assert logprobs["text_offset"] == _offsets(logprobs["tokens"])
        _check_texts(choice, logprobs["tokens"])


def _check_chat_logprobs(
    choice: Mapping[str, Any], content: list[dict[str, Any]], num_top: int | None, named: bool
) -> None:
    for item in content:
        assert set(item) == {"token", "logprob", "bytes", "top_logprobs"}
        assert item["logprob"] <= 0 and num_top in (None, len(item["top_logprobs"]))
        values = [top["logprob"] for top in item["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert named or all(bytes(one["bytes"]).decode() == one["token"] for one in (item, *item["top_logprobs"]))
    if not named:
        _check_texts(choice, [item["token"] for item in content])


def _named(body: Mapping[str, Any]) -> bool:
    """Whether tokens are called by their ids."""
    return bool(body.get("return_tokens_as_token_ids"))


def _check_texts(choice: Mapping[str, Any], tokens: list[str]) -> None:
    """The tokens' texts give the choice's text; what ended it may be left out of that."""
    if any("\ufffd" in token for token in tokens):
        return  # parts of a character, which are no text by themselves
    assert "".join(tokens).startswith(text_of(choice)), (tokens, text_of(choice))


def _offsets(tokens: list[str]) -> list[int]:
    return [sum(len(token) for token in tokens[:number]) for number in range(len(tokens))]
