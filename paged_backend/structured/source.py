"""What a request asks for, as text that llguidance compiles."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llguidance import LLMatcher, StructTag

from paged_backend.errors import InvalidRequestError
from paged_backend.sampling_params import StructuredOutputsParams

MAX_SOURCE_CHARACTERS = 131_072
"""A constraint's longest text. It bounds, together with the compiler's own limits, what it costs to refuse it."""

_ANY_OBJECT = '{"type": "object"}'


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """A constraint, small enough to be compiled and not yet looked into. Equal ones are compiled once.

    Attributes:
        kind: "json", "regex", "choice", "grammar" or "structural_tag".
        text: the schema or the tags in JSON, the choices as a JSON list, else as the client wrote it.
        whitespace_pattern: what may stand between JSON's tokens; None: any whitespace, or none if not flexible.
        param: the request's field, for error messages.
    """

    kind: str
    text: str
    whitespace_flexible: bool = True
    whitespace_pattern: str | None = None
    param: str = field(default="structured_outputs", compare=False)

    @classmethod
    def of(cls, params: StructuredOutputsParams) -> GrammarSource:
        """What these parameters ask for. Quick: nothing is compiled.

        Raises:
            InvalidRequestError: it is too long, nested too deeply, or no JSON where that is wanted.
        """
        kind, text = _text(params)
        if len(text) > MAX_SOURCE_CHARACTERS:
            raise InvalidRequestError(
                f"{params.param}: the {_NOUNS[kind]} has {len(text)} characters, more than the {MAX_SOURCE_CHARACTERS} "
                "that are allowed: shorten it.",
                param=params.param,
            )
        return cls(kind, text, not params.disable_any_whitespace, params.whitespace_pattern, params.param)

    def refused(self, reason: str) -> InvalidRequestError:
        """The error that says so of this constraint."""
        return InvalidRequestError(f"{self.param}: the {_NOUNS[self.kind]} {reason}", param=self.param)

    def form_and_text(self, is_special: Callable[[str], bool]) -> tuple[str, str]:
        """The grammar as `llguidance.grammar_from` takes it: its form and its text.

        Args:
            is_special: whether a text is one of the tokenizer's special tokens.

        Raises:
            InvalidRequestError: what can be seen to be wrong without compiling it is.
        """
        try:
            if self.kind == "json":
                return "llguidance", LLMatcher.grammar_from_json_schema(self.text, overrides=self._json_options())
            if self.kind == "structural_tag":
                return "llguidance", self._tags(is_special)
            return self.kind, self.text
        except (ValueError, RecursionError, KeyError, IndexError, TypeError) as error:
            raise self.refused(f"cannot be used: {one_line(error)}.") from None

    def _json_options(self) -> Any:
        """All that a schema's own "x-guidance" could change, so that it changes nothing: a keyword that is not
        supported is always refused."""
        return {
            "whitespace_flexible": self.whitespace_flexible,
            "whitespace_pattern": self.whitespace_pattern,
            "item_separator": ",",
            "key_separator": ":",
            "lenient": False,
            "coerce_one_of": False,
        }

    def _tags(self, is_special: Callable[[str], bool]) -> str:
        """vLLM's legacy form: {"structures": [{"begin", "schema", "end"}, ...], "triggers": [...]}."""
        given = json.loads(self.text)
        if set(given) - {"type"} != {"structures", "triggers"}:
            raise ValueError('it takes "structures" and "triggers", and nothing else')
        tags = []
        for structure in given["structures"]:
            begin = structure["begin"]
            trigger = next((trigger for trigger in given["triggers"] if begin.startswith(trigger)), None)
            if not trigger:
                raise ValueError(f"no trigger is the beginning of {begin!r}")
            schema = {**structure["schema"], "x-guidance": self._json_options()}
            tags.append(StructTag(trigger=trigger, begin=begin, grammar=schema, end=structure["end"]))
        if not tags:
            raise ValueError("structures must not be empty")
        return StructTag.to_grammar(tags, assume_special=all(is_special(tag.trigger) for tag in tags))


_NOUNS = {
    "json": "JSON schema",
    "regex": "regular expression",
    "choice": "list of choices",
    "grammar": "grammar",
    "structural_tag": "structural tag",
}


def _text(params: StructuredOutputsParams) -> tuple[str, str]:
    """Kind and text of a constraint."""
    if params.json_object:
        return "json", _ANY_OBJECT
    if params.json is not None:
        return "json", _schema_text(params.json, params)
    if params.choice is not None:
        return "choice", json.dumps(params.choice)
    if params.regex is not None:
        return "regex", params.regex
    if params.grammar is not None:
        return "grammar", params.grammar
    assert params.structural_tag is not None
    return "structural_tag", params.structural_tag


def _schema_text(schema: str | Mapping[str, Any], params: StructuredOutputsParams) -> str:
    if isinstance(schema, str) and len(schema) > MAX_SOURCE_CHARACTERS:
        return schema  # the caller refuses it, unread
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(parsed, Mapping):
            raise InvalidRequestError(f"{params.param}: a JSON schema must be a JSON object.", param=params.param)
        if params.disable_additional_properties:
            parsed = _closed(parsed)
        # In the order of the properties, which is that of the output; and nothing that is not JSON (NaN).
        return json.dumps(parsed, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, InvalidRequestError):
            raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise InvalidRequestError(
            f"{params.param}: the JSON schema cannot be used: {reason}.", param=params.param
        ) from None


def _closed(schema: Any) -> Any:
    """A schema whose objects take no properties but their own, where they do not say otherwise."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    if "additionalProperties" not in closed and ("properties" in closed or "patternProperties" in closed):
        closed["additionalProperties"] = False
    return closed


def one_line(error: object) -> str:
    """A message of one line, without its full stop, short enough to be shown."""
    return " ".join((str(error) or type(error).__name__).split()).rstrip(".")[:300]
