"""The constraint that makes an answer a call, and lets a model reason before it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from paged_backend.sampling_params import StructuredOutputsParams

_GRAMMAR = """\
start: {reasoning} SPACE? answer
THOUGHT: /(?s:.)*/
SPACE: /[ \\t\\r\\n]{{1,8}}/
answer: %json {schema}
"""


def forced_answer(
    schema: Mapping[str, Any], marker_ids: tuple[int, int] | None, is_open: bool | None
) -> StructuredOutputsParams:
    """What makes an answer follow a schema: all of it, or what comes after its reasoning.

    Args:
        schema: from `ToolUse.schema`.
        marker_ids: tokens that begin and end the reasoning; None where there is none.
        is_open: whether the prompt has opened it (True) or closed it (False); None where the model decides.
    """
    if marker_ids is None or is_open is False:
        return StructuredOutputsParams(json=schema, param="tools")
    begin, end = (f"<[{token_id}]>" for token_id in marker_ids)
    reasoning = f"THOUGHT {end}" if is_open else f"({begin} THOUGHT {end})?"
    # Nothing in a tool's schema may loosen it.
    strict = {**schema, "x-guidance": {"lenient": False, "coerce_one_of": False, "whitespace_flexible": True}}
    return StructuredOutputsParams(
        grammar=_GRAMMAR.format(reasoning=reasoning, schema=json.dumps(strict)), param="tools"
    )
