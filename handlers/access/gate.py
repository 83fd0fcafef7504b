"""The gate of one server: from what a client sends to who it is. All models behind it share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paged_backend.errors import ConfigError
from paged_backend.handlers.access.api_key import ApiKey
from paged_backend.handlers.access.key_ring import KeyRing
from paged_backend.handlers.access.limits import DEFAULT, KeyLimits
from paged_backend.handlers.access.quota import Quota


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request.

    Attributes:
        name: the key's name, for logs; None where nobody was asked for a key.
        tenant: what the engine calls them; None where nobody was asked.
        quota: what their requests may take together; None where that is not bounded.
    """

    name: str | None = None
    tenant: str | None = None
    quota: Quota | None = None


ANYBODY = Caller()


class Gate:
    """Knows the server's keys and how much each has taken. Ask it from one thread; quotas are for any.

    Args:
        keys: the server's; none lets everybody in.
        limits: by the key's name; "default" is for keys that are not named, and for all clients together where the
            server asks for no key.

    Raises:
        ConfigError: limits are given for a key that is not there.
    """

    def __init__(self, keys: KeyRing | None = None, limits: Mapping[str, KeyLimits] | None = None) -> None:
        self._keys = keys
        self._limits = dict(limits or {})
        self._quotas: dict[str | None, Quota | None] = {}
        known = [] if keys is None else [key.name for key in keys.keys]
        strangers = sorted(set(self._limits) - set(known) - {DEFAULT})
        if strangers:
            raise ConfigError(
                f"server.key_limits has limits for {', '.join(strangers)}, but there is no key of that name. "
                f"Names: {', '.join(known) or 'none'}."
            )

    @property
    def asks_for_key(self) -> bool:
        """Whether clients need a key."""
        return self._keys is not None

    def caller(self, given: str) -> Caller | None:
        """Who sends this key ("" for none); None where it is none of the server's."""
        if self._keys is None:
            return Caller(quota=self._quota(None))
        key: ApiKey | None = self._keys.find(given)
        return None if key is None else Caller(key.name, key.tenant, self._quota(key.name))

    def metrics_text(self) -> str:
        """How often keys met their limits, as a Prometheus exposition; "" where there are none. A key's samples are
        there from its first request on.

        Written by hand: BentoML's processes must not import Prometheus' client before they know how they share it.
        """
        if not self._limits:
            return ""
        lines = [
            "# HELP vllm:key_limit_rejections_total Requests that were refused with 429, by the key and its limit.\n",
            "# TYPE vllm:key_limit_rejections_total counter\n",
        ]
        for name, quota in self._quotas.items():
            if quota is not None:
                for reason, count in quota.num_refused.items():
                    labels = f'key="{name or DEFAULT}",reason="{reason}"'
                    lines.append(f"vllm:key_limit_rejections_total{{{labels}}} {float(count)}\n")
        return "".join(lines)

    def _quota(self, name: str | None) -> Quota | None:
        if name not in self._quotas:
            limits = self._limits.get(name or DEFAULT, self._limits.get(DEFAULT, KeyLimits()))
            self._quotas[name] = Quota(limits, name) if limits.bounds_anything else None
        return self._quotas[name]
