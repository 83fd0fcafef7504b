"""The API key that comes as a bearer token, and whose it is."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from paged_backend.handlers.openai.errors import ProtocolError


def check_bearer(authorization: str, api_keys: Sequence[str]) -> str | None:
    """Looks for the Authorization header's key ("" where there is no header) among the server's.

    Returns:
        The tenant: a name for the key that does not tell it. None where the server has no keys, and asks for none.

    Raises:
        ProtocolError: 401, the header carries none of them.
    """
    if not api_keys:
        return None
    scheme, _, given = authorization.partition(" ")
    # Digests are compared, and all of them, so that neither content, length nor place of a key can be timed.
    same = [hmac.compare_digest(_digest(given.strip()), _digest(api_key)) for api_key in api_keys]
    if not (any(same) and scheme.lower() == "bearer"):
        raise ProtocolError(
            "No API key, or a wrong one: send it as `Authorization: Bearer KEY`.",
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
        )
    return hashlib.sha256(b"tenant:" + _digest(api_keys[same.index(True)])).hexdigest()[:32]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
