"""/v1/chat/completions of models that reason."""

from __future__ import annotations

import pytest

from paged_backend.config import EngineConfig

from .test_tools import TIME, accumulated

PATH = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "yo"}], "max_tokens": 300}


@pytest.fixture(autouse=True)
def thinker(client):
    client.tokenizer.chat_template = "<think> </think> <tool_call>"
    client.max_model_len = 1000


def message(call, client, text, **fields):
    """A whole message; the streamed one is the same."""
    client.text = text
    choice = call(PATH, {**BODY, **fields}).json["choices"][0]
    streamed = accumulated(call(PATH, {**BODY, **fields, "stream": True}).chunks)[0]
    said = choice["message"]
    assert (said.get("reasoning") or "", said["content"] or "") == (streamed["reasoning"], streamed["content"])
    return said


def test_the_model_opens_its_reasoning(call, client):
    said = message(call, client, "<think>\nhm\n</think>\n\nYes")
    assert (said["reasoning"], said["content"]) == ("\nhm\n", "\n\nYes0")
    said = message(call, client, "Yes")
    assert (said["reasoning"], said["content"]) == (None, "Yes0")


@pytest.mark.parametrize("opening", ["<think>\n", "<think>"])
def test_the_prompt_opens_it(call, client, opening):
    client.tokenizer.opening = opening
    said = message(call, client, "hm</think>Yes")
    assert (said["reasoning"], said["content"]) == ("hm", "Yes0")
    assert message(call, client, "hm")["content"] is None


def test_the_prompt_closes_it(call, client):
    client.tokenizer.opening = "<think>\n\n</think>\n\n"
    client.config = EngineConfig.from_args(reasoning_parser="deepseek_r1")
    assert message(call, client, "Yes")["content"] == "Yes0"


def test_deepseek_begins_with_it(call, client):
    client.config = EngineConfig.from_args(reasoning_parser="deepseek_r1")
    said = message(call, client, "hm</think>Yes")
    assert (said["reasoning"], said["content"]) == ("hm", "Yes0")


@pytest.mark.parametrize(("begun", "reasoning"), [("<think>so", "hm"), ("<think>so</think>", None), ("so", None)])
def test_a_message_that_goes_on(call, client, begun, reasoning):
    messages = [*BODY["messages"], {"role": "assistant", "content": begun}]
    fields = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    client.config = EngineConfig.from_args(reasoning_parser="deepseek_r1")
    assert message(call, client, "hm</think>Yes", **fields)["reasoning"] == reasoning


def test_it_may_be_left_out_or_left_in(call, client):
    said = message(call, client, "<think>hm</think>Yes", include_reasoning=False)
    assert (said["reasoning"], said["content"]) == (None, "Yes0")
    client.config = EngineConfig.from_args(reasoning_parser="none")
    said = message(call, client, "<think>hm</think>Yes")
    assert "reasoning" not in said and said["content"] == "<think>hm</think>Yes0"


def test_calls_after_reasoning(call, client):
    made = '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
    said = message(call, client, f"<think>{made}</think>\n\n{made}", tools=[TIME])
    assert said["reasoning"] == made and said["content"] == "0" and len(said["tool_calls"]) == 1


def test_effort_reaches_the_template(call, client):
    assert call(PATH, {**BODY, "reasoning_effort": "high"}).status == 200
    assert client.tokenizer.template_arguments["reasoning_effort"] == "high"
    assert "enable_thinking" not in client.tokenizer.template_arguments
    client.config = EngineConfig.from_args(default_chat_template_kwargs={"enable_thinking": True, "mood": 1})
    kwargs = {"thinking": True}
    assert call(PATH, {**BODY, "reasoning_effort": "none", "chat_template_kwargs": kwargs}).status == 200
    arguments = client.tokenizer.template_arguments
    assert [arguments[name] for name in ("enable_thinking", "thinking", "mood")] == [False, True, 1]


@pytest.mark.parametrize("fields", [{}, {"include_reasoning": False}])
def test_tokens_of_reasoning_are_counted(call, client, fields):
    encode = client.tokenizer.encode
    names = {"<think>": "T", "</think>": "E"}  # one token each

    client.tokenizer.encode = lambda text, special=True: encode(names.get(text, text), special)
    client.tokenizer.chat_template = "<think> </think>"
    client.config = EngineConfig.from_args(reasoning_parser="qwen3")
    client.text = "TabcEf"
    usage = call(PATH, {**BODY, **fields, "n": 2}).json["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 6}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    assert call(PATH, {**BODY, **fields, **options}).chunks[-1]["usage"]["completion_tokens_details"] == {
        "reasoning_tokens": 3
    }


def test_a_thinking_budget_is_refused(call):
    assert call(PATH, {**BODY, "thinking_token_budget": 5}).error["param"] == "thinking_token_budget"
