"""The API key that comes as a bearer token, and whose it is."""

from __future__ import annotations

from paged_backend.handlers.access.gate import Caller, Gate
from paged_backend.handlers.openai.errors import ProtocolError


def check_bearer(authorization: str, gate: Gate) -> Caller:
    """Who sends this Authorization header ("" where there is none).

    Raises:
        ProtocolError: 401, the server has keys and the header carries none of them.
    """
    scheme, _, given = authorization.partition(" ")
    caller = gate.caller(given.strip() if scheme.lower() == "bearer" else "")
    if caller is None:
        raise ProtocolError(
            "No API key, or a wrong one: send it as `Authorization: Bearer KEY`.",
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
        )
    return caller
