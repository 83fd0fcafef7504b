"""What more than one of the parameters' files checks."""

from __future__ import annotations

from paged_backend.errors import InvalidRequestError


def check_integer(name: str, value: object) -> None:
    """Refuses what is no integer; True is none.

    Raises:
        InvalidRequestError: it is not; `param` is the name.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, got {value!r}.", param=name)


def check_token_id(name: str, value: object) -> None:
    """Refuses what can be no token's id.

    Raises:
        InvalidRequestError: it is no integer, or below 0; `param` is the name.
    """
    check_integer(name, value)
    assert isinstance(value, int)
    if value < 0:
        raise InvalidRequestError(f"{name} must hold token ids, got {value}.", param=name)
