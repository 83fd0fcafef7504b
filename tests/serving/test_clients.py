"""Published clients, as they are, against both live hosts: what they say, and what they must make of the answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.serving.conftest import Host

MODEL = "paged-tiny"
QUESTION = "What is a paged KV cache?"
HELLO: Any = [{"role": "user", "content": QUESTION}]
LIMIT = 40
"""Tokens in which the bundled model ends its answer."""

INSTALL = "pip install -c constraints.txt -e '.[clients]' brings it"


def ask_openai(url: str) -> str:
    """Chat, completions and responses, whole and streamed; returns the chat's answer."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        assert MODEL in [model.id for model in client.models.list()]
        greedy: Any = {"model": MODEL, "temperature": 0}
        chat = client.chat.completions.create(messages=HELLO, max_tokens=LIMIT, **greedy)
        answer = chat.choices[0].message.content
        assert answer
        prompt = client.completions.create(prompt="Once upon", max_tokens=8, **greedy).choices[0].text
        chunks = client.completions.create(prompt="Once upon", max_tokens=8, stream=True, **greedy)
        assert "".join(chunk.choices[0].text for chunk in chunks) == prompt
        with client.chat.completions.stream(messages=HELLO, max_tokens=LIMIT, **greedy) as stream:
            assert stream.get_final_completion().choices[0].message.content == answer
        response = client.responses.create(input=QUESTION, max_output_tokens=LIMIT, **greedy)
        assert response.output_text == answer and response.usage is not None
        assert chat.usage is not None and response.usage.total_tokens == chat.usage.total_tokens
        with client.responses.stream(input=HELLO, max_output_tokens=LIMIT, **greedy) as events:
            kinds = [event.type for event in events]
            assert events.get_final_response().output_text == answer
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
        with pytest.raises(openai.BadRequestError, match="keeps no responses"):
            client.responses.create(input="x", previous_response_id=response.id, **greedy)
        with pytest.raises(openai.NotFoundError):
            client.responses.create(input="x", model="other")
    return answer


def ask_anthropic(url: str) -> str:
    """Messages, whole and streamed, and their tokens counted; returns the answer."""
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        asked: Any = {"model": MODEL, "messages": HELLO}
        greedy: Any = {"max_tokens": LIMIT, "extra_body": {"temperature": 0}}
        message = client.messages.create(**greedy, **asked)
        (block,) = message.content
        assert block.type == "text"
        with client.messages.stream(**greedy, **asked) as stream:
            final = stream.get_final_message()
            assert stream.get_final_text() == block.text
        assert final.stop_reason == message.stop_reason == "end_turn"
        counted = client.messages.count_tokens(**asked).input_tokens
        usage = final.usage
        assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
            client.messages.create(max_tokens=10_000_000, **asked)
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(max_tokens=5, model="claude", messages=HELLO)
    return block.text


def ask_litellm(url: str) -> str:
    """Chat through litellm's two ways of calling an API, whole and streamed; returns the answer."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or its import asks the network
    litellm = pytest.importorskip("litellm", reason=f"litellm is not installed: {INSTALL}")
    asked: Any = {"messages": HELLO, "max_tokens": LIMIT, "temperature": 0, "api_key": "none", "timeout": 60}
    answers = []
    for kind, base in (("openai", f"{url}/v1"), ("anthropic", f"{url}/v1/messages")):
        whole = litellm.completion(model=f"{kind}/{MODEL}", api_base=base, **asked)
        answers.append(whole.choices[0].message.content)
        chunks = litellm.completion(model=f"{kind}/{MODEL}", api_base=base, stream=True, **asked)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answers[-1]
    with pytest.raises(litellm.exceptions.BadRequestError):
        litellm.completion(model=f"openai/{MODEL}", api_base=f"{url}/v1", **{**asked, "temperature": -1})
    assert answers[0] == answers[1] != ""
    return str(answers[0])


def ask_langchain(url: str) -> str:
    """Chat over both of OpenAI's routes, whole and streamed; returns the answer."""
    langchain_openai = pytest.importorskip("langchain_openai", reason=f"langchain-openai is not installed: {INSTALL}")
    answers = []
    for newer in (False, True):
        chat = langchain_openai.ChatOpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            model=MODEL,
            temperature=0,
            max_tokens=LIMIT,
            use_responses_api=newer,
            max_retries=0,
            timeout=60,
        )
        answers.append(chat.invoke(QUESTION).text)
        assert "".join(chunk.text for chunk in chat.stream(QUESTION)) == answers[-1]
    assert answers[0] == answers[1] != ""
    return str(answers[0])


@pytest.mark.parametrize(
    "ask",
    [
        ask_openai,
        ask_anthropic,
        pytest.param(ask_litellm, marks=pytest.mark.slow),
        pytest.param(ask_langchain, marks=pytest.mark.slow),
    ],
    ids=lambda ask: ask.__name__,
)
def test_a_client_gets_what_it_asks_for(each_host: Host, ask: Callable[[str], str]) -> None:
    assert ask(each_host.url).startswith("The KV cache keeps")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_a_stream_can_be_cancelled(each_host: Host, path: str) -> None:
    body: dict[str, Any] = {"stream": True, "ignore_eos": True, "request_id": "mine", "temperature": 0}
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    body |= {limit: 1000, "input" if path == "/v1/responses" else "messages": HELLO}
    cancel, asked = f"{each_host.url}/v1/cancel", {"request_id": "mine"}
    for _ in range(10):  # on a busy machine a stream may be over before it can be cancelled
        with httpx.stream("POST", f"{each_host.url}{path}", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            answer = httpx.post(cancel, json=asked, timeout=60).json()
            rest = list(lines)
        if answer["cancelled"]:
            break
    assert answer["cancelled"] and len(answer["ids"]) == 1
    assert any(word in line for line in rest for word in ('"abort"', '"cancelled"', '"pause_turn"'))
    again = httpx.post(cancel, json=asked, timeout=60).json()
    assert again == {"object": "cancellation", "cancelled": False, "ids": []}
