"""The conformance list: every row of every table."""

from __future__ import annotations

from tests.conformance import (
    conversation_rows,
    limit_rows,
    object_rows,
    prompt_rows,
    route_rows,
    sampling_rows,
    structured_rows,
    text_rows,
    tool_rows,
    vllm_rows,
)
from tests.conformance.case import Case

_TABLES = (
    sampling_rows,
    text_rows,
    vllm_rows,
    prompt_rows,
    tool_rows,
    structured_rows,
    conversation_rows,
    object_rows,
    limit_rows,
    route_rows,
)
ROWS: tuple[Case, ...] = tuple(case for table in _TABLES for case in table.ROWS)
