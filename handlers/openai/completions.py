"""/v1/completions: text or token ids in, their continuation out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.openai.generation import ResponseHead, ServingContext, submit_all
from paged_backend.handlers.openai.logprobs import completion_logprobs, prompt_logprobs_body
from paged_backend.handlers.openai.prompts import (
    count_prompts,
    encode_prompts,
    parse_prompts,
    require_tokenizer,
    room_for,
    truncate,
)
from paged_backend.handlers.openai.protocol.completions import CompletionRequest
from paged_backend.handlers.openai.protocol.generation import bounded_max_tokens, check_generation, sampling_params
from paged_backend.handlers.openai.streaming import ChunkFrames, UsageTally, collect_all, stream_response
from paged_backend.handlers.openai.wire import HttpResponse, json_response
from paged_backend.outputs import CompletionDelta, CompletionOutput, PromptLogprobs, RequestOutput, TokenLogprobs

_KIND = "text_completion"
_DEFAULT_MAX_TOKENS = 16


async def create_completion(context: ServingContext, request: CompletionRequest) -> HttpResponse:
    """Answers a completion request.

    Raises:
        PagedBackendError: whatever refuses it; nothing is left running.
    """
    head = ResponseHead.begin("cmpl", request, context)
    engine = context.engine
    check_generation(request, engine.config.scheduler.scheduling_policy)
    max_tokens = _DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    max_tokens = bounded_max_tokens(engine, max_tokens)
    params = sampling_params(
        request,
        engine,
        max_tokens=max_tokens,
        logprobs=request.logprobs,
        streams=request.stream,
        echoed=request.echo,
    )
    _check_count(context, count_prompts(request.prompt))
    limit = engine.max_model_len
    must_fit = request.truncate_prompt_tokens is None
    prompts = parse_prompts(request.prompt, max_length=limit if must_fit else None)
    add_special_tokens = request.add_special_tokens is not False
    encoded = await encode_prompts(engine, prompts, add_special_tokens, must_fit=must_fit)
    encoded = [truncate(ids, request, max_model_len=limit, max_tokens=max_tokens) for ids in encoded]
    for ids in encoded:
        room_for(ids, max_tokens, max_model_len=limit, prompt_field="prompt", max_tokens_field="max_tokens")
    echoes = _echoes(context, request, prompts, encoded)
    requests = submit_all(
        context,
        request,
        encoded,
        params,
        response_id=head.id,
        prompt_field="prompt",
        max_tokens_field="max_tokens",
    )
    tally = UsageTally([len(ids) for ids in encoded], receipts=request.return_receipt)
    if request.stream:
        writer = _ChunkWriter(head, request, echoes, encoded, params.n)
        return await stream_response(requests, ChunkFrames.of(request.stream_options, writer, tally))
    choices = []
    for prompt_index, output in enumerate(await collect_all(requests)):
        tally.add_output(prompt_index, output)
        for sample in output.outputs:
            choice = _choice(request, params.n * prompt_index + sample.index, sample, echoes[prompt_index], output)
            if request.return_token_ids:
                choice["prompt_token_ids"] = encoded[prompt_index]
            choices.append(choice)
    return json_response(head.body(_KIND, choices, tally.body()))


@dataclass(frozen=True, slots=True)
class _Echo:
    """What precedes the texts of one prompt's samples in the response: the prompt as the model saw it, or nothing.

    Attributes:
        first_text: of its first token.
    """

    text: str = ""
    token_ids: Sequence[int] = ()
    first_text: str | None = None


class _ChunkWriter:
    """Writes a stream's choices; keeps what each of them has said so far."""

    def __init__(
        self,
        head: ResponseHead,
        request: CompletionRequest,
        echoes: Sequence[_Echo],
        prompts: Sequence[list[int]],
        n: int,
    ) -> None:
        self.head = self.first_head = head.chunk_head(_KIND)
        self._request = request
        self._prompts = prompts
        self._n = n
        self._echoes = echoes
        self._unsaid = [echo.text for echo in echoes for _ in range(n)]
        self._prompt_logprobs: list[PromptLogprobs | None] = [None] * len(self._unsaid)  # until they are said
        self._begun = [False] * len(self._unsaid)
        self._text_offset = [0] * len(self._unsaid)

    def first_choices(self, prompt_index: int) -> list[dict[str, Any]]:
        """Nothing: an echoed prompt comes with the first text."""
        return []

    def take_prompt(self, prompt_index: int, logprobs: PromptLogprobs) -> None:
        """They come with the first text."""
        for index in range(self._n * prompt_index, self._n * (prompt_index + 1)):
            self._prompt_logprobs[index] = logprobs

    def choices(self, prompt_index: int, delta: CompletionDelta) -> list[dict[str, Any]]:
        """One sample's new text, in one choice."""
        index = self._n * prompt_index + delta.index
        of_prompt, self._prompt_logprobs[index] = self._prompt_logprobs[index], None
        logprobs = None
        if delta.logprobs is not None or of_prompt is not None:
            logprobs, self._text_offset[index] = _columns(
                self._request,
                self._echoes[prompt_index],
                of_prompt,
                delta.token_ids,
                delta.logprobs,
                self._text_offset[index],
            )
        text = delta.text
        if self._unsaid[index]:
            text, self._unsaid[index] = self._unsaid[index] + text, ""
        choice: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = delta.token_ids
            if not self._begun[index]:
                choice["prompt_token_ids"] = self._prompts[prompt_index]
        self._begun[index] = True
        return [choice]


def _check_count(context: ServingContext, num_prompts: int) -> None:
    """Refuses at once what the queue could never hold, before any of it is encoded."""
    most = context.engine.config.scheduler.max_num_held_reqs
    if most is not None and num_prompts > most:
        raise InvalidRequestError(
            f"prompt holds {num_prompts} prompts; this server can hold {most} requests: send fewer at once.",
            param="prompt",
        )


def _echoes(
    context: ServingContext,
    request: CompletionRequest,
    prompts: Sequence[str | list[int]],
    encoded: Sequence[list[int]],
) -> list[_Echo]:
    """Of each prompt."""
    if not request.echo:
        return [_Echo() for _ in prompts]
    tokenizer = require_tokenizer(context.engine, "echo")
    truncated = request.truncate_prompt_tokens is not None
    skip_special_tokens = request.skip_special_tokens is not False
    return [
        _Echo(
            prompt if isinstance(prompt, str) and not truncated else tokenizer.decode(ids, skip_special_tokens),
            ids,
            tokenizer.decode(ids[:1], skip_special_tokens=False),
        )
        for prompt, ids in zip(prompts, encoded, strict=True)
    ]


def _columns(
    request: CompletionRequest,
    echo: _Echo,
    prompt_logprobs: PromptLogprobs | None,
    token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs] | None,
    text_offset: int,
) -> tuple[dict[str, Any] | None, int]:
    """The log-probabilities of a sample's tokens, behind the prompt's where that is repeated and they are known.

    Returns:
        What `completion_logprobs` does; None in place of the columns where none were asked for.
    """
    if request.logprobs is None:
        return None, text_offset
    ids, entries = list(token_ids), list[TokenLogprobs | None](logprobs or ())
    if request.echo and prompt_logprobs is not None:
        ids, entries = [*echo.token_ids, *ids], [*prompt_logprobs, *entries]
    return completion_logprobs(
        ids,
        entries,
        num_top=None if request.logprob_token_ids else request.logprobs,
        text_offset=text_offset,
        as_token_ids=request.return_tokens_as_token_ids,
        first_text=echo.first_text,
    )


def _choice(
    request: CompletionRequest, index: int, sample: CompletionOutput, echo: _Echo, output: RequestOutput
) -> dict[str, Any]:
    logprobs, _ = _columns(request, echo, output.prompt_logprobs, sample.token_ids, sample.logprobs, 0)
    choice: dict[str, Any] = {
        "index": index,
        "text": echo.text + sample.text,
        "logprobs": logprobs,
        "finish_reason": sample.finish_reason,
        "stop_reason": sample.stop_reason,
    }
    if request.prompt_logprobs is not None:
        entries, num_top = output.prompt_logprobs, request.prompt_logprobs
        choice["prompt_logprobs"] = entries and prompt_logprobs_body(output.prompt_token_ids, entries, num_top)
    if request.return_token_ids:
        choice["token_ids"] = sample.token_ids
    return choice
