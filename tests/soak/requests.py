"""Random requests: each from its own seed alone, so that one is the same however many are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from torch import Tensor

from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.sampling_params import RepetitionDetectionParams, SamplingParams, StructuredOutputsParams

LONGEST_PROMPT = 416
LONGEST_OUTPUT = 64
LONGEST_SEARCH = 124
"""Tokens of a beam at most: all beams of a search must fit into a small pool at once."""
WIDEST = 4
"""Samples or beams of a request at most."""

_NUM_PREFIXES = 6
_WORDS = (
    "a small fox looked at the moon and asked why it was cold , but nobody knew . once upon time there lived an old "
    "king who had 12 blankets 345 cats one book of 6789 pages what is block table it says where keys values lie then "
    'she ran home happy sad quickly "wait" said mia to olga near river harbour because tomorrow never came again !'
).split()
_STRUCTURES = (
    {"regex": "[a-m ]{4,40}[n-z]{1,5}"},
    {"choice": ["once upon a time", "once more", "the moon", "nobody"]},
    {
        "json": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
            "required": ["b"],
        }
    },
    {"json": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 5}},
)
_STOPS = ("q", "z", "ow", " it", " an", "th", ". ", "!", "\n", " sai")


@dataclass(frozen=True)
class SoakRequest:
    """One request; whether it is watched or only in the way, is not its business."""

    number: int
    prompt: tuple[int, ...]
    params: SamplingParams


def random_request(seed: int, number: int, tokenizer: Tokenizer, vocab_size: int) -> SoakRequest:
    """The request of this number, of those that a seed stands for."""
    rng = Random(f"{seed}: request {number}")
    kind = rng.choices(("greedy", "drawn", "search"), (25, 65, 10))[0]
    longest = LONGEST_SEARCH - LONGEST_OUTPUT // 2 if kind == "search" else LONGEST_PROMPT
    prompt = _prompt(seed, rng, tokenizer, longest)
    params: dict[str, Any] = {
        "seed": rng.randrange(-(2**63), 2**63),
        "max_tokens": rng.randint(1, LONGEST_OUTPUT // (2 if kind == "search" else 1)),
        "ignore_eos": rng.random() < 0.7,
        "logprobs": rng.choice((None, 0, 1, 2, 3, 4, 5)),
    }
    if kind == "search":
        params |= _search(rng)
    else:
        params |= {"temperature": 0.0} if kind == "greedy" else _draw(rng)
        params |= _samples(rng)
    params |= _constraints(rng, vocab_size)
    params |= _end(rng, vocab_size, params["max_tokens"])
    params |= _told(rng, vocab_size)
    if kind != "search":
        params |= _structure(rng, params)
    return SoakRequest(number, prompt, SamplingParams(**params))


def _prompt(seed: int, rng: Random, tokenizer: Tokenizer, longest: int) -> tuple[int, ...]:
    """Of 1 to `longest` tokens, as many short ones as long ones; most begin as others do."""
    length = int((longest + 1) ** rng.random())
    tokens: list[int] = []
    if rng.random() < 0.7:
        common = Random(f"{seed}: prefix {rng.randrange(_NUM_PREFIXES)}")
        tokens = _text(common, tokenizer, common.randint(20, 240))
        length = rng.choice((length, min(longest, len(tokens) + length)))
    if length > len(tokens):
        tokens += _text(rng, tokenizer, length - len(tokens))
    return tuple(tokens[:length])


def _text(rng: Random, tokenizer: Tokenizer, length: int) -> list[int]:
    """So many tokens of a random text: a word has one at least."""
    return tokenizer.encode(" ".join(rng.choices(_WORDS, k=length)), add_special_tokens=False)[:length]


def _draw(rng: Random) -> dict[str, Any]:
    found: dict[str, Any] = {"temperature": rng.uniform(0.3, 1.7)}
    if rng.random() < 0.4:
        found["top_k"] = rng.randint(1, 50)
    if rng.random() < 0.4:
        found["top_p"] = rng.uniform(0.3, 1.0)
    if rng.random() < 0.3:
        found["min_p"] = rng.uniform(0.0, 0.2)
    return found


def _samples(rng: Random) -> dict[str, Any]:
    chance = rng.random()
    if chance < 0.15:
        return {"n": rng.randint(2, WIDEST)}
    if chance < 0.2:
        return {"n": rng.randint(1, 2), "best_of": rng.randint(3, WIDEST)}
    return {}


def _search(rng: Random) -> dict[str, Any]:
    width = rng.randint(2, WIDEST)
    return {
        "use_beam_search": True,
        "n": rng.randint(1, width),
        "best_of": width,
        "length_penalty": rng.choice((0.6, 1.0, 2.0)),
        "early_stopping": rng.choice((False, True, "never")),
    }


def _constraints(rng: Random, vocab_size: int) -> dict[str, Any]:
    """What changes the logits."""
    found: dict[str, Any] = {}
    if rng.random() < 0.2:
        found["repetition_penalty"] = rng.uniform(0.8, 1.5)
    if rng.random() < 0.2:
        found["presence_penalty"] = rng.uniform(-1.0, 1.0)
    if rng.random() < 0.2:
        found["frequency_penalty"] = rng.uniform(-1.0, 1.0)
    if rng.random() < 0.15:
        found["logit_bias"] = {rng.randrange(vocab_size): rng.uniform(-8.0, 8.0) for _ in range(rng.randint(1, 20))}
    if rng.random() < 0.15:
        words = [rng.choices(range(vocab_size), k=rng.randint(1, 3)) for _ in range(rng.randint(1, 20))]
        found["bad_words_token_ids"] = words
    if rng.random() < 0.1:
        found["logits_processors"] = [_prefer_what_was_not_said]
    if rng.random() < 0.05:
        found["allowed_token_ids"] = rng.sample(range(vocab_size), vocab_size // 4)
    return found


def _end(rng: Random, vocab_size: int, max_tokens: int) -> dict[str, Any]:
    """What ends it before max_tokens, or not."""
    found: dict[str, Any] = {}
    if rng.random() < 0.3:
        found["stop"] = rng.sample(_STOPS, rng.randint(1, 3))
        found["include_stop_str_in_output"] = rng.random() < 0.3
    elif rng.random() < 0.1:
        found["detokenize"] = False
    if rng.random() < 0.2:
        found["stop_token_ids"] = rng.sample(range(vocab_size), rng.randint(1, 20))
    if rng.random() < 0.15:
        found["min_tokens"] = rng.randint(0, max_tokens)
    return found


def _told(rng: Random, vocab_size: int) -> dict[str, Any]:
    """What is told of it beside its tokens, and what the cache may do for it."""
    found: dict[str, Any] = {}
    if rng.random() < 0.15:
        found["prompt_logprobs"] = rng.randint(0, 3)
    if rng.random() < 0.1:
        found["skip_reading_prefix_cache"] = True
    return found


def _structure(rng: Random, params: dict[str, Any]) -> dict[str, Any]:
    """What samples alone can have: an end by going round in circles, tokens that are looked at, a grammar."""
    found: dict[str, Any] = {}
    if rng.random() < 0.3:
        found["repetition_detection"] = RepetitionDetectionParams(rng.randint(1, 4), 0, rng.randint(2, 3))
    if rng.random() < 0.1:
        found["logprob_token_ids"] = rng.sample(range(100), rng.randint(1, 5))
    if rng.random() < 0.15 and "allowed_token_ids" not in params and "bad_words_token_ids" not in params:
        found["structured_outputs"] = StructuredOutputsParams(**rng.choice(_STRUCTURES))
        found["ignore_eos"] = False
    return found


def _prefer_what_was_not_said(prompt: Sequence[int], output: Sequence[int], logits: Tensor) -> Tensor:
    """A function of a user's own."""
    logits[list(output)] -= 1.5
    return logits
