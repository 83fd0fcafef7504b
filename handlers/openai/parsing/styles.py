"""Which parsers there are, under vLLM's names, and which of them a chat template speaks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from paged_backend.handlers.openai.parsing.hermes import HermesCalls
from paged_backend.handlers.openai.parsing.llama import Llama3JsonCalls
from paged_backend.handlers.openai.parsing.machine import CallMachine
from paged_backend.handlers.openai.parsing.mistral import MistralCalls
from paged_backend.handlers.openai.parsing.reasoning import ReasoningMarkers

TOOL_CALL_PARSERS: Mapping[str, type[CallMachine]] = MappingProxyType(
    {"hermes": HermesCalls, "llama3_json": Llama3JsonCalls, "mistral": MistralCalls}
)
REASONING_PARSERS: Mapping[str, ReasoningMarkers] = MappingProxyType(
    {
        "deepseek_r1": ReasoningMarkers("<think>", "</think>", begins_open=True),
        "mistral": ReasoningMarkers("[THINK]", "[/THINK]"),
        "qwen3": ReasoningMarkers("<think>", "</think>"),
    }
)


def tool_call_parser_of(chat_template: str) -> str | None:
    """The style in which a template writes calls; None where it writes none, or it is none of ours, or not clear."""
    found = [name for name, is_spoken in _SPOKEN.items() if is_spoken(chat_template)]
    return found[0] if len(found) == 1 else None


def reasoning_parser_of(chat_template: str) -> str | None:
    """The markers that a template knows; None where it knows none."""
    if "[THINK]" in chat_template:
        return "mistral"
    return "qwen3" if "</think>" in chat_template else None


def _speaks_hermes(template: str) -> bool:
    # Qwen3-Coder and GLM write XML between the same markers.
    return "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template


def _speaks_llama3_json(template: str) -> bool:
    return "<|start_header_id|>" in template and "ipython" in template and "parameters" in template


def _speaks_mistral(template: str) -> bool:
    return "[TOOL_CALLS]" in template


_SPOKEN: Mapping[str, Callable[[str], bool]] = MappingProxyType(
    {"hermes": _speaks_hermes, "llama3_json": _speaks_llama3_json, "mistral": _speaks_mistral}
)
