"""What an output must look like. Names are vLLM's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paged_backend.errors import InvalidRequestError

_CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_SWITCHES = ("disable_any_whitespace", "disable_additional_properties")


@dataclass(frozen=True, slots=True)
class ReasoningTokens:
    """Where the reasoning is that comes before a constrained output.

    Attributes:
        begin_id, end_id: the tokens around it.
        is_open: whether the prompt has opened it; None where the output may begin with `begin_id`, or without any.
    """

    begin_id: int
    end_id: int
    is_open: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """A constraint that every output satisfies, unless it is cut off (finish_reason "length"). Exactly one is given.

    Attributes:
        json: a JSON schema, as a mapping or as text; properties come in the schema's order.
        regex: a regular expression (Rust's, without look-around) that the whole text matches.
        choice: texts, one of which is the output.
        grammar: a context-free grammar, in Lark's form (`start: ...`) or in GBNF (`root ::= ...`).
        json_object: any JSON object.
        structural_tag: free text with constrained parts, as JSON text: {"structures": [{"begin": "<f>", "schema":
            {...}, "end": "</f>"}, ...], "triggers": ["<f"]}. Where a trigger appears, one of its structures follows.
        disable_any_whitespace: JSON has no whitespace between its tokens; else it may have any.
        disable_additional_properties: objects have no properties but those that the schema names, where it does not
            say anything else itself.
        whitespace_pattern: a regular expression for the whitespace between JSON's tokens.
        reasoning: what the constraint comes after; None: nothing. Not in vLLM.
        param: what the request calls all this, for error messages; not in vLLM.

    Raises:
        InvalidRequestError: none or several are given, or a type is wrong; `param` is the field above.
    """

    json: str | Mapping[str, Any] | None = field(default=None, hash=False)
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    reasoning: ReasoningTokens | None = None
    param: str = "structured_outputs"

    def __post_init__(self) -> None:
        given = [name for name in _CONSTRAINTS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            what = f"got {' and '.join(given)}" if given else "got none"
            raise self._refusal(f"takes exactly one of {', '.join(_CONSTRAINTS)}; {what}")
        for name in ("regex", "grammar", "structural_tag", "whitespace_pattern"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise self._refusal(f"{name} must be a string")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise self._refusal(f"{name} must be true or false")
        if self.json_object not in (None, True, False):
            raise self._refusal("json_object must be true or false")
        if not isinstance(self.json, (str, Mapping, type(None))):
            raise self._refusal("json must be a JSON schema: an object, or one as text")
        if self.choice is not None:
            if isinstance(self.choice, str) or not isinstance(self.choice, Sequence):
                raise self._refusal("choice must be a list of strings")
            if not self.choice or not all(isinstance(text, str) and text for text in self.choice):
                raise self._refusal("choice must hold strings that are not empty, one at least")
            object.__setattr__(self, "choice", tuple(self.choice))
        if self.whitespace_pattern is not None and self.disable_any_whitespace:
            raise self._refusal("whitespace_pattern and disable_any_whitespace exclude each other: leave one out")

    def _refusal(self, what: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self.param}: {what}.", param=self.param)
