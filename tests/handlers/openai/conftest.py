"""A scripted engine, and a caller that plays the host."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from paged_backend.config import EngineConfig
from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.access.api_key import keys_from_config
from paged_backend.handlers.access.gate import Gate
from paged_backend.handlers.access.key_ring import KeyRing
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import HttpRequest, HttpResponse, OpenAIService
from paged_backend.outputs import CompletionDelta, Logprob, RequestDelta, RequestOutput
from paged_backend.sampling_params import SamplingParams
from tests.handlers.openai.documented import check_documented

BOS = 1


class FakeTokenizer:
    """One token per character, its code point; token 1 is a special one that comes first."""

    vocab_size = 0x3000
    longest_token_characters: int | None = 1
    opening = "[assistant]"

    def __init__(self, chat_template: str | None = "fake") -> None:
        self.chat_template = chat_template
        self.messages: list[Mapping[str, Any]] = []
        self.template_arguments: dict[str, Any] = {}

    def template_source(self, *, has_tools: bool) -> str | None:
        return self.chat_template

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(("" if skip_special_tokens else "<s>") if token == BOS else chr(token) for token in token_ids)

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **arguments: Any) -> str:
        self.messages, self.template_arguments = list(messages), arguments
        text = "".join(f"[{message['role']}]{message['content']}" for message in messages)
        return text + (self.opening if arguments["add_generation_prompt"] else "")


class FakeStream:
    """One request's scripted deltas: a character per sample and step, then the end."""

    def __init__(self, client: FakeClient, request_id: str, prompt: list[int], params: SamplingParams) -> None:
        self.request_id = request_id
        self.num_aborts = 0
        self._client = client
        self._prompt = prompt
        self._params = params
        self._told = False
        self._aborted = asyncio.Event()
        self._begun = False
        self._num_generated = 0
        self._callbacks: list[Callable[[int], None]] = []
        self.over = False

    def abort(self) -> bool:
        self.num_aborts += 1
        self._aborted.set()
        if not self._begun:
            self._end()
        return not self.over

    def add_done_callback(self, callback: Callable[[int], None]) -> None:
        self._callbacks.append(callback)

    def _end(self) -> None:
        while self._callbacks:
            self._callbacks.pop()(self._num_generated)

    async def __aiter__(self) -> AsyncIterator[RequestDelta]:
        self._begun = True
        try:
            async for delta in self._deltas():
                self._num_generated += sum(len(output.token_ids) for output in delta.outputs)
                yield delta
        finally:
            self._end()

    async def _deltas(self) -> AsyncIterator[RequestDelta]:
        client, params = self._client, self._params
        numbers = [str(index) if client.numbers_samples else "" for index in range(params.n)]
        texts = [f"{client.text}{number}"[: params.max_tokens] for number in numbers]
        if params.max_tokens == 0:
            ends = tuple(CompletionDelta(index, "", (), None, "length") for index in range(params.n))
            yield self._delta(ends, True)
            return
        for step in range(max(map(len, texts))):
            if step == client.hang_after:
                await self._aborted.wait()
            if self._aborted.is_set():
                self.over = True
                ends = tuple(CompletionDelta(index, "", (), None, "abort") for index in range(params.n))
                yield self._delta(ends, True)
                return
            if step == client.fail_after:
                raise client.failure
            await asyncio.sleep(0)
            outputs = tuple(self._output(index, text, step) for index, text in enumerate(texts))
            self.over = step + 1 == len(texts[0])
            yield self._delta(outputs, self.over)

    async def begun(self) -> None:
        await asyncio.sleep(0)

    async def collect_async(self) -> RequestOutput:
        output = RequestOutput.empty(self.request_id, None, self._prompt, self._params.n)
        async for delta in self:
            output.extend(delta)
        return output

    def _delta(self, outputs: tuple[CompletionDelta, ...], finished: bool) -> RequestDelta:
        delta = RequestDelta(self.request_id, outputs, finished, len(self._prompt), self._client.num_cached_tokens)
        if self._params.prompt_logprobs is not None and not self._told:
            self._told = True
            scores = [{token: Logprob(-2.0, 2, chr(token)), 0x62: Logprob(-1.0, 1, "b")} for token in self._prompt[1:]]
            delta.prompt_logprobs = [None, *scores]
        return delta

    def _output(self, index: int, text: str, step: int) -> CompletionDelta:
        character = text[step]
        reason = None
        if step + 1 == len(text):
            reason = "length" if len(text) == self._params.max_tokens else "stop"
        logprobs = None
        if self._params.logprobs is not None:
            # The sampled token is the third in rank, and one of the others is impossible.
            others = {0x61 + rank: Logprob(-0.5 * rank, rank, chr(0x61 + rank)) for rank in (1, 2)}
            others[0x7A] = Logprob(float("-inf"), 4, "z")
            logprobs = ({ord(character): Logprob(-1.5, 3, character), **others},)
        return CompletionDelta(index, character, (ord(character),), logprobs, reason)


@dataclass
class FakeClient:
    """A scripted engine; what was submitted is in `submissions`.

    Attributes:
        text: what every sample says, followed by its index where numbers_samples is on.
        fail_after, hang_after: the step at which every request raises `failure`, or waits to be aborted.
        submit_errors: raised by the submissions of these numbers (0 is the first).
    """

    config: EngineConfig = field(default_factory=EngineConfig)
    tokenizer: FakeTokenizer | None = field(default_factory=FakeTokenizer)
    max_model_len: int = 100
    default_sampling_params: dict[str, float | int] = field(default_factory=dict)
    text: str = "Hi"
    numbers_samples: bool = True
    num_cached_tokens: int = 0
    fail_after: int | None = None
    failure: Exception = field(default_factory=lambda: RuntimeError("secret detail"))
    hang_after: int | None = None
    submit_errors: dict[int, Exception] = field(default_factory=dict)
    health_error: Exception | None = None
    submissions: list[dict[str, Any]] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)

    def submit_all(
        self, prompts: Any, params: SamplingParams, *, request_ids: Sequence[str], **arguments: Any
    ) -> list[FakeStream]:
        if params.n > 8:
            raise InvalidRequestError("n must be at most 8.", param="n")
        for number in range(len(self.submissions), len(self.submissions) + len(prompts)):
            if error := self.submit_errors.get(number):
                raise error
        streams = []
        for prompt, request_id in zip(prompts, request_ids, strict=True):
            self.submissions.append({"prompt": prompt, "params": params, "request_id": request_id, **arguments})
            streams.append(FakeStream(self, request_id, prompt, params))
        self.streams += streams
        return streams

    def submit(self, prompt: Any, params: SamplingParams, *, request_id: Any, **arguments: Any) -> FakeStream:
        (stream,) = self.submit_all([prompt], params, request_ids=[request_id], **arguments)
        return stream

    def metrics_text(self) -> str:
        return "vllm:num_requests_running 0.0\n"

    def check_health(self, stall_timeout_s: float | None = None) -> None:
        if self.health_error is not None:
            raise self.health_error


@dataclass
class Reply:
    """A response, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of a response with one, its shape checked."""
        assert self.headers["Content-Type"] == "application/json"
        assert set(self.json) == {"error"} and set(self.json["error"]) == {"message", "type", "param", "code"}
        assert self.json["error"]["code"] == self.status
        return self.json["error"]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The JSON of a stream's frames; [DONE] is checked and left out."""
        assert self.status == 200 and self.headers["Content-Type"].startswith("text/event-stream")
        frames = self.body.decode().split("\n\n")
        assert frames[-2:] == ["data: [DONE]", ""]
        assert all(frame.startswith("data: ") for frame in frames[:-1])
        return [json.loads(frame[len("data: ") :]) for frame in frames[:-2]]


async def read(response: HttpResponse) -> Reply:
    """Reads a response to its end."""
    body = response.body
    if response.stream is not None:
        body += b"".join([piece async for piece in response.stream])
    return Reply(response.status, response.headers, body)


def gate_of(*keys: str) -> Gate:
    """A gate that lets these keys in."""
    return Gate(KeyRing(keys_from_config(list(keys))))


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def service(client: FakeClient) -> OpenAIService:
    return OpenAIService(ServedModels.one(client, ("tiny", "alias")))


@pytest.fixture
def call(service: OpenAIService) -> Callable[..., Reply]:
    """Sends one request and reads the reply: call(path, body, method=..., headers=..., service=...).

    Whatever comes must be what /openapi.json says of the route.
    """

    def send(path: str, body: Any = None, *, service: OpenAIService = service, **fields: Any) -> Reply:
        async def exchange() -> Reply:
            reply = await read(await service.handle(HttpRequest(path=path, body=body, **fields)))
            check_documented(path, fields.get("method"), reply.status, reply.headers, reply.body)
            return reply

        return asyncio.run(exchange())

    return send
