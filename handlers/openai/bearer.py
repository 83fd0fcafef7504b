"""The API key that comes as a bearer token."""

from __future__ import annotations

import hashlib
import hmac

from paged_backend.handlers.openai.errors import ProtocolError


def check_bearer(authorization: str, api_key: str) -> None:
    """Compares the Authorization header ("" where there is none) with the key.

    Raises:
        ProtocolError: 401, it does not carry the key.
    """
    scheme, _, given = authorization.partition(" ")
    # Digests are compared, so that neither content nor length of the key can be timed.
    same = hmac.compare_digest(_digest(given.strip()), _digest(api_key))
    if not (same and scheme.lower() == "bearer"):
        raise ProtocolError(
            "No API key, or a wrong one: send it as `Authorization: Bearer KEY`.",
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
