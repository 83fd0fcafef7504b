"""The conformance list: every row of every table."""

from __future__ import annotations

from tests.conformance import (
    conversation_rows,
    limit_rows,
    prompt_rows,
    route_rows,
    sampling_rows,
    text_rows,
    tool_rows,
    vllm_rows,
)
from tests.conformance.case import Case

ROWS: tuple[Case, ...] = tuple(
    case
    for table in (
        sampling_rows,
        text_rows,
        prompt_rows,
        tool_rows,
        vllm_rows,
        conversation_rows,
        limit_rows,
        route_rows,
    )
    for case in table.ROWS
)
