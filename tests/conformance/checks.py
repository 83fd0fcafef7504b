"""Checks that rows of the list name: facts that a field's documentation promises."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Container, Mapping
from typing import Any

from tests.conformance.case import CHAT, Check
from tests.conformance.exchange import Exchange
from tests.conformance.reply import text_of


def same_as(**changes: Any) -> Check:
    """It answers what the same request answers with these fields changed; null takes one out."""

    def check(exchange: Exchange) -> None:
        assert exchange.said == exchange.asked(**changes).said

    return check


def says_as(**changes: Any) -> Check:
    """Its texts are those of the same request with these fields changed."""

    def check(exchange: Exchange) -> None:
        assert exchange.texts == exchange.asked(**changes).texts

    return check


def differs_from(**changes: Any) -> Check:
    """It does not answer what the same request answers with these fields changed."""

    def check(exchange: Exchange) -> None:
        assert exchange.texts != exchange.asked(**changes).texts

    return check


def generated(num_tokens: int, reason: str = "length") -> Check:
    """Every sample has so many tokens, and ended for this reason."""

    def check(exchange: Exchange) -> None:
        assert [len(token_ids) for token_ids in exchange.token_ids()] == [num_tokens] * len(exchange.choices)
        assert {choice["finish_reason"] for choice in exchange.choices} == {reason}

    return check


def prompt_of(num_tokens: int) -> Check:
    """The prompts have so many tokens together."""

    def check(exchange: Exchange) -> None:
        whole = exchange.asked(stream=None, stream_options=None)
        assert whole.answer["usage"]["prompt_tokens"] == num_tokens

    return check


def stopped_at(stop: str, *, included: bool = False) -> Check:
    """The text is what comes without `stop`, up to the string."""

    def check(exchange: Exchange) -> None:
        unstopped = exchange.asked(stop=None, include_stop_str_in_output=None)
        for choice, full in zip(exchange.choices, unstopped.texts, strict=True):
            assert stop in full, "the row needs a string that the model says"
            assert text_of(choice) == full.partition(stop)[0] + (stop if included else "")
            assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)

    return check


def stopped_by(token_id: int) -> Check:
    """Every sample ended with this token, which is not the end of a text."""

    def check(exchange: Exchange) -> None:
        assert [token_ids[-1] for token_ids in exchange.token_ids()] == [token_id] * len(exchange.choices)
        assert all(
            (choice["finish_reason"], choice["stop_reason"]) == ("stop", token_id) for choice in exchange.choices
        )

    return check


def only_tokens(allowed: Collection[int]) -> Check:
    """No other token was drawn."""

    def check(exchange: Exchange) -> None:
        assert all(set(token_ids) <= set(allowed) for token_ids in exchange.token_ids())

    return check


def no_tokens(forbidden: Collection[int]) -> Check:
    """None of these was drawn."""

    def check(exchange: Exchange) -> None:
        assert not any(set(token_ids) & set(forbidden) for token_ids in exchange.token_ids())

    return check


def echoes(prompt: str) -> Check:
    """Every text begins with the prompt, and goes on as it does without echo."""

    def check(exchange: Exchange) -> None:
        without = exchange.asked(echo=None, logprobs=None, max_tokens=exchange.body.get("max_tokens") or 1)
        generated = without.texts if exchange.body.get("max_tokens") != 0 else [""] * len(without.texts)
        assert exchange.texts == [prompt + text for text in generated]

    return check


def all_alike(exchange: Exchange) -> None:
    """Greedy samples of one prompt are one and the same."""
    assert len(set(exchange.texts)) == 1


def all_different(exchange: Exchange) -> None:
    """Every sample has draws of its own."""
    assert len(set(exchange.texts)) == len(exchange.texts)


def likeliest_taken(exchange: Exchange) -> None:
    """Each token is the first of its candidates."""
    for choice in exchange.choices:
        logprobs = choice["logprobs"]
        if "content" in logprobs:
            assert all(item["logprob"] == item["top_logprobs"][0]["logprob"] for item in logprobs["content"])
        else:
            columns = zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
            assert all(value == max(top.values()) for value, top in columns)


def names_candidates(token_ids: Collection[int]) -> Check:
    """Every token comes with these candidates, and none but them and itself."""

    def check(exchange: Exchange) -> None:
        names = {f"token_id:{token_id}" for token_id in token_ids}
        for choice in exchange.asked(return_tokens_as_token_ids=True).choices:
            for token, tops in _candidates(choice["logprobs"]):
                assert names <= tops <= names | {token}

    return check


def _candidates(logprobs: Mapping[str, Any]) -> list[tuple[str, set[str]]]:
    if "content" in logprobs:
        return [(item["token"], {top["token"] for top in item["top_logprobs"]}) for item in logprobs["content"]]
    return [(token, set(top)) for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)]


def scores_its_prompt(exchange: Exchange) -> None:
    """prompt_logprobs has an entry for each token of the prompt: none for the first, then the likeliest and itself."""
    count, answer = exchange.body["prompt_logprobs"], exchange.asked(return_token_ids=True).answer
    for one in [answer] if "prompt_logprobs" in answer else answer["choices"]:
        entries, token_ids = one["prompt_logprobs"], one.get("prompt_token_ids")
        assert entries[0] is None and (token_ids is None or len(entries) == len(token_ids))
        for position, entry in enumerate(entries[1:], 1):
            assert all(set(found) == {"logprob", "rank", "decoded_token"} for found in entry.values())
            assert count <= len(entry) <= count + 1
            assert set(range(1, count + 1)) <= {found["rank"] for found in entry.values()}
            assert token_ids is None or str(token_ids[position]) in entry
            assert all(found["logprob"] <= 0 for found in entry.values())


def scores_like_prompt_logprobs(exchange: Exchange) -> None:
    """The prompt's part of echoed log-probabilities is what prompt_logprobs tells, the rest what comes without echo."""
    scored = exchange.asked(stream=None, echo=None, logprobs=None, prompt_logprobs=1, return_token_ids=True)
    without = None if exchange.body["max_tokens"] == 0 else exchange.asked(echo=None)
    for index, (choice, alike) in enumerate(zip(exchange.choices, scored.choices, strict=True)):
        prompt = alike.get("prompt_token_ids") or scored.choices[0]["prompt_token_ids"]
        entries = alike["prompt_logprobs"]
        values = choice["logprobs"]["token_logprobs"]
        told = [entry and entry[str(token)]["logprob"] for token, entry in zip(prompt, entries, strict=True)]
        assert values[: len(prompt)] == told
        if without is not None:
            assert values[len(prompt) :] == without.choices[index]["logprobs"]["token_logprobs"]


def tells_what_it_took(exchange: Exchange) -> None:
    """The usage has a receipt for each prompt."""
    (receipt,) = exchange.answer["usage"]["receipts"]
    assert all(
        receipt[name] >= 0 for name in ("queue_seconds", "prefill_seconds", "decode_seconds", "kv_block_seconds")
    )


def same_values(**changes: Any) -> Check:
    """The chosen tokens' log-probabilities are those of the same request with these fields changed."""

    def check(exchange: Exchange) -> None:
        assert _values(exchange) == _values(exchange.asked(**changes))

    return check


def _values(exchange: Exchange) -> list[list[float]]:
    return [
        [item["logprob"] for item in choice["logprobs"]["content"]]
        if "content" in choice["logprobs"]
        else choice["logprobs"]["token_logprobs"]
        for choice in exchange.choices
    ]


def tokens_named_by_id(exchange: Exchange) -> None:
    """Tokens are written as "token_id:N", and are those that came out."""
    for choice, token_ids in zip(exchange.choices, exchange.token_ids(), strict=True):
        logprobs = choice["logprobs"]
        names = [item["token"] for item in logprobs["content"]] if "content" in logprobs else logprobs["tokens"]
        assert names == [f"token_id:{token_id}" for token_id in token_ids]


def token_ids_are_the_text(exchange: Exchange) -> None:
    """/detokenize makes the prompt and the text of the token ids."""
    answer = exchange.answer
    for choice in answer["choices"]:
        detokenized = exchange.caller.ask("POST", "/detokenize", {"tokens": choice["token_ids"]}).json["prompt"]
        assert detokenized.startswith(text_of(choice))
        prompt_ids = choice.get("prompt_token_ids") or answer["prompt_token_ids"]
        prompt = exchange.caller.ask("POST", "/detokenize", {"tokens": prompt_ids}).json["prompt"]
        assert exchange.body.get("prompt", prompt) == prompt


def answers(**expected: Any) -> Check:
    """The body has these fields with these values."""

    def check(exchange: Exchange) -> None:
        assert {name: exchange.json[name] for name in expected} == expected

    return check


def fields(*names: str) -> Check:
    """The body has these fields and no others."""

    def check(exchange: Exchange) -> None:
        assert set(exchange.json) == set(names)

    return check


def says_as_chat(*messages: dict[str, Any]) -> Check:
    """It says what the chat says to these messages."""

    def check(exchange: Exchange) -> None:
        body = {"messages": list(messages), "temperature": 0, "max_tokens": 6}
        assert exchange.texts == exchange.caller.ask("POST", CHAT, body).texts

    return check


def wrote(num_tokens: int) -> Check:
    """A response or a message was cut short after so many tokens."""

    def check(exchange: Exchange) -> None:
        answer = exchange.answer
        assert answer["usage"]["output_tokens"] == num_tokens
        assert answer.get("status", "incomplete") == "incomplete"
        assert answer.get("stop_reason", "max_tokens") == "max_tokens"

    return check


def is_json(members: Mapping[str, Container[Any]] | None) -> Check:
    """A text that has ended is a JSON object, with exactly these members and values; with None, of any."""

    def check(exchange: Exchange) -> None:
        for text in _ended(exchange):
            value = json.loads(text)
            assert isinstance(value, dict)
            if members is not None:
                assert value.keys() == members.keys()
                assert all(value[name] in values for name, values in members.items())

    return check


def matches(pattern: str) -> Check:
    """A text that has ended matches as a whole."""

    def check(exchange: Exchange) -> None:
        assert all(re.fullmatch(pattern, text) for text in _ended(exchange))

    return check


def calls(name: str) -> Check:
    """Every sample calls this function once, with arguments that its schema takes."""

    def check(exchange: Exchange) -> None:
        for choice in exchange.choices:
            assert choice["finish_reason"] in ("tool_calls", "stop")  # the latter for a named function, at OpenAI
            (call,) = choice["message"]["tool_calls"]
            assert call["type"] == "function" and call["id"] and call["function"]["name"] == name
            assert json.loads(call["function"]["arguments"])["a"] in range(10)
            assert not choice["message"].get("content")

    return check


def _ended(exchange: Exchange) -> list[str]:
    """The texts that were not cut short."""
    answer = exchange.answer
    if "choices" in answer:
        return [text_of(choice) for choice in answer["choices"] if choice["finish_reason"] == "stop"]
    return [] if answer.get("status") == "incomplete" or answer.get("stop_reason") == "max_tokens" else exchange.texts
