"""A request's parameters at the engine's door: checked against this engine, and made into what it computes with."""

from __future__ import annotations

import importlib
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from paged_backend.config import EngineConfig
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.errors import ConfigError, InvalidRequestError
from paged_backend.sampling.processors import check_token_ids
from paged_backend.sampling.user_processors import processor_name
from paged_backend.sampling_params import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    LogitsProcessor,
    LogitsProcessorConstructor,
    SamplingParams,
)

logger = logging.getLogger(__name__)


class ParameterDesk:
    """Knows what this engine can serve. Safe to use from any thread.

    Args:
        config: the engine's.
        tokenizer: None where it runs without one.
        vocab_size: token ids are 0 .. vocab_size - 1.
        eos_token_ids: the model's.

    Raises:
        ConfigError: a name in logits_processors leads to nothing that can be called.
    """

    def __init__(
        self, config: EngineConfig, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: frozenset[int]
    ) -> None:
        self._max_logprobs = config.model.max_logprobs
        self._stream_interval = config.scheduler.stream_interval
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._engine_process = config.executor.engine_process
        self._processors = {name: _load(name) for name in config.model.logits_processors}

    def prepare(self, params: SamplingParams) -> SamplingParams:
        """The parameters with nothing left in them that has to be looked up: words are tokens, names are functions.

        Raises:
            InvalidRequestError: one cannot be served here; `param` is its name.
        """
        changes: dict[str, Any] = {}
        if params.bad_words:
            words = dict.fromkeys((*(params.bad_words_token_ids or ()), *self._bad_word_tokens(params.bad_words)))
            self._check_bad_words(len(words))
            changes |= {"bad_words": (), "bad_words_token_ids": tuple(words)}
        if params.stream_interval is None or params.stream_interval < self._stream_interval:
            changes["stream_interval"] = self._stream_interval
        if changes:
            params = replace(params, **changes)
        self._check(params)
        made = self.make_processors(params)
        if self._engine_process:
            for given in params.logits_processors or ():
                _check_importable(given)
            return params  # they are made there
        return made

    def make_processors(self, params: SamplingParams) -> SamplingParams:
        """The parameters with functions in the place of their names; the same where there are none.

        Raises:
            InvalidRequestError: there is no such function, or it cannot be made.
        """
        if not params.logits_processors:
            return params
        return replace(params, logits_processors=tuple(map(self._processor, params.logits_processors)))

    def _check(self, params: SamplingParams) -> None:
        check_token_ids(params, self._vocab_size)
        for name in ("logprobs", "prompt_logprobs"):
            self._check_count(name, getattr(params, name))
        if params.stop and self._tokenizer is None:
            raise InvalidRequestError(
                "stop needs text, and this engine runs without a tokenizer: use stop_token_ids.", param="stop"
            )
        if params.use_beam_search:
            self._check_width(params)
        if params.allowed_token_ids and params.min_tokens:
            ends = self._eos_token_ids.union(params.stop_token_ids or ())
            if ends.issuperset(params.allowed_token_ids):
                raise InvalidRequestError(
                    "allowed_token_ids holds only tokens that end the output, and min_tokens forbids those at first: "
                    "allow another token, or leave min_tokens out.",
                    param="allowed_token_ids",
                )

    def _check_count(self, name: str, count: int | None) -> None:
        """A number of candidates; -1 means the whole vocabulary."""
        most = self._max_logprobs
        if count is None or most == -1:
            return
        if (self._vocab_size if count == -1 else count) > most:
            asked = "-1 (all)" if count == -1 else str(count)
            raise InvalidRequestError(
                f"{name} must be in 0..{most} (max_logprobs, which the operator may raise), got {asked}.", param=name
            )

    def _check_width(self, params: SamplingParams) -> None:
        """A search needs as many ways to go on as it has beams, and may look at no more tokens than there are."""
        width = params.num_sequences
        ends = frozenset(params.stop_token_ids or ()).union(() if params.ignore_eos else self._eos_token_ids)
        if params.allowed_token_ids is not None and len(set(params.allowed_token_ids) - ends) < width:
            raise InvalidRequestError(
                f"allowed_token_ids must hold at least {width} tokens that do not end the output, one for each beam.",
                param="allowed_token_ids",
            )
        if width * (1 + max(1, len(ends))) > self._vocab_size:
            raise InvalidRequestError(
                f"A search of {width} beams with {len(ends)} tokens that end the output looks at more continuations "
                f"than the model has tokens ({self._vocab_size}): ask for fewer beams, or fewer stop_token_ids.",
                param="n" if params.best_of is None else "best_of",
            )

    def _bad_word_tokens(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """Each word as it is written at the beginning of a text and behind a space, in vLLM's way.

        The second is left out where it is no word of its own: where it begins with the first's first token (a space by
        itself would be forbidden in front of everything), or has another number of tokens.
        """
        if self._tokenizer is None:
            raise InvalidRequestError(
                "bad_words needs text, and this engine runs without a tokenizer: use bad_words_token_ids.",
                param="bad_words",
            )
        sequences: list[tuple[int, ...]] = []
        different = dict.fromkeys(words)
        self._check_bad_words(len(different))  # each is one sequence at least: no more than that are encoded
        for word in different:
            try:
                plain, spaced = (
                    tuple(self._tokenizer.encode(space + word.lstrip(), add_special_tokens=False))
                    for space in ("", " ")
                )
            except (UnicodeEncodeError, TypeError) as error:
                raise InvalidRequestError(f"bad_words holds {word!r}, which is no text.", param="bad_words") from error
            if not plain:
                raise InvalidRequestError(f"bad_words holds {word!r}, which has no tokens.", param="bad_words")
            if len(plain) > MAX_BAD_WORD_TOKENS:
                raise InvalidRequestError(
                    f"bad_words holds a text of {len(plain)} tokens; {MAX_BAD_WORD_TOKENS} are allowed.",
                    param="bad_words",
                )
            sequences.append(plain)
            if len(spaced) == len(plain) and spaced[0] != plain[0]:
                sequences.append(spaced)
        return sequences

    @staticmethod
    def _check_bad_words(num_sequences: int) -> None:
        if num_sequences > MAX_BAD_WORDS:
            raise InvalidRequestError(
                f"bad_words stands for {num_sequences} sequences of tokens (with those of bad_words_token_ids); "
                f"{MAX_BAD_WORDS} are allowed.",
                param="bad_words",
            )

    def _processor(self, wanted: object) -> LogitsProcessor:
        """The function that a request means."""
        name = wanted.qualname if isinstance(wanted, LogitsProcessorConstructor) else wanted
        if not isinstance(name, str):
            return cast("LogitsProcessor", wanted)
        if name not in self._processors:
            known = ", ".join(self._processors) or "none"
            raise InvalidRequestError(
                f"logits_processors names {name!r}, which the operator has not allowed (logits_processors: {known}).",
                param="logits_processors",
            )
        found = self._processors[name]
        if not isinstance(wanted, LogitsProcessorConstructor):
            return cast("LogitsProcessor", found)
        try:
            made = found(*wanted.args, **wanted.kwargs)
        except Exception as error:  # whatever a user's code raises
            logger.exception("the logits processor %s could not be made", name)
            raise _wrong_arguments(name, f"raised {type(error).__name__}") from error
        if not callable(made):
            raise _wrong_arguments(name, "gave nothing that can be called")
        processor = cast("LogitsProcessor", made)
        return processor


def _check_importable(given: object) -> None:
    """A function itself goes to the engine's process by its name, an object with its class's."""
    if isinstance(given, (str, LogitsProcessorConstructor)):
        return
    try:
        pickle.dumps(given)
        if getattr(given, "__module__", None) != "__main__":
            return
        reason = "it is the program's own"
    except Exception as error:  # whatever a user's code raises
        reason = str(error)
    raise InvalidRequestError(
        f"logits_processors: {processor_name(given)} cannot be sent to the engine's process ({reason}): define it in a "
        "module that can be imported, or leave engine_process out.",
        param="logits_processors",
    )


def default_sampling_params(defaults: Mapping[str, float | int]) -> SamplingParams:
    """The parameters of a request that gives none."""
    return SamplingParams(**dict(defaults))  # type: ignore[arg-type]  # the names are those of numbers


def _wrong_arguments(name: str, how: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The logits processor {name} {how} when it was made: check its args and kwargs.", param="logits_processors"
    )


def _load(name: str) -> Any:
    """What a dotted name of the operator's leads to."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"logits_processors names {name!r}, which cannot be imported: {error}.") from error
    if not callable(found):
        raise ConfigError(f"logits_processors names {name!r}, which cannot be called.")
    return found
