"""The parameters of one request."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from paged_backend.errors import InvalidRequestError
from paged_backend.sampling_params.bad_words import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, BadWords
from paged_backend.sampling_params.checks import check_integer, check_token_id
from paged_backend.sampling_params.logits_processors import LogitsProcessor, LogitsProcessorConstructor, as_processor
from paged_backend.sampling_params.repetition import RepetitionDetectionParams
from paged_backend.sampling_params.structured_outputs import StructuredOutputsParams

MAX_STOP_STRINGS = 4
"""OpenAI's own limit on `stop`."""

MAX_LOGPROB_TOKEN_IDS = 128
"""vLLM's own limit on `logprob_token_ids`."""

_SWITCHES = (
    "use_beam_search",
    "include_stop_str_in_output",
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)
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
        include_stop_str_in_output: keep the stop string in the text.
        ignore_eos: go on past EOS until max_tokens.
        max_tokens: new tokens at most; None means as many as fit in the context. 0 gives nothing but what is known of
            the prompt (prompt_logprobs).
        min_tokens: EOS and stop token ids are not sampled before that many tokens.
        repetition_detection: ends a sample that goes round in circles, with finish_reason "repetition"; None looks for
            none. A mapping of its fields is taken as well.
        logprobs: how many top candidates to report per token, the vocabulary at most (the sampled one comes in
            addition); -1 for all of the vocabulary, None for none.
        prompt_logprobs: the same for each token of the prompt but the first; None for none. Such a request computes
            all of its prompt, and reads no prefix cache.
        logprob_token_ids: tokens to report at each position, whatever they are worth, beside those that `logprobs` asks
            for; 128 at most.
        logit_bias: added to the logits of the given token ids, each in [-100, 100].
        allowed_token_ids: if given, no other token can be sampled.
        bad_words: texts that the output must not come to hold, at the beginning of a word or behind a space: the token
            that would complete one cannot be sampled. As in vLLM, one that takes another number of tokens behind a
            space is forbidden at the beginning only: give it with the space in bad_words_token_ids too. They need a
            tokenizer.
        bad_words_token_ids: the same as sequences of token ids, for those who have no tokenizer; not in vLLM. 1024 at
            most, those that bad_words stand for among them, of 64 tokens at most.
        logits_processors: what changes the logits before anything else does, in this order: functions (prompt token
            ids, output token ids, logits [vocab_size]) -> logits, or what names one that the engine was configured
            with (`logits_processors`): "package.module:name", or {"qualname": that, "args": [...], "kwargs": {...}}
            to have it made for the request. Each must be a function of what it is given, and of nothing else.
        structured_outputs: what every output must look like. It ends with EOS, as soon as nothing else may come; where
            that is the only token left, min_tokens does not forbid it. Not with use_beam_search or ignore_eos.
        skip_reading_prefix_cache: True computes the whole prompt, whatever is known of it.
        detokenize: False skips text altogether (then `stop` must be empty).
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: False writes special tokens that follow each other without the spaces that some
            tokenizers put between them.
        stream_interval: tokens of a sample that a stream gathers before it gives them out, the first at once; None
            leaves it to the engine's `stream_interval`, which is the least.

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
    repetition_detection: RepetitionDetectionParams | Mapping[str, int] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: Sequence[int] | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = ()
    bad_words_token_ids: Sequence[Sequence[int]] | None = ()
    logits_processors: Sequence[LogitsProcessor | LogitsProcessorConstructor | str | Mapping[str, Any]] | None = ()
    structured_outputs: StructuredOutputsParams | None = None
    skip_reading_prefix_cache: bool | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    stream_interval: int | None = None

    def __post_init__(self) -> None:
        # Copies: what the caller changes later must not reach a request that runs.
        self._copy("stop", lambda value: (value,) if isinstance(value, str) else tuple(value or ()))
        self._copy("stop_token_ids", lambda value: tuple(value or ()))
        for name in ("allowed_token_ids", "logprob_token_ids"):
            self._copy(name, lambda value: value if value is None else tuple(value))
        self._copy("bad_words", _texts)
        self._copy("bad_words_token_ids", lambda value: value if isinstance(value, BadWords) else _sequences(value))
        self._copy("logits_processors", lambda value: tuple(map(as_processor, _texts(value))))
        self._copy("logit_bias", lambda value: dict(value or {}))
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"{name} must be true or false, got {getattr(self, name)!r}.", param=name)
        self._check_integers()
        self._check_logprobs()
        self._check_floats()
        self._check_stops()
        self._check_token_sets()
        self._check_words()
        self._check_repetition()
        self._check_search()
        self._check_structure()

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

    @property
    def describes_tokens(self) -> bool:
        """Whether log-probabilities of the output were asked for."""
        return self.logprobs is not None or bool(self.logprob_token_ids)

    @property
    def skips_prefix_cache(self) -> bool:
        """Whether all of the prompt is to be computed."""
        return self.prompt_logprobs is not None or bool(self.skip_reading_prefix_cache)

    def _copy(self, name: str, copy: Callable[[Any], Any]) -> None:
        value = getattr(self, name)
        try:
            object.__setattr__(self, name, copy(value))
        except InvalidRequestError:
            raise
        except (TypeError, ValueError) as error:
            kind = "a mapping of token ids to numbers" if name == "logit_bias" else "a list"
            raise InvalidRequestError(f"{name} must be {kind}, got {value!r}.", param=name) from error

    def _check_integers(self) -> None:
        for name, low in (("n", 1), ("top_k", -1), ("min_tokens", 0)):
            value = getattr(self, name)
            check_integer(name, value)
            if value < low:
                raise InvalidRequestError(f"{name} must be at least {low}, got {value}.", param=name)
        for name, low in _OPTIONAL_INTEGERS:
            value = getattr(self, name)
            if value is None:
                continue
            check_integer(name, value)
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

    def _check_logprobs(self) -> None:
        tokens = self.logprob_token_ids or ()
        for token in tokens:
            check_token_id("logprob_token_ids", token)
        if len(tokens) > MAX_LOGPROB_TOKEN_IDS:
            raise InvalidRequestError(
                f"logprob_token_ids takes at most {MAX_LOGPROB_TOKEN_IDS} ids, got {len(tokens)}.",
                param="logprob_token_ids",
            )
        if tokens and self.use_beam_search:
            raise InvalidRequestError(
                "logprob_token_ids are not there for beams: leave use_beam_search out, or ask for logprobs.",
                param="logprob_token_ids",
            )
        skips = self.skip_reading_prefix_cache
        if not isinstance(skips, bool | None):
            raise InvalidRequestError(
                f"skip_reading_prefix_cache must be true or false, got {skips!r}.", param="skip_reading_prefix_cache"
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
                check_token_id(name, token)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequestError("allowed_token_ids must not be empty.", param="allowed_token_ids")
        for token, bias in self.logit_bias.items():
            check_integer("logit_bias", token)
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
                raise InvalidRequestError(
                    f"logit_bias values must be numbers in [-100, 100], got {bias!r} for token {token}.",
                    param="logit_bias",
                )

    def _check_words(self) -> None:
        if any(not isinstance(word, str) or not word.strip() for word in self.bad_words or ()):
            raise InvalidRequestError("bad_words must hold texts that are not empty.", param="bad_words")
        words = self.bad_words_token_ids
        if not words or isinstance(words, BadWords):
            return
        name = "bad_words_token_ids"
        if len(words) > MAX_BAD_WORDS:
            raise InvalidRequestError(f"{name} takes at most {MAX_BAD_WORDS} sequences, got {len(words)}.", param=name)
        for word in words:
            if not 1 <= len(word) <= MAX_BAD_WORD_TOKENS:
                raise InvalidRequestError(
                    f"{name} must hold sequences of 1 to {MAX_BAD_WORD_TOKENS} token ids, got one of {len(word)}.",
                    param=name,
                )
            for token in word:
                check_token_id(name, token)
        object.__setattr__(self, name, BadWords(words))

    def _check_repetition(self) -> None:
        value: Any = self.repetition_detection
        if isinstance(value, Mapping):
            try:
                value = RepetitionDetectionParams(**value)
            except TypeError as error:
                raise InvalidRequestError(
                    f"repetition_detection has max_pattern_size, min_pattern_size and min_count, got {dict(value)}.",
                    param="repetition_detection",
                ) from error
            object.__setattr__(self, "repetition_detection", value)
        if not isinstance(value, RepetitionDetectionParams | None):
            raise InvalidRequestError(
                f"repetition_detection must be RepetitionDetectionParams, got {value!r}.", param="repetition_detection"
            )
        if value is not None and self.use_beam_search:
            raise InvalidRequestError(
                "repetition_detection ends samples, not beams: leave use_beam_search out.", param="repetition_detection"
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
            if self.max_tokens == 0:
                raise InvalidRequestError("max_tokens must be at least 1 for use_beam_search.", param="max_tokens")
            object.__setattr__(self, "temperature", 0.0)
            return
        for name, default in (("length_penalty", 1.0), ("early_stopping", False)):
            if getattr(self, name) != default:
                raise InvalidRequestError(f"{name} needs use_beam_search: set that, or leave it out.", param=name)

    def _check_structure(self) -> None:
        structure = self.structured_outputs
        if structure is None:
            return
        if not isinstance(structure, StructuredOutputsParams):
            raise InvalidRequestError(
                f"structured_outputs must be StructuredOutputsParams, got {structure!r}.", param="structured_outputs"
            )
        for name, why in (
            ("use_beam_search", "a search needs several ways to go on, and a grammar may leave one"),
            ("ignore_eos", "an output that is complete can only end"),
        ):
            if getattr(self, name):
                raise InvalidRequestError(f"{structure.param} and {name} exclude each other: {why}.", param=name)


_OPTIONAL_INTEGERS = (
    ("best_of", 1),
    ("max_tokens", 0),
    ("logprobs", -1),
    ("prompt_logprobs", -1),
    ("seed", _SEED_MIN),
    ("stream_interval", 1),
)
"""Parameters that may be None, and the least that they may be."""


def _sequences(value: Any) -> tuple[tuple[Any, ...], ...]:
    """A list of lists that may have been left out."""
    return tuple(map(tuple, value or ()))


def _texts(value: Any) -> tuple[Any, ...]:
    """A list that may have been left out; a lone text, which would come apart into its letters, is none."""
    if isinstance(value, str):
        raise TypeError("a text where a list should be")
    return tuple(value or ())
