"""API keys: a name, which logs and metrics may show, and a secret, which nothing shows."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from paged_backend.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key.

    Attributes:
        name: what logs, metrics and limits call it.
        secret: what clients send.
    """

    name: str
    secret: str = field(repr=False)

    @property
    def digest(self) -> bytes:
        """What is compared with a client's: of one length, and without the secret's beginning in its own."""
        return digest(self.secret)

    @property
    def tenant(self) -> str:
        """The engine's name for the key's owner: the same on every server, and no way back to the secret."""
        return hashlib.sha256(b"tenant:" + self.digest).hexdigest()[:32]


def digest(secret: str) -> bytes:
    """A secret's SHA-256."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def keys_from_config(value: object) -> tuple[ApiKey, ...]:
    """Keys as a YAML file has them: one, a list of them, or a mapping of names to keys; None is none.

    Those without a name are called key1, key2 ... by their place.

    Raises:
        ConfigError: it is something else, or an empty list: that would open the server without a word.
    """
    if value is None:
        return ()
    if isinstance(value, Mapping):
        named = list(value.items())
    elif isinstance(value, (list, tuple)):
        named = [(key.name, key.secret) if isinstance(key, ApiKey) else (None, key) for key in value]
    else:
        named = [(None, value)]
    if not named:
        raise ConfigError("server.api_key holds no key: give one, or null to let everybody in.")
    return _checked(named, "server.api_key")


def keys_from_words(words: Iterable[str], source: str) -> tuple[ApiKey, ...]:
    """Keys from the words of an environment variable or the lines of a file, each KEY or NAME:KEY.

    Args:
        source: begins the error's message.

    Raises:
        ConfigError: a word is neither, or there are none: most likely a secret that failed to load.
    """
    named: list[tuple[object, object]] = []
    for word in words:
        name, separator, secret = word.partition(":")
        named.append((name, secret) if separator else (None, word))
    if not named:
        raise ConfigError(f"{source} holds no key: give it one, or leave it out to let everybody in.")
    return _checked(named, source)


def words_of(keys: Iterable[ApiKey]) -> str:
    """The text that `keys_from_words` reads these keys from, when it is split at spaces."""
    return " ".join(f"{key.name}:{key.secret}" for key in keys)


def keys_from_file_text(text: str, source: str) -> tuple[ApiKey, ...]:
    """Keys from a file: one a line, KEY or NAME:KEY; empty lines and those that begin with # are skipped.

    Raises:
        ConfigError: as from `keys_from_words`.
    """
    lines = [line.strip() for line in text.splitlines()]
    return keys_from_words([line for line in lines if line and not line.startswith("#")], source)


def _checked(named: list[tuple[object, object]], source: str) -> tuple[ApiKey, ...]:
    """The keys, if all of them are good. A message may get into a log, so none repeats what was given."""
    keys = []
    for place, (name, secret) in enumerate(named, start=1):
        if not isinstance(secret, str) or not secret:
            raise ConfigError(f"{source} must be a quoted string that is not empty, or several in a list.")
        if not (secret.isascii() and secret.isprintable()) or " " in secret:
            raise ConfigError(f"{source} must be printable ASCII without spaces, as it travels in a header.")
        if name is None:
            name = f"key{place}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{source}: the name of a key (number {place}) must start with a letter or digit and hold only "
                "letters, digits, '.', '_' and '-'. A key with a colon in it needs a name before it: NAME:KEY."
            )
        keys.append(ApiKey(name, secret))
    if len({key.secret for key in keys}) < len(keys):
        raise ConfigError(f"{source} holds a key twice: each is a tenant of its own.")
    twice = [name for name, count in Counter(key.name for key in keys).items() if count > 1]
    if twice:
        raise ConfigError(f"{source} gives two keys the name {twice[0]!r}: names tell keys apart.")
    return tuple(keys)
