"""Of each keyword of JSON Schema: grammars take what is valid, and nothing else; or the schema is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from paged_backend.errors import InvalidRequestError
from paged_backend.structured.matcher import Matcher
from tests.structured.conftest import Compile
from tests.structured.keywords import CASES, KeywordCase
from tests.structured.schemas import REFUSED, supported

cases = pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case.keyword}" for i, case in enumerate(CASES)])

NOT_CHECKED = ("date-time", "duration", "hostname", "time", "uri")
"""Formats that jsonschema has no opinion of by itself; the bad instances are bad all the same."""


def accepts(matcher: Matcher, token_ids: list[int]) -> bool:
    """Whether a whole output satisfies a grammar."""
    matcher.follow(token_ids, 0)
    return matcher.is_complete and not matcher.error


@cases
def test_the_cases_are_right(case: KeywordCase) -> None:
    """By an implementation of JSON Schema that knows nothing of grammars."""
    Draft202012Validator.check_schema(case.schema)
    validator = Draft202012Validator(case.schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    assert all(validator.is_valid(instance) for instance in case.good)
    if case.schema.get("format") not in NOT_CHECKED:
        assert not any(validator.is_valid(instance) for instance in case.bad)


@cases
def test_a_keyword_is_kept_to_or_refused(case: KeywordCase, compile_grammar: Compile, tokenizer: Any) -> None:
    def tokens(instance: Any, **how: Any) -> list[int]:
        ids: list[int] = tokenizer(json.dumps(instance, ensure_ascii=False, **how), add_special_tokens=False).input_ids
        return ids

    if not supported(case.schema):
        with pytest.raises(InvalidRequestError, match="JSON schema cannot be used"):
            compile_grammar(json=case.schema)
        return
    for instance in case.good:
        for how in ({}, {"separators": (",", ":")}, {"indent": 2}):
            # 1.5 is no multiple of 0.25 to the grammar, which wants a number written with two decimals.
            if instance != 1.5:
                assert accepts(compile_grammar(json=case.schema), tokens(instance, **how)), (instance, how)
        compact = compile_grammar(json=case.schema, disable_any_whitespace=True)
        if not isinstance(instance, (list, dict)) and instance != 1.5:
            assert accepts(compact, tokens(instance))
    for instance in case.bad:
        assert not accepts(compile_grammar(json=case.schema), tokens(instance)), instance


def test_every_refused_keyword_has_a_case() -> None:
    assert {case.keyword for case in CASES if not supported(case.schema)} == REFUSED | {"oneOf"}
