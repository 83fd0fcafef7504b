"""What a chat template writes of a call, its style's parser reads: a conversation can be gone on with."""

from __future__ import annotations

import json

import pytest

from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.handlers.openai.messages import parse_messages
from paged_backend.handlers.openai.parsing.styles import reasoning_parser_of, tool_call_parser_of
from paged_backend.models.folder import resolve_folder

from .conftest import calls_of, message_of

CALLS = [
    {
        "id": "a1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Bern", "days": [1, 2]}'},
    },
    {"id": "a2", "type": "function", "function": {"name": "time", "arguments": ""}},
]
EACH = "{% for call in messages[0].tool_calls %}"
TEMPLATES = {
    "hermes": "{{ messages[0].content }}"
    + EACH
    + "\n<tool_call>\n"
    + '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}",
    "llama3_json": "{# <|start_header_id|>ipython #}"
    + EACH
    + '{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}'
    "{% if not loop.last %}; {% endif %}{% endfor %}",
    "mistral": "{{ messages[0].content }}[TOOL_CALLS]["
    + EACH
    + '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]",
}


@pytest.mark.parametrize("style", TEMPLATES)
def test_calls_come_back(style):
    template = TEMPLATES[style]
    assert tool_call_parser_of(template) == style and reasoning_parser_of(template) is None
    content = None if style == "llama3_json" else "Let me see."
    messages = parse_messages([{"role": "assistant", "content": content, "tool_calls": CALLS}], max_messages=9)
    text = Tokenizer.load(resolve_folder("paged-tiny", None), template).apply_chat_template(messages)
    message = message_of(text, style)
    assert message.content == content
    assert [(name, json.loads(arguments)) for name, arguments in calls_of(message)] == [
        ("weather", {"city": "Bern", "days": [1, 2]}),
        ("time", {}),
    ]


def test_markers_of_reasoning():
    assert reasoning_parser_of("{% set content = content.split('</think>')[-1] %}") == "qwen3"
    assert reasoning_parser_of("[THINK]{{ thinking }}[/THINK]") == "mistral"
