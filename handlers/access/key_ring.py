"""The keys that are good now: given once, or read from a file that may change while the server runs."""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from paged_backend.errors import ConfigError
from paged_backend.handlers.access.api_key import ApiKey, digest, keys_from_file_text

_logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
"""How often, at most, the file is looked at: so long a key that was taken out of it may still be let in."""


class KeyRing:
    """Finds a key among the server's. Use it from one thread.

    Args:
        keys: the keys; none lets everybody in, where there is no file either.
        file: where they are read from instead, now and whenever it has changed. A file that cannot be used later on is
            logged, and the keys stay as they were.

    Raises:
        ConfigError: the file cannot be read, or holds no keys.
    """

    def __init__(
        self, keys: Sequence[ApiKey] = (), *, file: Path | None = None, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        assert file is None or not keys, "keys come from one place"
        self._file = file
        self._clock_s = clock_s
        self._state = None if file is None else _state_of(file)
        self._looked_s = clock_s()
        self._set(tuple(keys) if file is None else read_key_file(file))

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """The keys as of now."""
        self._refresh()
        return self._keys

    def find(self, given: str) -> ApiKey | None:
        """The key that a client has sent; None where it is none of ours.

        Digests are compared, and all of them, so that neither content, length nor place of a key can be timed.
        """
        self._refresh()
        sent = digest(given)
        same = [hmac.compare_digest(sent, known) for known in self._digests]
        return self._keys[same.index(True)] if any(same) else None

    def _set(self, keys: tuple[ApiKey, ...]) -> None:
        self._keys = keys
        self._digests = [key.digest for key in keys]

    def _refresh(self) -> None:
        if self._file is None or self._clock_s() - self._looked_s < CHECK_EVERY_S:
            return
        self._looked_s = self._clock_s()
        state = _state_of(self._file)
        if state == self._state:
            return
        self._state = state
        try:
            self._set(read_key_file(self._file))
        except ConfigError as error:
            _logger.error("The API keys stay as they were: %s", error)
        else:
            _logger.warning("The API keys were read again: %s.", ", ".join(key.name for key in self._keys))


def read_key_file(file: Path) -> tuple[ApiKey, ...]:
    """The keys of a file.

    Raises:
        ConfigError: it cannot be read, or holds no keys.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"server.api_key_file {str(file)!r} cannot be read: {_reason(error)}.") from None
    return keys_from_file_text(text, f"server.api_key_file {str(file)!r}")


def _state_of(file: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; None where there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _reason(error: OSError | UnicodeDecodeError) -> str:
    """Why, without a byte of the file's."""
    return error.strerror or "an error" if isinstance(error, OSError) else "it is not UTF-8"
