"""Two fields that say what an output must look like: OpenAI's `response_format` and vLLM's `structured_outputs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from paged_backend.config import unknown_name_message
from paged_backend.errors import InvalidRequestError
from paged_backend.sampling_params import StructuredOutputsParams

_FORMATS = ("text", "json_object", "json_schema", "structural_tag")
_SCHEMA_FIELDS = ("name", "description", "schema", "strict")
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
    _check_names("structured_outputs", given, _NAMES)
    return StructuredOutputsParams(**given)


def _by_response_format(response_format: Mapping[str, Any]) -> StructuredOutputsParams | None:
    kind = response_format.get("type")
    if kind not in _FORMATS:
        raise _refusal(f"type must be one of {', '.join(_FORMATS)}, got {kind!r}")
    if kind == "structural_tag":
        return _by_tags(response_format)
    _check_names("response_format", response_format, ("type", "json_schema") if kind == "json_schema" else ("type",))
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True, param="response_format")
    wanted = response_format.get("json_schema")
    if not isinstance(wanted, Mapping):
        raise _refusal('json_schema must be an object, with the schema under "schema"')
    _check_names("response_format.json_schema", wanted, _SCHEMA_FIELDS)
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
    try:
        text = json.dumps(dict(response_format), ensure_ascii=False)
    except RecursionError:
        raise _refusal("it is nested too deeply") from None
    return StructuredOutputsParams(structural_tag=text, param="response_format")


def _check_names(place: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise InvalidRequestError(unknown_name_message(f"field in {place}:", str(name), known), param=place)


def _refusal(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"response_format: {what}.", param="response_format")
