"""/v1/chat/completions of models that reason."""

from __future__ import annotations

import numpy as np
import pytest

from paged_backend.config import EngineConfig
from paged_backend.handlers.openai.thinking_budget import ThinkingBudget

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


class TestBudget:
    """thinking_token_budget."""

    def logits_after(self, budget, token_ids):
        """Which tokens of ten are left after those, where 1 begins and 2 ends the reasoning."""
        logits = np.zeros(10, np.float32)
        assert budget([7, 1, 2], token_ids, logits) is logits
        return np.flatnonzero(np.isfinite(logits)).tolist()

    @pytest.mark.parametrize(
        ("is_open", "token_ids", "ends"),
        [
            (True, [], False),
            (True, [5, 5], False),
            (True, [5, 5, 5], True),
            (True, [5, 5, 5, 2], False),
            (True, [5, 2, 5, 5, 5, 5], False),
            (True, [1, 5, 5, 5], True),
            (None, [5, 5, 5, 5, 5], False),
            (None, [1, 5, 5], False),
            (None, [3, 1, 5, 5], False),
            (None, [3, 1, 5, 5, 5], True),
            (False, [1, 5, 5, 5, 5], False),
        ],
    )
    def test_the_end_is_all_that_is_left(self, is_open, token_ids, ends):
        left = self.logits_after(ThinkingBudget(1, 2, is_open, 3), token_ids)
        assert left == ([2] if ends else list(range(10)))

    def test_none_at_all(self):
        assert self.logits_after(ThinkingBudget(1, 2, True, 0), []) == [2]
        assert self.logits_after(ThinkingBudget(1, 2, None, 0), [1]) == [2]

    def test_it_reaches_the_engine(self, call, client):
        encode, names = client.tokenizer.encode, {"<think>": "T", "</think>": "E"}  # one token each
        client.tokenizer.encode = lambda text, special=True: encode(names.get(text, text), special)
        assert call(PATH, {**BODY, "thinking_token_budget": 5}).status == 200
        (budget,) = client.submissions[-1]["params"].logits_processors
        assert isinstance(budget, ThinkingBudget)
        assert call(PATH, {**BODY, "thinking_token_budget": -1}).status == 200
        assert not client.submissions[-1]["params"].logits_processors
        assert call(PATH, {**BODY, "thinking_token_budget": -2}).error["param"] == "thinking_token_budget"

    def test_nobody_knows_where_the_reasoning_is(self, call, client):
        assert call(PATH, {**BODY, "thinking_token_budget": 5}).error["param"] == "thinking_token_budget"
        client.tokenizer.chat_template = "plain"
        assert call(PATH, {**BODY, "thinking_token_budget": 5}).error["param"] == "thinking_token_budget"
