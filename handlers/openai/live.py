"""The responses that are being made, by id: how somebody else than their reader can end them."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakValueDictionary

from paged_backend.handlers.openai.engine_port import StreamPort


class AcceptedRequests(list[StreamPort]):
    """The engine's requests of one response. Whoever makes the response holds it until the response is over."""


class LiveResponses:
    """Finds a response by its id and its tenant.

    Nothing has to be taken out again: a response is known for as long as somebody makes it. Use it from one thread.
    """

    def __init__(self) -> None:
        self._responses: WeakValueDictionary[tuple[str | None, str], AcceptedRequests] = WeakValueDictionary()

    def add(self, tenant: str | None, response_id: str, requests: AcceptedRequests) -> None:
        """Makes a response known; one of the same id that is over gives its place."""
        self._responses[tenant, response_id] = requests

    def cancel(self, tenant: str | None, response_ids: Sequence[str]) -> list[str]:
        """Ends those of the tenant's responses; one that is unknown, over, or another tenant's is left out.

        Returns:
            The ids of those that were still being made.
        """
        cancelled = []
        for response_id in response_ids:
            requests = self._responses.get((tenant, response_id), ())
            if sum(request.abort() for request in requests):  # each of them must be told
                cancelled.append(response_id)
        return cancelled
