"""Which requests have a deadline, the nearest first."""

from __future__ import annotations

import heapq

from paged_backend.engine.request import RequestState


class Deadlines:
    """The requests with a deadline. One that ends earlier stays behind until it comes to the top, or until such ones
    are the majority."""

    __slots__ = ("_heap", "_num_added")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, RequestState]] = []
        self._num_added = 0

    def add(self, state: RequestState, num_live: int) -> None:
        """Takes a request in, if it has a deadline.

        Args:
            num_live: requests that have not ended, at least as many as those in here.
        """
        deadline_s = state.request.deadline_s
        if deadline_s is None:
            return
        if len(self._heap) > 2 * num_live + 16:
            self._heap = [entry for entry in self._heap if not entry[2].over]
            heapq.heapify(self._heap)
        self._num_added += 1
        heapq.heappush(self._heap, (deadline_s, self._num_added, state))

    def take_overdue(self, now_s: float) -> list[RequestState]:
        """Those whose deadline has passed and that have not ended; each is given once."""
        overdue = []
        while self._heap and self._heap[0][0] <= now_s:
            state = heapq.heappop(self._heap)[2]
            if not state.over:
                overdue.append(state)
        return overdue

    def __bool__(self) -> bool:
        return bool(self._heap)
