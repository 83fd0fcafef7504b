"""Two fields that say what an output must look like: OpenAI's `response_format` and vLLM's `structured_outputs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.protocol.base import unknown_field
from paged_backend.handlers.openai.protocol.objects import OBJECT, STRING, ObjectKind, Schema, list_of, of_type
from paged_backend.sampling_params import StructuredOutputsParams

JSON_SCHEMA = ObjectKind(
    {"name": {**STRING, "minLength": 1}, "schema": OBJECT},
    {"description": STRING, "strict": {"type": "boolean"}},
)
STRUCTURE = ObjectKind({"begin": STRING, "schema": OBJECT, "end": STRING})
FORMATS = MappingProxyType(
    {
        "text": ObjectKind(of_type("text")),
        "json_object": ObjectKind(of_type("json_object")),
        "json_schema": ObjectKind({**of_type("json_schema"), "json_schema": JSON_SCHEMA.schema()}),
        "structural_tag": ObjectKind(
            {
                **of_type("structural_tag"),
                "structures": {**list_of(STRUCTURE), "minItems": 1},
                "triggers": {"type": "array", "items": STRING},
            }
        ),
    }
)
"""What an output may look like, by the format's type."""

FORMAT_SCHEMA: Schema = {"anyOf": [*(kind.schema() for kind in FORMATS.values()), {"type": "null"}]}
_NAMES = tuple(field.name for field in fields(StructuredOutputsParams) if field.name != "param")


def structured_outputs(
    response_format: Mapping[str, Any] | None, structure: Mapping[str, Any] | None
) -> StructuredOutputsParams | None:
    """What the engine is asked for by the two; None where the output may be anything.

    Raises:
        InvalidRequestError: both constrain the output, or one is wrong; `param` is its name.
    """
    by_format = None if response_format is None else _by_response_format(response_format)
    if structure is None:
        return by_format
    if by_format is not None:
        raise InvalidRequestError(
            "response_format and structured_outputs both constrain the output: give one of them.",
            param="structured_outputs",
        )
    given = {name: value for name, value in structure.items() if value is not None}
    for name in given:
        if name not in _NAMES:
            raise unknown_field(name, _NAMES, "structured_outputs.")
    return StructuredOutputsParams(**given)


def _by_response_format(response_format: Mapping[str, Any]) -> StructuredOutputsParams | None:
    kind = response_format.get("type")
    if not isinstance(kind, str) or kind not in FORMATS:
        raise _refusal(f"type must be one of {', '.join(FORMATS)}, got {kind!r}")
    FORMATS[kind].check(response_format, "response_format")
    if kind == "structural_tag":
        return _by_tags(response_format)
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True, param="response_format")
    wanted = response_format.get("json_schema")
    if not isinstance(wanted, Mapping):
        raise _refusal('json_schema must be an object, with the schema under "schema"')
    JSON_SCHEMA.check(wanted, "response_format.json_schema")
    name, schema = wanted.get("name"), wanted.get("schema")
    if not isinstance(name, str) or not name:
        raise _refusal("json_schema.name must be a string that is not empty")
    for field, type_, what in (("description", str, "a string"), ("strict", bool, "true or false")):
        if not isinstance(wanted.get(field), (type_, type(None))):
            raise _refusal(f"json_schema.{field} must be {what}")
    if not isinstance(schema, Mapping):
        raise _refusal("json_schema.schema must be a JSON schema: an object")
    # Strict or not, the schema is kept to: nothing is gained by an output that does not fit it.
    return StructuredOutputsParams(json=schema, param="response_format")


def _by_tags(response_format: Mapping[str, Any]) -> StructuredOutputsParams:
    structures = response_format.get("structures")
    for index, structure in enumerate(structures if isinstance(structures, list) else ()):
        if isinstance(structure, dict):
            STRUCTURE.check(structure, f"response_format.structures.{index}")
    try:
        given = {name: value for name, value in response_format.items() if value is not None}
        text = json.dumps(given, ensure_ascii=False)
    except RecursionError:
        raise _refusal("it is nested too deeply") from None
    return StructuredOutputsParams(structural_tag=text, param="response_format")


def _refusal(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"response_format: {what}.", param="response_format")
