"""How a request's tokens are chosen and where it ends. Names and defaults are vLLM's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from paged_backend.errors import InvalidRequestError

MAX_STOP_STRINGS = 4
"""OpenAI's own limit on `stop`."""

_SWITCHES = ("use_beam_search", "include_stop_str_in_output", "ignore_eos", "detokenize", "skip_special_tokens")
_SEED_MIN, _SEED_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """One request's sampling parameters, validated on construction.

    Attributes:
        n: samples of the same prompt; sample i of a seeded request draws with seed + i.
        best_of: as many samples run, n at least, and the n of them with the highest cumulative logprob are returned,
            the highest first; None runs n. With use_beam_search, the number of beams.
        use_beam_search: search for the likeliest continuations instead of drawing, and return the n best of those
            found, by transformers' rules. Nothing is drawn: temperature must be 0 or 1, and becomes 0; top_k, top_p
            and min_p must be off. Penalties, logit_bias and the like change log-probabilities here, not logits.
        length_penalty: a search divides a continuation's log-probability by its length to this power: above 0 favours
            long ones, below 0 short ones; in [-10, 10].
        early_stopping: when a search is over. True: as soon as best_of continuations have ended. False: once no
            running beam scores better, at its present length, than the worst of those. "never": once none can.
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
    best_of: int | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
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
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"{name} must be true or false, got {getattr(self, name)!r}.", param=name)
        self._check_integers()
        self._check_floats()
        self._check_stops()
        self._check_token_sets()
        self._check_search()

    @property
    def num_sequences(self) -> int:
        """Samples or beams that run for the request: best_of, or n where that is not given."""
        return self.n if self.best_of is None else self.best_of

    @property
    def chooses_at_end(self) -> bool:
        """Whether nothing is known of the outputs before all of them have ended."""
        return self.use_beam_search or self.num_sequences > self.n

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
        for name, low in (("best_of", 1), ("max_tokens", 1), ("logprobs", 0), ("seed", _SEED_MIN)):
            value = getattr(self, name)
            if value is None:
                continue
            _check_integer(name, value)
            if value < low:
                raise InvalidRequestError(f"{name} must be at least {low}, got {value}.", param=name)
        if self.seed is not None and self.seed > _SEED_MAX:
            raise InvalidRequestError(f"seed must be a signed 64-bit integer, got {self.seed}.", param="seed")
        if self.num_sequences < self.n:
            raise InvalidRequestError(f"best_of ({self.best_of}) must be at least n ({self.n}).", param="best_of")
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
            "length_penalty": (-10.0, 10.0, "in [-10, 10]"),
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

    def _check_search(self) -> None:
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise InvalidRequestError(
                f'early_stopping must be true, false or "never", got {self.early_stopping!r}.', param="early_stopping"
            )
        if self.use_beam_search:
            nothing = {"temperature": (0, 1), "top_k": (0, -1), "top_p": (1,), "min_p": (0,)}
            wrong = [name for name, values in nothing.items() if getattr(self, name) not in values]
            if wrong:
                raise InvalidRequestError(
                    f"use_beam_search draws nothing, so {wrong[0]} would have no meaning: leave it out.", param=wrong[0]
                )
            object.__setattr__(self, "temperature", 0.0)
            return
        for name, default in (("length_penalty", 1.0), ("early_stopping", False)):
            if getattr(self, name) != default:
                raise InvalidRequestError(f"{name} needs use_beam_search: set that, or leave it out.", param=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """Parameters of `LLM.beam_search`, under vLLM's names. They are checked when they are used.

    Attributes:
        beam_width: beams, and continuations returned for each prompt.
        max_tokens: new tokens at most.
        ignore_eos: go on past EOS until max_tokens.
        temperature: 0, or 1, which is the same: nothing is drawn.
        length_penalty, early_stopping: as in `SamplingParams`.
        include_stop_str_in_output: let the text end with that of the token that ended it.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    include_stop_str_in_output: bool = False

    def sampling_params(self) -> SamplingParams:
        """The same as a request's parameters.

        Raises:
            InvalidRequestError: a value is out of range.
        """
        return SamplingParams(
            n=self.beam_width,
            use_beam_search=True,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            temperature=self.temperature,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            include_stop_str_in_output=self.include_stop_str_in_output,
        )


def _check_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, got {value!r}.", param=name)
