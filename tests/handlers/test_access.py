"""Keys, limits and quotas, without a server."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from paged_backend.errors import ConfigError, InvalidRequestError
from paged_backend.handlers.access.api_key import ApiKey, keys_from_config
from paged_backend.handlers.access.gate import Gate
from paged_backend.handlers.access.key_ring import CHECK_EVERY_S, KeyRing
from paged_backend.handlers.access.limits import KeyLimits, RequestLimits
from paged_backend.handlers.access.quota import LimitError, Quota


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class TestKeys:
    def test_a_secret_is_in_no_text(self) -> None:
        key = ApiKey("ann", "hunter2")
        assert "hunter2" not in f"{key} {key!r} {key.tenant}" and "ann" in repr(key)

    def test_tenants_are_the_keys_own(self) -> None:
        # Another name, another server or another place in the list: the same tenant, whose prefixes are on disk.
        assert ApiKey("ann", "x").tenant == ApiKey("bob", "x").tenant != ApiKey("ann", "y").tenant

    def test_finding(self) -> None:
        ring = KeyRing(keys_from_config({"ann": "a", "bob": "b"}))
        assert [found and found.name for found in map(ring.find, ("a", "b", "", "ab", "A", "\u00e9"))] == [
            "ann",
            "bob",
            None,
            None,
            None,
            None,
        ]


class TestKeyFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "keys"
        file.write_text("# of the team\nann:a\n\n  plain  \n")
        return file

    def change(self, file: Path, text: str | None) -> None:
        if text is None:
            file.unlink()
            return
        file.write_text(text)
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))

    def test_it_is_read(self, file: Path) -> None:
        assert KeyRing(file=file).keys == (ApiKey("ann", "a"), ApiKey("key2", "plain"))

    def test_a_change_is_seen_after_a_second(self, file: Path) -> None:
        clock = Clock()
        ring = KeyRing(file=file, clock_s=clock)
        self.change(file, "bob:b\n")
        assert ring.find("a") and not ring.find("b")
        clock.now_s += CHECK_EVERY_S
        assert ring.find("b") and not ring.find("a")

    @pytest.mark.parametrize("text", [None, "", "# none\n", "a b\n", "ann:\n", "x:1\nx:2\n"])
    def test_one_that_cannot_be_used_changes_nothing(
        self, file: Path, text: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock = Clock()
        ring = KeyRing(file=file, clock_s=clock)
        self.change(file, text)
        for _ in range(3):
            clock.now_s += CHECK_EVERY_S
            assert [key.name for key in ring.keys] == ["ann", "key2"]
        assert len(caplog.records) == 1 and "stay as they were" in caplog.text
        self.change(file, "bob:b\n")
        clock.now_s += CHECK_EVERY_S
        assert [key.name for key in ring.keys] == ["bob"]

    @pytest.mark.parametrize("text", ["", "secret one\n", "\x00", "s:1\ns:2"])
    def test_a_server_does_not_start_on_one(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "keys"
        file.write_text(text)
        with pytest.raises(ConfigError, match="api_key_file") as caught:
            KeyRing(file=file)
        assert "secret" not in str(caught.value)
        with pytest.raises(ConfigError, match="cannot be read"):
            KeyRing(file=tmp_path / "none")


class TestGate:
    def test_without_keys_everybody_comes_in_and_shares_the_default(self) -> None:
        caller = Gate().caller("whatever")
        assert caller is not None and (caller.name, caller.tenant, caller.quota) == (None, None, None)
        gate = Gate(limits={"default": KeyLimits(max_concurrent_requests=1)})
        one, other = gate.caller("a"), gate.caller("")
        assert one is not None and other is not None and one.quota is other.quota is not None

    def test_each_key_has_a_quota_of_its_own(self) -> None:
        limits = {"default": KeyLimits(requests_per_minute=5), "bob": KeyLimits()}
        gate = Gate(KeyRing(keys_from_config({"ann": "a", "bob": "b", "cat": "c"})), limits)
        ann, bob, cat = (gate.caller(secret) for secret in "abc")
        assert ann and bob and cat and ann.quota and cat.quota and ann.quota is not cat.quota
        assert bob.quota is None and bob.tenant
        again = gate.caller("a")
        assert again and again.quota is ann.quota
        assert gate.caller("d") is None

    def test_limits_for_nobody(self) -> None:
        with pytest.raises(ConfigError, match="limits for bbo, but"):
            Gate(KeyRing(keys_from_config({"bob": "b"})), {"bbo": KeyLimits()})
        with pytest.raises(ConfigError, match="limits for bob"):
            Gate(None, {"bob": KeyLimits()})


class TestRequestLimits:
    LIMITS = RequestLimits(
        max_n=4,
        max_stop_strings=2,
        max_stop_length=10,
        max_bad_words=3,
        max_bad_word_tokens=5,
        max_prompts=3,
        max_messages=2,
        max_json_depth=3,
    )

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"n": 5}, "n"),
            ({"best_of": 5}, "best_of"),
            ({"stop": ["a", "b", "c"]}, "stop"),
            ({"stop": "a" * 11}, "stop"),
            ({"stop_sequences": ["a" * 11]}, "stop_sequences"),
            ({"stop": ["a", "a" * 11]}, "stop"),
            ({"bad_words": ["a", "a" * 11]}, "bad_words"),
            ({"bad_words": ["a"] * 4}, "bad_words"),
            ({"bad_words_token_ids": [[1]] * 4}, "bad_words_token_ids"),
            ({"bad_words_token_ids": [[1], [1] * 6]}, "bad_words_token_ids"),
            ({"prompt": ["a"] * 4}, "prompt"),
            ({"prompt": [[1]] * 4}, "prompt"),
            ({"messages": [{}] * 3}, "messages"),
            ({"input": [{}] * 3}, "input"),
        ],
    )
    def test_too_much(self, body: dict[str, object], param: str) -> None:
        with pytest.raises(InvalidRequestError, match=r"at most|must be in") as caught:
            self.LIMITS.check(body)
        assert caught.value.param == param

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"n": 4, "best_of": 4, "stop": ["a" * 10, "b"], "prompt": ["a"] * 3, "messages": [{}] * 2},
            {"prompt": [1] * 100},
            {"bad_words": ["a"] * 3, "bad_words_token_ids": [[1] * 5] * 3},
            {"prompt": "a" * 100, "stop": "a" * 10},
            {"n": "5", "logprobs": True, "stop": 7, "prompt": [], "messages": "x", "best_of": None},  # others refuse it
        ],
    )
    def test_not_too_much(self, body: dict[str, object]) -> None:
        self.LIMITS.check(body)

    def test_depth(self) -> None:
        for fine in ({}, {"a": [{}]}, {"a": [1, 2, {"b": "[[[["}]}):
            self.LIMITS.check_depth(fine)
        deep: object = 1
        for _ in range(100_000):
            deep = [deep]
        for wrong in ({"a": [[[]]]}, {"b": [], "a": {"a": {"a": {}}}}, {"a": deep}):
            with pytest.raises(InvalidRequestError, match="max_json_depth"):
                self.LIMITS.check_depth(wrong)


class TestQuota:
    def quota(self, clock: Clock, **limits: int) -> Quota:
        return Quota(KeyLimits(**limits), "ann", clock_s=clock)

    def test_requests_at_once(self) -> None:
        quota = self.quota(Clock(), max_concurrent_requests=3)
        quota.admit(2, 0)
        with pytest.raises(LimitError, match=r"'ann' has 2 requests.*takes 3 at once") as caught:
            quota.admit(2, 0)
        assert (caught.value.reason, caught.value.retry_after_s) == ("max_concurrent_requests", 1.0)
        quota.admit(1, 0)
        quota.end(0)
        quota.end(0)
        quota.admit(2, 0)
        with pytest.raises(InvalidRequestError, match="send fewer"):
            quota.admit(4, 0)

    def test_requests_a_minute(self) -> None:
        clock = Clock()
        quota = self.quota(clock, requests_per_minute=6)
        quota.admit(6, 0)
        with pytest.raises(LimitError, match="takes 6 requests a minute") as caught:
            quota.admit(1, 0)
        assert caught.value.retry_after_s == pytest.approx(10)
        clock.now_s += 9.9
        with pytest.raises(LimitError):
            quota.admit(1, 0)
        clock.now_s += 0.2
        quota.admit(1, 0)

    def test_tokens_come_back_where_they_were_not_used(self) -> None:
        clock = Clock()
        quota = self.quota(clock, tokens_per_minute=600)
        quota.admit(1, 500)
        with pytest.raises(LimitError, match="would cost 200") as caught:
            quota.admit(1, 200)
        assert caught.value.retry_after_s == pytest.approx(10) and caught.value.reason == "tokens_per_minute"
        quota.end(400)
        quota.admit(1, 200)

    def test_one_that_costs_more_than_a_minute_gives_waits_for_a_full_bucket_and_leaves_a_debt(self) -> None:
        clock = Clock()
        quota = self.quota(clock, tokens_per_minute=60)
        quota.admit(1, 180)
        with pytest.raises(LimitError) as caught:
            quota.admit(1, 1)
        assert caught.value.retry_after_s == pytest.approx(121)
        clock.now_s += 121
        quota.admit(1, 1)
        with pytest.raises(LimitError):
            quota.admit(1, 180)
        clock.now_s += 60
        quota.admit(1, 180)

    def test_what_the_engine_refuses_costs_nothing(self) -> None:
        quota = self.quota(Clock(), max_concurrent_requests=2, requests_per_minute=2, tokens_per_minute=10)
        for _ in range(5):
            quota.admit(2, 10)
            quota.undo(2, 10)
        assert quota.num_live == 0

    def test_what_is_refused_takes_nothing(self) -> None:
        quota = self.quota(Clock(), max_concurrent_requests=2, requests_per_minute=2, tokens_per_minute=10)
        quota.admit(1, 9)
        for _ in range(5):
            with pytest.raises(LimitError, match="tokens_per_minute"):
                quota.admit(1, 2)
        quota.admit(1, 1)


LIMITS = KeyLimits(max_concurrent_requests=4, requests_per_minute=30, tokens_per_minute=300)


class QuotaMachine(RuleBasedStateMachine):
    """Against the plain statement: what began and what was used in any time is at most a minute's, and its share of the
    time, and what one request may cost beyond that."""

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.quota = Quota(LIMITS, clock_s=self.clock)
        self.live: list[int] = []
        self.num_begun = 0
        self.num_used = 0

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule(num_requests=st.integers(1, 4), tokens=st.integers(0, 100))
    def ask(self, num_requests: int, tokens: int) -> None:
        room = len(self.live) + num_requests <= 4
        try:
            self.quota.admit(num_requests, num_requests * tokens)
        except LimitError as error:
            assert error.retry_after_s > 0
            if error.reason == "max_concurrent_requests":
                assert not room
            else:
                # It says the truth: then there is room, if nobody else comes.
                assert room
                self.clock.now_s += error.retry_after_s + 1e-6
                self.ask(num_requests, tokens)
        else:
            assert room
            self.live += [tokens] * num_requests
            self.num_begun += num_requests

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        tokens = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        used = data.draw(st.integers(0, tokens))
        self.num_used += used
        self.quota.end(tokens - used)

    @invariant()
    def no_more_than_is_allowed(self) -> None:
        minutes = (self.clock.now_s - 1000.0) / 60 + 1
        assert self.quota.num_live == len(self.live)
        assert self.num_begun <= math.ceil(30 * minutes + 1e-3)
        # A list of prompts may cost up to 400, which is more than the bucket holds.
        assert self.num_used + sum(self.live) <= 300 * minutes + 100 + 1e-3


QuotaMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestQuotaMachine = QuotaMachine.TestCase
