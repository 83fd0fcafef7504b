"""What the configuration's parts check, each raising ConfigError, and what they understand by other names."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from paged_backend.errors import ConfigError

DEFAULT_PARAMETERS: Mapping[str, str] = MappingProxyType(
    {
        **{name: name for name in ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")},
        "max_new_tokens": "max_tokens",
    }
)
"""What is taken out of a generation_config.json, and the sampling parameters that this stands for; vLLM's choice."""


_LONGEST_NAME = 100
"""Characters of an unknown name that are repeated: it may be all of a request's body."""


def unknown_name_message(kind: str, name: str, known: Sequence[str]) -> str:
    """One sentence that refuses a name and offers the nearest known one."""
    name = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.65)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else f" Known: {', '.join(sorted(known))}."
    return f"Unknown {kind} {name!r}.{hint}"


def dtype_named(value: Any) -> Any:
    """The dtype that vLLM's other name for it means; anything else as it is."""
    return {"float": "float32", "half": "float16"}.get(value, value) if isinstance(value, str) else value


def cache_dtype_named(value: Any) -> Any:
    """The same for what a cache is held in."""
    return "fp8_e4m3" if value == "fp8" else dtype_named(value)


def texts(name: str, value: object) -> tuple[str, ...]:
    """A list of texts, or one alone."""
    if not isinstance(value, (str, list, tuple)):
        raise ConfigError(f"{name} must be a list of strings, got {value!r}.")
    listed = (value,) if isinstance(value, str) else tuple(value)
    for text in listed:
        check_text(name, text)
    return listed


def sizes(name: str, value: object) -> tuple[int, ...]:
    """Whole numbers from 1 on, each once, the smallest first; or one alone. A command line gives them as text."""
    listed = value if isinstance(value, (list, tuple)) else (value,)
    listed = [int(size) if isinstance(size, str) and size.isdecimal() else size for size in listed]
    for size in listed:
        check_range(name, size, low=1)
    return tuple(sorted(set(listed)))


def overrides(value: Any) -> dict[str, Any]:
    """What `override_generation_config` stands for."""
    values = json_object("override_generation_config", value) or {}
    for name in values:
        if name not in DEFAULT_PARAMETERS:
            message = unknown_name_message("value of override_generation_config", name, tuple(DEFAULT_PARAMETERS))
            raise ConfigError(message)
    return values


def json_object(name: str, value: Any) -> dict[str, Any] | None:
    """Names and values, given as a mapping or as JSON."""
    given = value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if value is None and given is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{name} must be a mapping of names to values, got {given!r}.")
    return dict(value)


def check_text(name: str, value: object) -> None:
    """Refuses what is no string, or an empty one."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} must be a string that is not empty, got {value!r}.")


def check_gib(name: str, value: object) -> None:
    """Refuses what is no number of GiB."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 2**20:
        raise ConfigError(f"{name} must be a number of GiB above 0, got {value!r}.")


def check_bool(name: str, value: object) -> None:
    """Refuses what is neither true nor false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}.")


def check_seconds(name: str, value: object, *, optional: bool = False, above_zero: bool = True) -> None:
    """Refuses what is no number of seconds; None only where it is optional."""
    if optional and value is None:
        return
    known = not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= value <= sys.float_info.max
    if not known or (above_zero and value == 0):
        raise ConfigError(
            f"{name} must be a number of seconds {'above 0' if above_zero else 'from 0 on'}, got {value!r}."
        )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuses what is not one of a few values."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def check_range(name: str, value: object, *, low: int, high: int | None = None, optional: bool = False) -> None:
    """Refuses what is no integer within bounds; None only where it is optional."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be an integer, got {value!r}.")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"in {low}..{high}"
        raise ConfigError(f"{name} must be {bounds}, got {value}.")
