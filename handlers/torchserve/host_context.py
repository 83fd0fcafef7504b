"""What the handler uses of TorchServe's `Context`, spelled out, as TorchServe itself carries no types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class HostContext(Protocol):
    """TorchServe's context of one call: requests are addressed by their position in the batch."""

    model_name: str
    model_yaml_config: Mapping[str, Any]
    system_properties: Mapping[str, Any]

    request_ids: dict[int, str]
    """The batch's requests. TorchServe writes replies for the positions that are still in it after the call."""

    stopping_criteria: Sequence[Callable[[Any], bool | None]] | None
    """One per position: False from it says that more follows, True that this was the last, None that it is all."""

    def get_all_request_header(self, idx: int) -> Mapping[str, Any]:
        """Headers as the client spelled them, and a mapping for each part of the body."""
        ...

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        """The status line; it counts with a request's first reply only."""
        ...

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """A header; it counts with a request's first reply only."""
        ...
