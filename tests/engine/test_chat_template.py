"""Chat templates: whose is taken, what reaches it, and what its failures become."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from paged_backend.config import ChatConfig, EngineConfig
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.errors import ConfigError, InvalidRequestError, ModelLoadError
from paged_backend.models.folder import resolve_folder

FOLDER = resolve_folder("paged-tiny", None)
HELLO = [{"role": "user", "content": "yo"}]
ALL = (
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% for document in documents %}{{ document.text }}\n"
    "{% endfor %}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}-{% endif %}{% endif %}"
)


def test_the_models_own_unless_another_is_given(tmp_path):
    own = (FOLDER / "chat_template.jinja").read_text()
    assert Tokenizer.load(FOLDER).template_source(has_tools=True) == own
    assert Tokenizer.load(FOLDER, "{{ x }}").template_source(has_tools=False) == "{{ x }}"
    file = tmp_path / "mine.jinja"
    file.write_text("a {{ messages[0].content }}")
    tokenizer = Tokenizer.load(FOLDER, str(file))
    assert tokenizer.apply_chat_template(HELLO) == "a yo"
    assert tokenizer.apply_chat_template(HELLO, chat_template="b {{ messages[0].content }}") == "b yo"


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ModelLoadError, match=r"chat_template: .*missing\.jinja cannot be read"):
        Tokenizer.load(FOLDER, str(tmp_path / "missing.jinja"))
    (tmp_path / "latin").write_bytes(b"\xe4")
    with pytest.raises(ModelLoadError, match="UTF-8"):
        Tokenizer.load(FOLDER, str(tmp_path / "latin"))


def test_a_template_for_tools():
    tokenizer = Tokenizer.load(FOLDER)
    tokenizer._tokenizer.chat_template = {"default": "d", "tool_use": "t"}
    assert [tokenizer.template_source(has_tools=has) for has in (False, True)] == ["d", "t"]
    assert tokenizer.apply_chat_template(HELLO) == "d"
    assert tokenizer.apply_chat_template(HELLO, tools=[{"type": "function"}]) == "t"
    tokenizer._tokenizer.chat_template = {"rag": "r"}
    assert tokenizer.template_source(has_tools=True) is None
    with pytest.raises(InvalidRequestError, match="no chat template"):
        tokenizer.apply_chat_template(HELLO)


@pytest.mark.parametrize("thinks", [True, False])
def test_prompts_are_those_of_transformers(thinks):
    function = {"name": "f", "parameters": {"type": "object", "properties": {"é": {"type": "string"}}}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"é": "<&>"}}}]},
        {"role": "tool", "content": "3"},
    ]
    given = {
        "tools": [{"type": "function", "function": function}],
        "documents": [{"title": "t", "text": "facts"}],
        "enable_thinking": thinks,
    }
    expected = AutoTokenizer.from_pretrained(FOLDER).apply_chat_template(
        messages, chat_template=ALL, tokenize=False, add_generation_prompt=True, **given
    )
    assert Tokenizer.load(FOLDER, ALL).apply_chat_template(messages, **given) == expected
    assert "<&>" in expected and "facts" in expected and expected.endswith("assistant\n" if thinks else "-")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 // 0 }}",
        "{{ messages[7].content }}",
        "{{ messages + 1 }}",
        "{{ 'x'.nothing() }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ raise_exception('no systems') }}",
        "{% for %}",
    ],
)
def test_whatever_a_template_does_is_the_requests_fault(template):
    tokenizer = Tokenizer.load(FOLDER)
    with pytest.raises(InvalidRequestError, match="cannot render") as caught:
        tokenizer.apply_chat_template(HELLO, chat_template=template)
    assert caught.value.param == "chat_template"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"chat_template": ""}, "chat_template"),
        ({"default_chat_template_kwargs": "{"}, "default_chat_template_kwargs"),
        ({"default_chat_template_kwargs": "[]"}, "default_chat_template_kwargs"),
        ({"default_chat_template_kwargs": {1: 2}}, "default_chat_template_kwargs"),
        ({"default_chat_template_kwargs": {"tools": []}}, "default_chat_template_kwargs"),
        ({"tool_call_parser": "pythonic"}, "tool_call_parser"),
        ({"reasoning_parser": "qwen"}, "reasoning_parser"),
        ({"enable_auto_tool_choice": 1}, "enable_auto_tool_choice"),
    ],
)
def test_configuration(arguments, named):
    with pytest.raises(ConfigError, match=named):
        ChatConfig(**arguments)


def test_defaults_may_come_as_json():
    config = EngineConfig.from_args(default_chat_template_kwargs='{"enable_thinking": false}')
    assert config.chat.default_chat_template_kwargs == {"enable_thinking": False}
    assert EngineConfig.from_args(config.to_args()) == config
