"""The one door to an engine: thread-safe, for asyncio and plain threads alike."""

from __future__ import annotations

import dataclasses
import json
import operator
import sys
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence

from paged_backend.config import EngineConfig
from paged_backend.engine.engine_thread import EngineThread
from paged_backend.engine.front_desk import Entrant
from paged_backend.engine.grammars import GrammarDesk
from paged_backend.engine.loading import load_engine
from paged_backend.engine.parameters import ParameterDesk
from paged_backend.engine.process.engine_process import EngineProcess
from paged_backend.engine.request import DeadlineName, EngineRequest
from paged_backend.engine.stats import EngineStats
from paged_backend.engine.stream import RequestStream
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.errors import AdmissionError, EngineUnavailableError, InvalidRequestError
from paged_backend.executor.executor import Executor
from paged_backend.sampling_params import SamplingParams


class EngineClient:
    """Accepts requests, hands out their streams, tells how the engine does.

    Attributes:
        config: as given.
        tokenizer: None with `skip_tokenizer_init`.
        max_model_len: most tokens of prompt plus output.
        vocab_size: token ids are 0 .. vocab_size - 1.
        default_sampling_params: sampling parameters by name that the model, or its operator, wants where a request
            gives none. `submit` adds nothing to what it is given.
    """

    def __init__(self, config: EngineConfig, engine: Executor | EngineProcess, tokenizer: Tokenizer | None) -> None:
        """A client of a new engine.

        Args:
            engine: what a thread of this process is to step, or what runs in another one.
            tokenizer: None with `skip_tokenizer_init`.
        """
        self.config = config
        self.tokenizer = tokenizer
        self._engine = engine if isinstance(engine, EngineProcess) else EngineThread(config, engine, tokenizer)
        facts = self._facts = self._engine.facts
        self._desk, self._metrics = self._engine.desk, self._engine.metrics
        self.max_model_len: int = facts.max_model_len
        self.vocab_size: int = facts.vocab_size
        self.default_sampling_params: Mapping[str, float | int] = facts.default_sampling_params
        # When nobody holds the client any more, or the interpreter ends: a thread that still computes would abort it.
        weakref.finalize(self, self._engine.shutdown)
        self._grammars = GrammarDesk(facts.grammars_lack)
        try:
            self._parameters = ParameterDesk(config, tokenizer, facts.vocab_size, facts.eos_token_ids)
        except BaseException:
            self.shutdown()
            raise

    @classmethod
    def start(cls, config: EngineConfig) -> EngineClient:
        """Loads the model and starts the engine, in a thread or with engine_process in a process of its own; blocks
        until requests can be served.

        What computes it, and on how many threads, goes to the log.

        Raises:
            ConfigError, ModelLoadError: with what to change.
        """
        if config.executor.engine_process:
            return cls(config, *EngineProcess.start(config))
        executor, tokenizer = load_engine(config)
        client = cls(config, executor, tokenizer)
        if isinstance(client._engine, EngineThread):
            executor.on_lost(client._engine.loop.lose)
        return client

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        tenant: str | None = None,
        cache_salt: str | None = None,
        timeout_s: float | None = None,
        trace_headers: Mapping[str, str] | None = None,
        add_special_tokens: bool = True,
    ) -> RequestStream:
        """Accepts a request and returns its stream.

        Args:
            prompt: text, or token ids.
            request_id: unique among the tenant's requests that have not ended; one is made where it is None.
            priority: under the priority policy, lower values go first.
            tenant: whose request it is: tenants share no prefixes and no ids, and under the fair policy, equal parts of
                the engine. Requests without one are all of one tenant.
            cache_salt: prefixes are shared only among a tenant's requests of the same salt; among all tenants' if it
                is one of shared_cache_salts.
            timeout_s: seconds from now in which it must be over; then it ends with what it has, with finish_reason
                "abort" and stop_reason "timeout". None means default_timeout_s.
            trace_headers: the trace that it is part of: the headers traceparent and tracestate of W3C.
            add_special_tokens: let the tokenizer add its own (BOS) to a text.

        Raises:
            InvalidRequestError: the prompt is empty, too long, or outside the vocabulary; a parameter cannot be
                served here; by the present estimate, timeout_s is too short even for an engine with nothing else to
                do. `param` is the field.
            QueueFullError: too many requests, or too many tokens of prompts, wait.
            DeadlineError: by the present estimate, timeout_s is too short beside all that there is to do.
            EngineUnavailableError: draining, stopped, or dead.
        """
        (stream,) = self.submit_all(
            [prompt],
            params,
            request_ids=[request_id],
            priority=priority,
            tenant=tenant,
            cache_salt=cache_salt,
            timeout_s=timeout_s,
            trace_headers=trace_headers,
            add_special_tokens=add_special_tokens,
        )
        return stream

    def submit_all(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams,
        *,
        request_ids: Sequence[str | None],
        priority: int = 0,
        tenant: str | None = None,
        cache_salt: str | None = None,
        timeout_s: float | None = None,
        trace_headers: Mapping[str, str] | None = None,
        add_special_tokens: bool = True,
    ) -> list[RequestStream]:
        """Accepts a request for each prompt, all of them or none; see `submit`.

        Args:
            request_ids: one for each prompt.

        Raises:
            InvalidRequestError: they are more than the queue could ever hold, too.
        """
        arrival_s = time.monotonic()
        _check_arguments(params, priority, tenant, cache_salt)
        timeout_s, deadline_by = self._timeout_s(timeout_s)
        params = self._parameters.prepare(params)
        grammar = self._grammars.source(params)
        entrants: list[Entrant] = []
        for prompt, request_id in zip(prompts, request_ids, strict=True):
            prompt_token_ids = self._tokenize(prompt, add_special_tokens)
            self._check_prompt(prompt_token_ids)
            request = EngineRequest(
                request_id=request_id or uuid.uuid4().hex,
                prompt_token_ids=prompt_token_ids,
                params=params,
                priority=priority,
                tenant=tenant or "",
                cache_salt=self._prefix_scope(tenant, cache_salt),
                arrival_s=arrival_s,
                deadline_s=None if timeout_s is None else arrival_s + timeout_s,
                deadline_by=deadline_by,
                trace_headers=trace_headers,
                grammar=grammar,
            )
            max_tokens = self._facts.check_fits(request, self.config.scheduler)
            text = prompt if isinstance(prompt, str) else None
            stream = RequestStream(request, text, self.tokenizer, self._desk.abort_stream)
            entrants.append((request, max_tokens, stream))
        try:
            self._desk.submit(entrants)
        except AdmissionError as error:
            self._metrics.count_rejection(error.reason)
            raise
        return [stream for _, _, stream in entrants]

    def abort(self, request_id: str, *, tenant: str | None = None) -> None:
        """Ends a request with finish_reason "abort"; unknown and ended ones are no error.

        Args:
            tenant: who asks: only a request of its own is ended, another's is unknown to it. None ends those of all
                tenants.
        """
        self._desk.abort(request_id, tenant)

    def stats(self, *, kv_map: bool = False) -> EngineStats:
        """What the engine is doing, as of its last step.

        Args:
            kv_map: with every block of the KV cache, and whose it is. The engine's thread looks at them between two
                steps, so that the caller waits for the step that is being computed.

        Raises:
            EngineUnavailableError: the engine, which a map was asked of, has stopped or died.
        """
        if not kv_map:
            return self._desk.stats()
        blocks = self._desk.kv_map()
        return dataclasses.replace(self._desk.stats(), kv_map=blocks)

    def metrics_text(self) -> str:
        """Prometheus exposition text, under vLLM's names."""
        return self._metrics.text(self.stats)

    def check_health(self, stall_timeout_s: float | None = None) -> None:
        """Raises EngineUnavailableError when the engine is dead or draining, or has work but makes no step.

        Args:
            stall_timeout_s: how long a step may take; None does not ask.
        """
        self._desk.check_alive()
        age_s = self.stats().heartbeat_age_s
        if stall_timeout_s is not None and age_s > stall_timeout_s:
            raise EngineUnavailableError(f"The engine has made no step for {age_s:.0f} s.")

    def give_up(self, reason: str) -> None:
        """Ends every request with EngineUnavailableError, and takes no more: the engine is stuck, and its process is
        about to be ended. Waits for nothing; the engine itself is left as it is.

        Args:
            reason: for clients.
        """
        self._desk.give_up(reason)

    def drain(self, timeout_s: float) -> bool:
        """Admits nothing more, waits for what runs; True if all of it ended within timeout_s seconds."""
        return self._desk.drain(timeout_s)

    def shutdown(self) -> None:
        """Ends what is left with EngineUnavailableError and frees the model. Safe to call twice."""
        self._engine.shutdown()

    def _tokenize(self, prompt: str | Sequence[int], add_special_tokens: bool) -> list[int]:
        if not isinstance(prompt, str):
            if isinstance(prompt, (bytes, bytearray)):
                raise InvalidRequestError("prompt must be text or a list of token ids, not bytes.", param="prompt")
            try:
                return list(map(operator.index, prompt))
            except TypeError as error:
                raise InvalidRequestError(
                    f"prompt must be text or a list of token ids: {error}.", param="prompt"
                ) from error
        if self.tokenizer is None:
            raise InvalidRequestError(
                "This engine runs without a tokenizer (skip_tokenizer_init): send token ids.", param="prompt"
            )
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"prompt is not valid Unicode: {error.reason}.", param="prompt") from error
        return self.tokenizer.encode(prompt, add_special_tokens)

    def _timeout_s(self, asked_s: float | None) -> tuple[float | None, DeadlineName]:
        """What a request that asks for so many seconds gets, and by which setting."""
        scheduler = self.config.scheduler
        most_s = scheduler.max_timeout_s
        if asked_s is None:
            default_s = scheduler.default_timeout_s
            return (most_s, "max_timeout_s") if default_s is None else (default_s, "default_timeout_s")
        if isinstance(asked_s, bool) or not isinstance(asked_s, (int, float)) or not 0 < asked_s <= sys.float_info.max:
            raise InvalidRequestError(
                f"timeout_s must be a number of seconds above 0, got {asked_s!r}.", param="timeout_s"
            )
        if most_s is not None and asked_s > most_s:
            raise InvalidRequestError(
                f"timeout_s ({asked_s:g}) exceeds {most_s:g} (max_timeout_s), which this server allows at most.",
                param="timeout_s",
            )
        return float(asked_s), "timeout_s"

    def _prefix_scope(self, tenant: str | None, cache_salt: str | None) -> str | None:
        """Among whom a request's prefixes are shared: a name that no other tenant's requests can have."""
        if cache_salt in self.config.cache.shared_cache_salts:
            tenant = None
        return None if tenant is None and cache_salt is None else json.dumps([tenant, cache_salt])

    def _check_prompt(self, token_ids: Sequence[int]) -> None:
        vocab_size = self._facts.vocab_size
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
            bad = next(token for token in token_ids if not 0 <= token < vocab_size)
            raise InvalidRequestError(
                f"prompt holds token id {bad}, but the model's ids are 0 to {vocab_size - 1}.",
                param="prompt",
            )


def _check_arguments(params: object, priority: object, tenant: object, cache_salt: object) -> None:
    if not isinstance(params, SamplingParams):
        raise InvalidRequestError(f"params must be SamplingParams, got {params!r}.", param="sampling_params")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidRequestError(f"priority must be an integer, got {priority!r}.", param="priority")
    for name, value in (("tenant", tenant), ("cache_salt", cache_salt)):
        if value is not None and not isinstance(value, str):
            raise InvalidRequestError(f"{name} must be a string, got {value!r}.", param=name)
