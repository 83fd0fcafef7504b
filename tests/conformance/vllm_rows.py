"""Fields beyond OpenAI's: a prompt's log-probabilities, chosen candidates, banned words, repetition, receipts."""

from __future__ import annotations

from typing import Any

from tests.conformance.case import BOTH, CHAT, COMPLETIONS, PROMPT, accepted, refused, streamed, whole, wrong_types
from tests.conformance.checks import (
    differs_from,
    generated,
    names_candidates,
    no_tokens,
    same_as,
    same_values,
    says_as,
    scores_its_prompt,
    scores_like_prompt_logprobs,
    tells_what_it_took,
)

_ON_TEXT, _ON_CHAT = (COMPLETIONS,), (CHAT,)
_LATIN = "Grüße an alle."

_ECHO = [
    *accepted("logprobs", 0, scores_like_prompt_logprobs, echo=True, on=_ON_TEXT),
    *accepted("logprobs", 1, scores_like_prompt_logprobs, echo=True, on=_ON_TEXT),
    *accepted("logprobs", 5, scores_like_prompt_logprobs, echo=True, n=2, temperature=0.9, seed=3, on=_ON_TEXT),
    *accepted("logprobs", 20, scores_like_prompt_logprobs, echo=True, prompt=_LATIN, on=_ON_TEXT),
    *accepted("logprobs", 1, echo=True, prompt=["Once upon", "The fox"], on=_ON_TEXT),
    *accepted("logprobs", 1, echo=True, prompt=["Once upon", "The fox"], n=2, temperature=0.8, seed=1, on=_ON_TEXT),
    *accepted("logprobs", 1, scores_like_prompt_logprobs, echo=True, prompt=[100, 101, 102], on=_ON_TEXT),
    *accepted("logprobs", 1, scores_like_prompt_logprobs, echo=True, max_tokens=0, on=_ON_TEXT),
    *accepted("logprobs", 2, echo=True, return_tokens_as_token_ids=True, on=_ON_TEXT),
    *accepted("max_tokens", 0, echo=True, on=_ON_TEXT),
    *accepted("max_tokens", 0, echo=True, n=2, prompt=["One", "Two"], on=_ON_TEXT),
    *refused("max_tokens", 0),
    *whole(accepted("max_tokens", 0, scores_its_prompt, prompt_logprobs=2, on=_ON_TEXT)),
]

_PROMPT_LOGPROBS = [
    *(
        case
        for count in (0, 1, 5, 20)
        for case in whole(accepted("prompt_logprobs", count, scores_its_prompt, says_as(prompt_logprobs=None)))
    ),
    *whole(accepted("prompt_logprobs", 1, scores_its_prompt, n=2, on=BOTH)),
    *whole(accepted("prompt_logprobs", 1, scores_its_prompt, truncate_prompt_tokens=2, on=BOTH)),
    *whole(accepted("prompt_logprobs", 1, scores_its_prompt, prompt=["Once upon", "The fox"], on=_ON_TEXT)),
    *whole(accepted("prompt_logprobs", 1, scores_its_prompt, prompt=_LATIN, logprobs=1, on=_ON_TEXT)),
    *refused("prompt_logprobs", -2),
    *refused("prompt_logprobs", -1),  # all candidates: where the operator's max_logprobs allows it
    *refused("prompt_logprobs", 21),
    *streamed(refused("prompt_logprobs", 1)),
    *wrong_types("prompt_logprobs", "1", True, 1.5),
    *refused("logprobs", -1, on=_ON_TEXT),
    *refused("top_logprobs", -1, logprobs=True, on=_ON_CHAT),
]

_CANDIDATES = [
    *accepted("logprob_token_ids", [300, 301], names_candidates({300, 301}), logprobs=0, on=_ON_TEXT),
    *accepted("logprob_token_ids", [300, 301], same_values(logprob_token_ids=None), logprobs=1, on=_ON_TEXT),
    *accepted("logprob_token_ids", [300, 301], names_candidates({300, 301}), logprobs=True, on=_ON_CHAT),
    *accepted("logprob_token_ids", [300], same_values(logprob_token_ids=None), logprobs=True, n=2, on=_ON_CHAT),
    *refused("logprob_token_ids", [300]),
    *refused("logprob_token_ids", [-1], logprobs=1, on=_ON_TEXT),
    *refused("logprob_token_ids", [100_000], logprobs=True, on=_ON_CHAT),
    *wrong_types("logprob_token_ids", 300, "300"),
    *wrong_types("logprob_token_ids", ["300"], param="body.logprob_token_ids.0"),
]


def _repeats(**sizes: Any) -> dict[str, Any]:
    return {"max_pattern_size": 2, "min_count": 3, **sizes}


_WORDS = [
    *accepted("bad_words", [], same_as(bad_words=None)),
    # As in vLLM: a word, and the word behind a space where that has as many tokens. "a" and " a" have one each.
    *accepted("bad_words", ["a"], no_tokens({68, 261}), differs_from(bad_words=None)),
    *accepted("bad_words", ["#never#", "a"], no_tokens({68, 261}), n=2, temperature=0.9, seed=2),
    *refused("bad_words", [""]),
    *wrong_types("bad_words", "proud"),
    *wrong_types("bad_words", [5], param="body.bad_words.0"),
    *accepted("repetition_detection", _repeats(), generated(3, "repetition"), logit_bias={"300": 100}, max_tokens=9),
    *accepted("repetition_detection", _repeats(), same_as(repetition_detection=None)),
    *refused("repetition_detection", _repeats(max_pattern_size=-2)),
    *refused("repetition_detection", _repeats(min_pattern_size=3)),
    *wrong_types("repetition_detection", 5),
    *accepted("stream_interval", 1, same_as(stream_interval=None)),
    *accepted("stream_interval", 4, same_as(stream_interval=None), max_tokens=10),
    *accepted("stream_interval", 3, n=2, logprobs=2, max_tokens=10, on=_ON_TEXT),
    *refused("stream_interval", 0),
    *wrong_types("stream_interval", "1"),
    *refused("logits_processors", ["a.b"]),  # none that the operator has allowed
    *accepted("spaces_between_special_tokens", False, same_as(spaces_between_special_tokens=None)),
    *accepted("echo", True, prompt=PROMPT, skip_special_tokens=False, on=_ON_TEXT),
    *whole(accepted("return_receipt", True, same_as(return_receipt=None), tells_what_it_took)),
    *wrong_types("return_receipt", 1),
]

_NOT_HERE = [
    case
    for field, nothing, something in (
        ("watermarking", False, True),
        ("vllm_xargs", {}, {"a": 1}),
        ("mm_payload", "tensors", "none"),
        ("return_token_offsets", False, True),
        ("routed_experts_prompt_start", 0, 1),
        ("kv_transfer_params", None, {"a": 1}),
        ("thinking_token_budget", None, 5),
    )
    for case in (*accepted(field, nothing, same_as(**{field: None})), *refused(field, something))
]

ROWS = [*_ECHO, *_PROMPT_LOGPROBS, *_CANDIDATES, *_WORDS, *_NOT_HERE]
