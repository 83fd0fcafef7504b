"""/openapi.json against both live hosts: schemathesis asks what it allows and what it forbids, and judges the answers.

Nothing may be answered with a 5xx, a status or a body that the document does not tell of, or be taken against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.serving.conftest import Host

schemathesis = pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed: pip install -c constraints.txt -e '.[clients]' brings it"
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

MODEL = "second"
"""Its context is short, and so is what it says where nothing bounds it."""

NUM_EXAMPLES = 40
MOST_OPTIONAL_FIELDS = 3
"""A body with all fields at once is refused for one of them as good as always."""

ONE_OF = (("prompt", "messages"), ("id", "request_id"))
"""Fields of which exactly one must be there, on the routes that have both as optional ones."""


def test_it_does_what_the_document_says(each_host: Host) -> None:
    url = each_host.url
    operations = [one.ok() for one in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()]
    document = httpx.get(f"{url}/openapi.json", timeout=60).json()
    seen: Counter[tuple[str, int]] = Counter()
    for operation in operations:
        schema = _body_schema(operation, document)
        for mode in schemathesis.GenerationMode:
            if mode.is_positive or operation.body:  # without a body there is nothing that could be wrong
                _ask(url, operation, mode, schema, seen)
    answered = {label for label, status in seen if status == 200}
    assert answered == {operation.label for operation in operations}, seen


def _ask(url: str, operation: Any, mode: Any, schema: Mapping[str, Any], seen: Counter[tuple[str, int]]) -> None:
    """Sends requests that the document allows, or (a negative mode) forbids; counts the answers by status."""
    checks = schemathesis.checks
    every = [
        checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.response_headers_conformance,
        checks.negative_data_rejection,
    ]

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    def ask(case: Any, data: st.DataObject) -> None:
        if mode.is_positive:
            _make_likely(case, schema, data)
        response = case.call(base_url=url, timeout=120)
        seen[operation.label, response.status_code] += 1
        case.validate_response(response, checks=every)

    ask()


def _body_schema(operation: Any, document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the operation's body; nothing for one that has none."""
    described = document["paths"][operation.path][operation.method.lower()].get("requestBody")
    if described is None:
        return {}
    name = described["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    schema: Mapping[str, Any] = document["components"]["schemas"][name]
    return schema


def _make_likely(case: Any, schema: Mapping[str, Any], data: st.DataObject) -> None:
    """Leaves few of a body's optional fields, and half of the time names a model that is there."""
    there = data.draw(st.booleans())
    if there and "model" in (case.path_parameters or {}):
        case.path_parameters["model"] = MODEL
    if not isinstance(case.body, dict):
        return
    required = set(schema.get("required", ()))
    one_of = next((names for names in ONE_OF if not required and schema["properties"].keys() >= set(names)), ())
    optional = sorted(set(case.body) - required - {"model", *one_of})
    kept = {*required, "model", *one_of[: 1 + (not there)]}
    if optional:
        kept |= data.draw(st.sets(st.sampled_from(optional), max_size=MOST_OPTIONAL_FIELDS))
    case.body = {name: value for name, value in case.body.items() if name in kept}
    if there and one_of and all(case.body.get(name) is None for name in one_of):
        case.body[one_of[0]] = data.draw(st.text(min_size=1))
    for name in {"max_tokens", "max_output_tokens"}.intersection(case.body) if there else ():
        case.body[name] = data.draw(st.integers(1, 20))
    if "model" in case.body or not case.operation.path.endswith("/cancel"):
        case.body["model"] = MODEL if there else case.body.get("model", MODEL)
