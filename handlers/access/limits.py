"""What an operator allows: how large one request may be, and how many a key may send."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paged_backend.config import unknown_name_message
from paged_backend.errors import ConfigError, InvalidRequestError
from paged_backend.sampling_params import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_STOP_STRINGS

DEFAULT = "default"
"""The name under which server.key_limits has the limits of keys that are not named there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """How large one request may be: more is refused with 400 before anything is computed.

    Attributes:
        max_n: most samples or beams of a prompt (n, best_of).
        max_stop_strings: most stop strings; up to 4.
        max_stop_length: most characters of a stop string, or of one of bad_words.
        max_bad_words: most bad_words, and most sequences of bad_words_token_ids; up to 1024.
        max_bad_word_tokens: most tokens of such a sequence; up to 64.
        max_prompts: most prompts in a request.
        max_messages: most messages in a conversation.
        max_json_depth: most levels of lists and objects in a body.
    """

    max_n: int = 128
    max_stop_strings: int = MAX_STOP_STRINGS
    max_stop_length: int = 1000
    max_bad_words: int = MAX_BAD_WORDS
    max_bad_word_tokens: int = MAX_BAD_WORD_TOKENS
    max_prompts: int = 2048
    max_messages: int = 4096
    max_json_depth: int = 128

    def __post_init__(self) -> None:
        ceilings = {
            "max_stop_strings": (0, MAX_STOP_STRINGS),
            "max_bad_words": (0, MAX_BAD_WORDS),
            "max_bad_word_tokens": (1, MAX_BAD_WORD_TOKENS),
        }
        for field in dataclasses.fields(self):
            low, high = ceilings.get(field.name, (1, 2**31))
            value = getattr(self, field.name)
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(
                    f"server.request_limits.{field.name} must be an integer in {low}..{high}, got {value!r}."
                )

    def check(self, body: Mapping[str, Any]) -> None:
        """Looks at a request's fields; what is of a wrong type is left for those who know the types.

        Raises:
            InvalidRequestError: one asks for too much.
        """
        for name in ("n", "best_of"):
            value = body.get(name)
            if type(value) is int and value > self.max_n:
                raise InvalidRequestError(f"{name} must be in 1..{self.max_n} (max_n), got {value}.", param=name)
        for name in ("stop", "stop_sequences"):
            stops = body.get(name)
            if isinstance(stops, list):
                self._check_count(len(stops), name, "strings", "max_stop_strings")
            for text in stops if isinstance(stops, list) else (stops,):
                if isinstance(text, str):
                    self._check_count(len(text), name, "characters", "max_stop_length")
        self._check_bad_words(body)
        prompts = body.get("prompt")
        if isinstance(prompts, list) and prompts and isinstance(prompts[0], (str, list)):
            self._check_count(len(prompts), "prompt", "prompts", "max_prompts")
        for name in ("messages", "input"):
            if isinstance(body.get(name), list):
                self._check_count(len(body[name]), name, "messages", "max_messages")

    def _check_bad_words(self, body: Mapping[str, Any]) -> None:
        for name, kind, what, limit in (
            ("bad_words", str, "characters", "max_stop_length"),
            ("bad_words_token_ids", list, "tokens in a sequence", "max_bad_word_tokens"),
        ):
            words = body.get(name)
            if isinstance(words, list):
                self._check_count(len(words), name, "entries", "max_bad_words")
                for word in words:
                    if isinstance(word, kind):
                        self._check_count(len(word), name, what, limit)

    def check_depth(self, value: Any) -> None:
        """Looks how deep lists and objects lie in each other.

        Raises:
            InvalidRequestError: deeper than is allowed.
        """
        level = [value]
        for _ in range(self.max_json_depth):
            inner: list[Any] = []
            for one in level:
                parts = one.values() if isinstance(one, Mapping) else one
                inner += [part for part in parts if isinstance(part, (dict, list))]
            if not inner:
                return
            level = inner
        raise InvalidRequestError(
            f"The body has lists and objects in each other more than {self.max_json_depth} deep, which is the most "
            "that this server takes (max_json_depth).",
            param="body",
        )

    def _check_count(self, count: int, name: str, what: str, limit: str) -> None:
        most = getattr(self, limit)
        if count > most:
            raise InvalidRequestError(f"{name} takes at most {most} {what} ({limit}), got {count}.", param=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """How much the requests of one key may be together; None means no bound.

    Attributes:
        max_concurrent_requests: most that run or wait at once; each prompt of a request counts.
        requests_per_minute: most that may begin in a minute, at once or one by one.
        tokens_per_minute: most tokens in a minute. A request takes those of its prompt and all that it may generate
            (max_tokens of each sample), and gives back what it did not.
    """

    max_concurrent_requests: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(
                    f"server.key_limits: {field.name} must be an integer of at least 1, or null, got {value!r}."
                )

    @property
    def bounds_anything(self) -> bool:
        """Whether there is a bound."""
        return any(getattr(self, field.name) is not None for field in dataclasses.fields(self))


def request_limits(value: object) -> RequestLimits:
    """The limits of a YAML file's server.request_limits.

    Raises:
        ConfigError: a key is unknown or a value is wrong.
    """
    if isinstance(value, RequestLimits):
        return value
    return RequestLimits(**_known(value, RequestLimits, "server.request_limits"))


def key_limits(value: object) -> dict[str, KeyLimits]:
    """The limits of a YAML file's server.key_limits, by the key's name.

    Raises:
        ConfigError: a key is unknown or a value is wrong.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError("server.key_limits must be a mapping of names of keys, or `default`, to limits.")
    result = {}
    for name, limits in value.items():
        if not isinstance(name, str):
            raise ConfigError(f"server.key_limits has the names of keys as its keys, got {name!r}.")
        known = limits if isinstance(limits, KeyLimits) else None
        result[name] = known or KeyLimits(**_known(limits, KeyLimits, f"server.key_limits.{name}"))
    return result


def _known(value: object, kind: type[Any], place: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place} must be a mapping of keys to values, got {type(value).__name__}.")
    names = tuple(field.name for field in dataclasses.fields(kind))
    for name in value:
        if name not in names:
            raise ConfigError(unknown_name_message(f"{place} key", str(name), names))
    return dict(value)
