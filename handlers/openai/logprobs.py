"""Log probabilities in OpenAI's two formats: the completions' columns and the chat's list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paged_backend.outputs import Logprob, PromptLogprobs, TokenLogprobs

_FLOOR = -9999.0
"""What stands for minus infinity, which JSON cannot hold (vLLM's value)."""


def completion_logprobs(
    token_ids: Sequence[int],
    candidates: PromptLogprobs,
    *,
    num_top: int | None,
    text_offset: int,
    as_token_ids: bool,
    first_text: str | None = None,
) -> tuple[dict[str, Any], int]:
    """The completions' format, and the text offset at which the next tokens begin.

    Args:
        candidates: one entry per token; None for a prompt's first token, of which nothing is known.
        num_top: most likely candidates to name per token; the sampled one comes in addition. None or -1 for all.
        text_offset: characters before the first of these tokens.
        as_token_ids: write tokens as "token_id:N" (return_tokens_as_token_ids).
        first_text: of that first token.
    """
    tokens: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for token_id, entry in zip(token_ids, candidates, strict=True):
        if entry is None:
            token = f"token_id:{token_id}" if as_token_ids or first_text is None else first_text
            values.append(None)
            tops.append(None)
        else:
            token = _token(token_id, entry[token_id], as_token_ids)
            values.append(_value(entry[token_id]))
            top: dict[str, float] = {}
            for other, logprob in _ranked(entry, num_top, token_id):
                # Two tokens can have the same text (parts of a character): the likelier one keeps the name.
                top.setdefault(_token(other, logprob, as_token_ids), _value(logprob))
            tops.append(top)
        tokens.append(token)
        offsets.append(text_offset)
        text_offset += len(token)
    columns = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
    return columns, text_offset


def chat_logprobs(
    token_ids: Sequence[int], candidates: Sequence[TokenLogprobs], *, num_top: int | None, as_token_ids: bool
) -> dict[str, Any]:
    """The chat's format; the arguments are those of `completion_logprobs`."""
    content = []
    for token_id, entry in zip(token_ids, candidates, strict=True):
        item = _chat_item(token_id, entry[token_id], as_token_ids)
        ranked = _ranked(entry, num_top, None)
        item["top_logprobs"] = [_chat_item(other, logprob, as_token_ids) for other, logprob in ranked]
        content.append(item)
    return {"content": content}


def prompt_logprobs_body(
    token_ids: Sequence[int], entries: PromptLogprobs, num_top: int
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's own form of a prompt's log probabilities: by token id, the num_top most likely candidates (-1 for all) and
    the prompt's token."""
    return [
        None
        if entry is None
        else {
            str(other): {
                "logprob": _value(logprob),
                "rank": logprob.rank,
                "decoded_token": logprob.decoded_token,
            }
            for other, logprob in _ranked(entry, num_top, token_id)
        }
        for token_id, entry in zip(token_ids, entries, strict=True)
    ]


def _chat_item(token_id: int, logprob: Logprob, as_token_ids: bool) -> dict[str, Any]:
    token = _token(token_id, logprob, as_token_ids)
    text = logprob.decoded_token
    utf8 = None if text is None else list(text.encode("utf-8", "replace"))
    return {"token": token, "logprob": _value(logprob), "bytes": utf8}


def _ranked(entry: TokenLogprobs, num_top: int | None, sampled: int | None) -> list[tuple[int, Logprob]]:
    """The num_top most likely candidates, and the sampled one where it is not among them and asked for."""
    ranked = sorted(entry.items(), key=lambda item: (item[1].rank, item[0]))
    top = ranked if num_top in (None, -1) else ranked[:num_top]
    if sampled is not None and all(token_id != sampled for token_id, _ in top):
        top = [*top, (sampled, entry[sampled])]
    return top


def _token(token_id: int, logprob: Logprob, as_token_ids: bool) -> str:
    if as_token_ids or logprob.decoded_token is None:
        return f"token_id:{token_id}"
    return logprob.decoded_token


def _value(logprob: Logprob) -> float:
    return max(logprob.logprob, _FLOOR)
