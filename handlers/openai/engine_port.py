"""What the protocol needs of an engine: `engine.client.EngineClient` has it, and so has a scripted one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from paged_backend.config import EngineConfig
from paged_backend.outputs import RequestDelta, RequestOutput
from paged_backend.sampling_params import SamplingParams


class TokenizerPort(Protocol):
    """Text to tokens and back; safe to call from any thread."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def longest_token_characters(self) -> int | None: ...

    def template_source(self, *, has_tools: bool) -> str | None: ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        **kwargs: Any,
    ) -> str: ...


class StreamPort(Protocol):
    """One accepted request: iterate it once, or collect it."""

    @property
    def request_id(self) -> str: ...

    def __aiter__(self) -> AsyncIterator[RequestDelta]: ...

    def abort(self) -> bool: ...

    def add_done_callback(self, callback: Callable[[int], None]) -> None: ...

    async def begun(self) -> None: ...

    async def collect_async(self) -> RequestOutput: ...


class EnginePort(Protocol):
    """An engine as the handlers see it."""

    @property
    def config(self) -> EngineConfig: ...

    @property
    def tokenizer(self) -> TokenizerPort | None: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def default_sampling_params(self) -> Mapping[str, float | int]: ...

    def submit_all(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        request_ids: Sequence[str],
        priority: int = 0,
        tenant: str | None = None,
        cache_salt: str | None = None,
        timeout_s: float | None = None,
        trace_headers: Mapping[str, str] | None = None,
    ) -> Sequence[StreamPort]: ...

    def metrics_text(self) -> str: ...

    def check_health(self, stall_timeout_s: float | None = None) -> None: ...
