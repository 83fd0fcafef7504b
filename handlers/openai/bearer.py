"""The API key that a request carries, and whose it is."""

from __future__ import annotations

from collections.abc import Mapping

from paged_backend.handlers.access.gate import Caller, Gate
from paged_backend.handlers.openai.errors import ProtocolError


def check_key(headers: Mapping[str, str], gate: Gate) -> Caller:
    """Who sends these headers: the key is a bearer token, or comes as x-api-key, as Anthropic's clients send it.

    Args:
        headers: by lower-cased name.

    Raises:
        ProtocolError: 401, the server has keys and the headers carry none of them.
    """
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if not scheme:
        scheme, given = "bearer", headers.get("x-api-key", "")
    caller = gate.caller(given.strip() if scheme.lower() == "bearer" else "")
    if caller is None:
        raise ProtocolError(
            "No API key, or a wrong one: send it as `Authorization: Bearer KEY`.",
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
        )
    return caller
