"""The responses that one model is making, by id: how somebody else than their reader can end them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.engine_port import StreamPort


class LiveResponses:
    """Finds a response by its tenant and its id, from its acceptance until the last of its requests is over.

    Each model has its own: the same id on two of them is two responses. For any thread: requests end on their engine's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._responses: dict[tuple[str | None, str], Sequence[StreamPort]] = {}

    def __len__(self) -> int:
        return len(self._responses)

    def __contains__(self, key: tuple[str | None, str]) -> bool:
        """Whether a tenant's response of this id is being made."""
        return key in self._responses

    def check_free(self, tenant: str | None, response_id: str) -> None:
        """Refuses an id that could not be told from that of a response which is being made.

        Raises:
            InvalidRequestError: there is one.
        """
        if (tenant, response_id) in self:
            raise InvalidRequestError(
                f"request_id {response_id!r} is already in use: wait for its end or choose another.", param="request_id"
            )

    def add(self, tenant: str | None, response_id: str, requests: Sequence[StreamPort]) -> None:
        """Makes a response known, under an id that is free, until all of its engine's requests are over."""
        key = tenant, response_id
        num_running = len(requests)
        with self._lock:
            assert key not in self._responses, "ids are checked before anything is submitted"
            self._responses[key] = requests

        def over(_: int) -> None:
            nonlocal num_running
            with self._lock:
                num_running -= 1
                if not num_running:
                    del self._responses[key]

        for request in requests:
            request.add_done_callback(over)

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
