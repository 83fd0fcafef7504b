"""How tokens are chosen: every sampling field, right and wrong, on both routes, whole and streamed."""

from __future__ import annotations

from tests.conformance.case import CHAT, COMPLETIONS, accepted, refused, wrong_types
from tests.conformance.checks import (
    all_alike,
    all_different,
    differs_from,
    generated,
    no_tokens,
    only_tokens,
    same_as,
)

DRAWN = {"temperature": 0.9, "seed": 7}
GREEDY = same_as(temperature=0, seed=None, top_k=None, top_p=None, min_p=None)
"""Filters that leave one token make a draw greedy."""

_LARGEST = 2**63 - 1

ROWS = [
    # temperature: from 0, which is greedy; OpenAI's go to 2, vLLM's further.
    *accepted("temperature", 0, same_as(top_k=1, temperature=1)),
    *accepted("temperature", 0.7, seed=7),
    *accepted("temperature", 1, same_as(temperature=1.0), seed=7),
    *accepted("temperature", 2, differs_from(temperature=0), seed=7),
    *accepted("temperature", None, same_as(temperature=1), seed=7),
    *refused("temperature", -0.1),
    *refused("temperature", -1, top_k=1),
    *wrong_types("temperature", "hot", "1", [1], {}, True),
    # top_p: in (0, 1].
    *accepted("top_p", 1, same_as(top_p=None), **DRAWN),
    *accepted("top_p", 0.5, **DRAWN),
    *accepted("top_p", 1e-9, GREEDY, **DRAWN),
    *refused("top_p", 0),
    *refused("top_p", 1.01),
    *refused("top_p", -0.5),
    *wrong_types("top_p", "0.5", [0.5]),
    # top_k: 0 and -1 keep all.
    *accepted("top_k", 1, GREEDY, **DRAWN),
    *accepted("top_k", 20, **DRAWN),
    *accepted("top_k", 0, same_as(top_k=None), **DRAWN),
    *accepted("top_k", -1, same_as(top_k=None), **DRAWN),
    *accepted("top_k", 10**6, same_as(top_k=None), **DRAWN),
    *refused("top_k", -2),
    *wrong_types("top_k", 1.5, "20"),
    # min_p: in [0, 1]; 1 leaves the likeliest.
    *accepted("min_p", 0, same_as(min_p=None), **DRAWN),
    *accepted("min_p", 0.05, **DRAWN),
    *accepted("min_p", 1, GREEDY, **DRAWN),
    *refused("min_p", -0.01),
    *refused("min_p", 1.01),
    *wrong_types("min_p", "0"),
    # Penalties: OpenAI's two in [-2, 2]; 1 is no repetition penalty, 0 or less has no meaning.
    *accepted("presence_penalty", 0, same_as(presence_penalty=None)),
    *accepted("presence_penalty", 2),
    *accepted("presence_penalty", -2),
    *refused("presence_penalty", 2.01),
    *refused("presence_penalty", -2.01),
    *wrong_types("presence_penalty", "1", []),
    *accepted("frequency_penalty", 0, same_as(frequency_penalty=None)),
    *accepted("frequency_penalty", 2),
    *accepted("frequency_penalty", -2),
    *refused("frequency_penalty", 3),
    *refused("frequency_penalty", -3),
    *wrong_types("frequency_penalty", "1", False),
    *accepted("repetition_penalty", 1, same_as(repetition_penalty=None)),
    *accepted("repetition_penalty", 1.3, max_tokens=30),
    *accepted("repetition_penalty", 0.8),
    *refused("repetition_penalty", 0),
    *refused("repetition_penalty", -1),
    *wrong_types("repetition_penalty", "1"),
    # seed: any signed 64-bit integer; sample i draws with seed + i.
    *accepted("seed", 0, same_as(temperature=0.9), temperature=0.9),
    *accepted("seed", -1, temperature=0.9),
    *accepted("seed", _LARGEST, temperature=0.9),
    *accepted("seed", -(2**63), temperature=0.9),
    *accepted("seed", 5, same_as(seed=None)),
    *accepted("seed", 11, differs_from(seed=12), temperature=1.5),
    *refused("seed", _LARGEST + 1),
    *refused("seed", -(2**63) - 1),
    *wrong_types("seed", 1.5, "1", [1]),
    # n: samples of one prompt.
    *accepted("n", 1, same_as(n=None)),
    *accepted("n", 2, all_alike),
    *accepted("n", 3, all_different, temperature=1.5, seed=7, max_tokens=20),
    *accepted("n", 8, temperature=1.2, seed=1, max_tokens=3),
    *refused("n", 0),
    *refused("n", -1),
    *refused("n", 9),  # more than this server runs at a time
    *refused("n", 10**9),
    *wrong_types("n", "2", 1.5, [1]),
    # best_of: ours on chat, OpenAI's on completions; what is chosen at the end cannot be streamed.
    *(case for case in accepted("best_of", 3, seed=5, temperature=0.9) if not case.body.get("stream")),
    *(case for case in accepted("best_of", 3, n=2, seed=5, temperature=0.9) if not case.body.get("stream")),
    *accepted("best_of", 1, same_as(best_of=None)),
    *accepted("best_of", 2, n=2),
    *refused("best_of", 1, n=2),
    *refused("best_of", 0),
    *(case for case in refused("best_of", 9) if not case.body.get("stream")),
    *refused("stream", True, best_of=3),
    *wrong_types("best_of", "3"),
    # Beam search.
    *(case for case in accepted("use_beam_search", True, n=2) if not case.body.get("stream")),
    *(case for case in accepted("use_beam_search", True, n=1, best_of=3) if not case.body.get("stream")),
    *(
        case
        for case in accepted("length_penalty", 0.6, n=2, use_beam_search=True, early_stopping="never")
        if not case.body.get("stream")
    ),
    *accepted("use_beam_search", False, same_as(use_beam_search=None)),
    *accepted("length_penalty", 1.0, same_as(length_penalty=None)),
    *refused("stream", True, use_beam_search=True, n=2),
    *refused("length_penalty", 0.6),
    *refused("early_stopping", True),
    *refused("early_stopping", "soon", use_beam_search=True, n=2),
    *refused("temperature", 0.5, use_beam_search=True, n=2),
    *wrong_types("use_beam_search", "yes", 1),
    # logit_bias: token ids as JSON's keys, from -100, which bans a token, to 100, which forces it.
    *accepted("logit_bias", {}, same_as(logit_bias=None)),
    *accepted("logit_bias", {"300": 100}, only_tokens({300}), generated(6)),
    *accepted("logit_bias", {"300": 1.5, "301": -2}),
    *accepted("logit_bias", {"300": 100, "301": 100}, only_tokens({300, 301}), **DRAWN),
    *refused("logit_bias", {"300": 101}),
    *refused("logit_bias", {"300": -100.5}),
    *refused("logit_bias", {"a": 1}),
    *refused("logit_bias", {"-1": 1}),
    *refused("logit_bias", {"100000": 1}),
    *refused("logit_bias", {"300": "1"}, "body.logit_bias.300"),
    *wrong_types("logit_bias", [300], "300"),
    # allowed_token_ids
    *accepted("allowed_token_ids", [300], only_tokens({300}), generated(6)),
    *accepted("allowed_token_ids", [300, 301, 302], only_tokens({300, 301, 302}), **DRAWN),
    *refused("allowed_token_ids", []),
    *refused("allowed_token_ids", [-1]),
    *refused("allowed_token_ids", [100_000]),
    *wrong_types("allowed_token_ids", "300", 300),
    *wrong_types("allowed_token_ids", ["300"], param="body.allowed_token_ids.0"),
    # Where the text ends.
    *accepted("max_tokens", 1, generated(1)),
    *accepted("max_tokens", 40, generated(40), ignore_eos=True),
    *refused("max_tokens", -1),
    *refused("max_tokens", 10**6),
    *refused("max_tokens", 10**30),
    *wrong_types("max_tokens", "6", 1.5, [6]),
    *accepted("max_tokens", None, on=(COMPLETIONS,)),
    *accepted("max_tokens", None, stop=["."], on=(CHAT,)),
    *accepted("max_completion_tokens", 3, generated(3), same_as(max_completion_tokens=None, max_tokens=3), on=(CHAT,)),
    *accepted("max_completion_tokens", 2, generated(2), max_tokens=None, on=(CHAT,)),
    *refused("max_completion_tokens", 0, on=(CHAT,)),
    *refused("max_completion_tokens", 10**6, on=(CHAT,)),
    *refused("max_completion_tokens", 5, on=(COMPLETIONS,)),
    *wrong_types("max_completion_tokens", "5", on=(CHAT,)),
    *accepted("min_tokens", 0, same_as(min_tokens=None)),
    *accepted("min_tokens", 6, generated(6)),
    *accepted("min_tokens", 5, no_tokens({0, 3}), max_tokens=5, logit_bias={"0": 100}),
    *refused("min_tokens", -1),
    *refused("min_tokens", 7),
    *wrong_types("min_tokens", "1", 1.5),
    *accepted("ignore_eos", True, generated(4), max_tokens=4, logit_bias={"0": 100}),
    *accepted("ignore_eos", False, same_as(ignore_eos=None)),
    *accepted("ignore_eos", False, generated(1, "stop"), logit_bias={"0": 100}),
    *wrong_types("ignore_eos", 1, "true"),
]
