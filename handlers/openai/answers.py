"""How the answers to one chat request are read: which calls and which reasoning are looked for in their text."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from paged_backend.config import ChatConfig
from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.engine_port import TokenizerPort
from paged_backend.handlers.openai.parsing.call_list import NamedCall, RequiredCalls
from paged_backend.handlers.openai.parsing.machine import CallMachine, NewCallId
from paged_backend.handlers.openai.parsing.message_parser import MessageParser
from paged_backend.handlers.openai.parsing.reasoning import ReasoningCount, ReasoningMarkers
from paged_backend.handlers.openai.parsing.styles import (
    REASONING_PARSERS,
    TOOL_CALL_PARSERS,
    reasoning_parser_of,
    tool_call_parser_of,
)
from paged_backend.handlers.openai.reasoning import AnswerReasoning
from paged_backend.handlers.openai.tools import ToolUse


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerReader:
    """Makes a parser for each sample.

    Attributes:
        new_calls: makes the machine that looks for calls; None looks for none.
        reasoning: what is split off; None splits nothing off.
        single_call: leave out all calls but one.
        names_call: the request has named the function.
    """

    new_calls: Callable[[], CallMachine] | None = None
    reasoning: AnswerReasoning | None = None
    include_reasoning: bool = True
    single_call: bool = False
    names_call: bool = False

    def parser(self) -> MessageParser:
        """A parser for one sample."""
        return MessageParser(
            None if self.reasoning is None else self.reasoning.splitter(),
            None if self.new_calls is None else self.new_calls(),
            include_reasoning=self.include_reasoning,
            single_call=self.single_call,
            names_call=self.names_call,
        )

    def reasoning_count(self) -> ReasoningCount | None:
        """A count for one sample; None where there is nothing to count."""
        return None if self.reasoning is None else self.reasoning.count()


@dataclass(frozen=True, slots=True)
class AnswerStyle:
    """The parsers of one request, chosen before its prompt is made.

    Attributes:
        calls: makes a machine for calls; None where the request has no tools, or must not call them.
        markers: of the reasoning that comes first; None where the model has none.
        keeps_special_tokens: whether the markers are special tokens, which the text must not leave out.
    """

    calls: Callable[[], CallMachine] | None
    markers: ReasoningMarkers | None
    keeps_special_tokens: bool

    @classmethod
    def choose(cls, config: ChatConfig, tokenizer: TokenizerPort, source: str, tool_use: ToolUse) -> AnswerStyle:
        """The parsers that the configuration names, or that the chat template speaks for.

        Args:
            source: the chat template.

        Raises:
            InvalidRequestError: the model may call tools, and nobody knows how it does.
        """
        name = config.tool_call_parser or tool_call_parser_of(source)
        new_call_id: NewCallId = _mistral_call_id if name == "mistral" else _call_id
        markers = REASONING_PARSERS.get(config.reasoning_parser or reasoning_parser_of(source) or "none")
        keeps = markers is not None and _are_special((markers.begin, markers.end), tokenizer)
        if tool_use.name is not None:
            return cls(partial(NamedCall, new_call_id, tool_use.name), markers, keeps)
        if tool_use.choice == "required":
            return cls(partial(RequiredCalls, new_call_id), markers, keeps)
        if tool_use.choice == "none":
            return cls(None, markers, keeps)
        if not config.enable_auto_tool_choice:
            raise InvalidRequestError(
                'tool_choice "auto", which is the default with tools, needs a server with enable_auto_tool_choice; '
                'here, use "required", "none", or a function\'s name.',
                param="tool_choice",
            )
        if name is None:
            raise InvalidRequestError(
                f"This server does not know how its model writes tool calls: have its operator set tool_call_parser "
                f'({", ".join(TOOL_CALL_PARSERS)}), or use tool_choice "required", "none", or a function\'s name.',
                param="tool_choice",
            )
        machine = TOOL_CALL_PARSERS[name]
        return cls(partial(machine, new_call_id), markers, keeps or _are_special(machine.markers, tokenizer))


def _are_special(markers: Sequence[str], tokenizer: TokenizerPort) -> bool:
    """Whether a marker is missing in a text that leaves special tokens out."""
    return any(marker not in tokenizer.decode(tokenizer.encode(marker, False), True) for marker in markers)


def _call_id() -> str:
    return f"chatcmpl-tool-{uuid.uuid4().hex}"


def _mistral_call_id() -> str:
    """Mistral's templates take ids of nine letters and digits only."""
    return uuid.uuid4().hex[:9]
