"""How a request's tokens are chosen and where it ends. Names and defaults are vLLM's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paged_backend.errors import InvalidRequestError

MAX_STOP_STRINGS = 4
"""OpenAI's own limit on `stop`."""

_SEED_MIN, _SEED_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """One request's sampling parameters, validated on construction.

    Attributes:
        n: samples of the same prompt; sample i of a seeded request draws with seed + i.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0, -1 and more than the vocabulary has keep all.
        top_p: keep the smallest set of most likely tokens whose probability reaches it, in (0, 1].
        min_p: drop tokens less likely than min_p times the most likely one, in [0, 1].
        repetition_penalty: > 1 divides positive (multiplies negative) logits of tokens seen in prompt or output.
        presence_penalty, frequency_penalty: subtracted once, or per occurrence, from tokens seen in the output.
        seed: draws are keyed by (seed, position); None lets the engine choose one per request.
        stop: up to 4 strings that end the sample; left out of the text unless include_stop_str_in_output.
        stop_token_ids: token ids that end the sample, beside the model's EOS.
        ignore_eos: go on past EOS until max_tokens.
        max_tokens: new tokens at most; None means as many as fit in the context.
        min_tokens: EOS and stop token ids are not sampled before that many tokens.
        logprobs: how many top candidates to report per token, the vocabulary at most (the sampled one comes in
            addition); None for none.
        logit_bias: added to the logits of the given token ids, each in [-100, 100].
        allowed_token_ids: if given, no other token can be sampled.
        detokenize: False skips text altogether (then `stop` must be empty).
        skip_special_tokens: leave special tokens out of the text.

    Raises:
        InvalidRequestError: a value is out of range; `param` is the field's name.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: Sequence[str] | str | None = ()
    stop_token_ids: Sequence[int] | None = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    allowed_token_ids: Sequence[int] | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        # Copies: what the caller changes later must not reach a request that runs.
        self._copy("stop", lambda value: (value,) if isinstance(value, str) else tuple(value or ()))
        self._copy("stop_token_ids", lambda value: tuple(value or ()))
        self._copy("allowed_token_ids", lambda value: value if value is None else tuple(value))
        self._copy("logit_bias", lambda value: dict(value or {}))
        for name in ("include_stop_str_in_output", "ignore_eos", "detokenize", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"{name} must be true or false, got {getattr(self, name)!r}.", param=name)
        self._check_integers()
        self._check_floats()
        self._check_stops()
        self._check_token_sets()

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    def _copy(self, name: str, copy: Callable[[Any], Any]) -> None:
        value = getattr(self, name)
        try:
            object.__setattr__(self, name, copy(value))
        except (TypeError, ValueError) as error:
            kind = "a mapping of token ids to numbers" if name == "logit_bias" else "a list"
            raise InvalidRequestError(f"{name} must be {kind}, got {value!r}.", param=name) from error

    def _check_integers(self) -> None:
        for name, low in (("n", 1), ("top_k", -1), ("min_tokens", 0)):
            value = getattr(self, name)
            _check_integer(name, value)
            if value < low:
                raise InvalidRequestError(f"{name} must be at least {low}, got {value}.", param=name)
        for name, low in (("max_tokens", 1), ("logprobs", 0), ("seed", _SEED_MIN)):
            value = getattr(self, name)
            if value is None:
                continue
            _check_integer(name, value)
            if value < low:
                raise InvalidRequestError(f"{name} must be at least {low}, got {value}.", param=name)
        if self.seed is not None and self.seed > _SEED_MAX:
            raise InvalidRequestError(f"seed must be a signed 64-bit integer, got {self.seed}.", param="seed")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens}).",
                param="min_tokens",
            )

    def _check_floats(self) -> None:
        ranges = {
            "temperature": (0.0, 1e3, "in [0, 1000]"),
            "top_p": (math.ulp(0.0), 1.0, "in (0, 1]"),
            "min_p": (0.0, 1.0, "in [0, 1]"),
            "repetition_penalty": (1e-3, 1e3, "in [0.001, 1000]"),
            "presence_penalty": (-2.0, 2.0, "in [-2, 2]"),
            "frequency_penalty": (-2.0, 2.0, "in [-2, 2]"),
        }
        for name, (low, high, wording) in ranges.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InvalidRequestError(f"{name} must be a number, got {value!r}.", param=name)
            if not (low <= value <= high and math.isfinite(value)):
                raise InvalidRequestError(f"{name} must be {wording}, got {value}.", param=name)

    def _check_stops(self) -> None:
        assert isinstance(self.stop, tuple)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(
                f"stop takes at most {MAX_STOP_STRINGS} strings, got {len(self.stop)}.", param="stop"
            )
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise InvalidRequestError("stop must hold strings that are not empty.", param="stop")
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop needs text: leave detokenize on, or use stop_token_ids.", param="stop")

    def _check_token_sets(self) -> None:
        for name in ("stop_token_ids", "allowed_token_ids"):
            for token in getattr(self, name) or ():
                _check_integer(name, token)
                if token < 0:
                    raise InvalidRequestError(f"{name} must hold token ids, got {token}.", param=name)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequestError("allowed_token_ids must not be empty.", param="allowed_token_ids")
        for token, bias in self.logit_bias.items():
            _check_integer("logit_bias", token)
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
                raise InvalidRequestError(
                    f"logit_bias values must be numbers in [-100, 100], got {bias!r} for token {token}.",
                    param="logit_bias",
                )


def _check_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, got {value!r}.", param=name)
