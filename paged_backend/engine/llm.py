"""The Python API: `LLM.generate`, `LLM.chat` and `LLM.beam_search`, with vLLM's arguments and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, cast

from tqdm.auto import tqdm

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.engine.parameters import default_sampling_params
from paged_backend.engine.stats import EngineStats
from paged_backend.engine.stream import RequestStream
from paged_backend.errors import InvalidRequestError
from paged_backend.outputs import BeamSearchOutput, BeamSearchSequence, RequestOutput
from paged_backend.sampling_params import BeamSearchParams, SamplingParams

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, {"prompt": text} or {"prompt_token_ids": ids}."""

Messages = Sequence[Mapping[str, Any]]


class LLM:
    """A model in this process, for batches of prompts.

    ```python
    llm = LLM(model="paged-tiny")
    outputs = llm.generate(["Once upon a time"], SamplingParams(temperature=0.8, max_tokens=100))
    print(outputs[0].outputs[0].text)
    ```

    Args:
        model: a local folder, a hub id, or "paged-tiny", the bundled model.
        **engine_args: the engine's other arguments under vLLM's names; see `EngineConfig`.

    Raises:
        ConfigError, ModelLoadError: with what to change.
    """

    def __init__(self, model: str | None = None, **engine_args: Any) -> None:
        if model is not None:
            engine_args["model"] = model
        # A batch is as long as its caller made it: there is nobody to send away with "queue full".
        engine_args.setdefault("max_num_queued_reqs", None)
        self._client = EngineClient.start(EngineConfig.from_args(engine_args))

    @property
    def config(self) -> EngineConfig:
        """The configuration in force."""
        return self._client.config

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Completes prompts; outputs keep their order.

        Args:
            prompts: one prompt or many.
            sampling_params: one for all, or one per prompt; None means `get_default_sampling_params`.
            use_tqdm: show a progress bar.
            priority: one per prompt, for the priority policy.

        Raises:
            InvalidRequestError: a prompt or parameter is wrong; nothing of the batch is left running.
        """
        return self._run([_text_or_ids(prompt) for prompt in _as_batch(prompts)], sampling_params, priority, use_tqdm)

    def beam_search(
        self, prompts: Prompt | Iterable[Prompt], params: BeamSearchParams, *, use_tqdm: bool = False
    ) -> list[BeamSearchOutput]:
        """The likeliest continuations of prompts, beam_width of each; outputs keep the prompts' order.

        Args:
            prompts: one prompt or many.
            params: for all of them. What they lack, `generate` has: SamplingParams(use_beam_search=True, ...).
            use_tqdm: show a progress bar.

        Raises:
            InvalidRequestError: a prompt or parameter is wrong; nothing of the batch is left running.
        """
        sampling = params.sampling_params()
        texts_or_ids = [_text_or_ids(prompt) for prompt in _as_batch(prompts)]
        return [self._as_beams(output) for output in self._run(texts_or_ids, sampling, None, use_tqdm)]

    def _as_beams(self, output: RequestOutput) -> BeamSearchOutput:
        tokenizer = self._client.tokenizer
        sequences = []
        for sample in output.outputs:
            tokens = [*output.prompt_token_ids, *sample.token_ids]
            text = tokenizer.decode(tokens) if tokenizer is not None else None
            score = sample.cumulative_logprob or 0.0  # cut off (default_timeout_s), it has found nothing
            sequences.append(BeamSearchSequence(tokens, score, text, sample.finish_reason, sample.stop_reason))
        return BeamSearchOutput(sequences)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation, or many; each a list of {"role", "content"} messages.

        Args:
            chat_template: in place of the model's own.
            tools: functions that the template shows to the model; its calls are in the text, as it writes them.
            chat_template_kwargs: more variables of the template.
        """
        tokenizer = self._client.tokenizer
        if tokenizer is None:
            raise InvalidRequestError("chat needs a tokenizer: leave skip_tokenizer_init off.", param="messages")
        variables = {**(self._client.config.chat.default_chat_template_kwargs or {}), **(chat_template_kwargs or {})}
        texts = [
            tokenizer.apply_chat_template(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template=chat_template,
                tools=tools,
                **variables,
            )
            for conversation in _as_conversations(messages)
        ]
        # The template has put special tokens where they belong.
        return self._run(texts, sampling_params, None, use_tqdm, add_special_tokens=False)

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` and `chat` use where they are given none: vLLM's defaults (16 tokens), but for what the
        model's generation_config.json or override_generation_config says."""
        return default_sampling_params(self._client.default_sampling_params)

    def stats(self, *, kv_map: bool = False) -> EngineStats:
        """What the engine did so far, and with `kv_map` who has which block of the KV cache."""
        return self._client.stats(kv_map=kv_map)

    def close(self) -> None:
        """Ends the engine and frees its memory. Also done by `with LLM(...) as llm:`."""
        self._client.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
        use_tqdm: bool,
        add_special_tokens: bool = True,
    ) -> list[RequestOutput]:
        default = self.get_default_sampling_params() if sampling_params is None else sampling_params
        params = _one_per_prompt("sampling_params", default, len(prompts))
        priorities = _one_per_prompt("priority", 0 if priority is None else priority, len(prompts))
        streams: list[RequestStream] = []
        try:
            for prompt, sampling, rank in zip(prompts, params, priorities, strict=True):
                streams.append(
                    self._client.submit(prompt, sampling, priority=rank, add_special_tokens=add_special_tokens)
                )
            return self._collect(streams, use_tqdm)
        except BaseException:
            for stream in streams:
                stream.abort()
            raise

    def _collect(self, streams: Sequence[RequestStream], use_tqdm: bool) -> list[RequestOutput]:
        outputs = []
        num_tokens = 0
        with tqdm(total=len(streams), desc="Processed prompts", unit="req", disable=not use_tqdm) as bar:
            for stream in streams:
                outputs.append(stream.collect())
                num_tokens += sum(len(sample.token_ids) for sample in outputs[-1].outputs)
                bar.set_postfix_str(f"{num_tokens / max(bar.format_dict['elapsed'], 1e-9):.1f} tok/s", refresh=False)
                bar.update()
        return outputs


def _as_batch(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        return [cast("Prompt", prompts)]
    batch = list(prompts)
    if batch and isinstance(batch[0], int):
        return [cast("list[int]", batch)]  # one prompt of token ids
    return cast("list[Prompt]", batch)


def _as_conversations(messages: Messages | Sequence[Messages]) -> list[Messages]:
    batch = list(messages)
    if not batch:
        raise InvalidRequestError("messages must not be empty.", param="messages")
    conversations = [cast("Messages", batch)] if isinstance(batch[0], Mapping) else cast("list[Messages]", batch)
    for conversation in conversations:
        if isinstance(conversation, str) or not all(isinstance(message, Mapping) for message in conversation):
            raise InvalidRequestError(
                'messages must be a list of {"role": ..., "content": ...} mappings, or a list of such lists.',
                param="messages",
            )
    return conversations


def _one_per_prompt(name: str, value: Any, count: int) -> list[Any]:
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise InvalidRequestError(f"{name} has {len(value)} entries for {count} prompts.", param=name)
    return list(value)


def _text_or_ids(prompt: Prompt) -> str | Sequence[int]:
    if not isinstance(prompt, Mapping):
        return prompt
    if len(prompt) == 1 and isinstance(prompt.get("prompt"), str):
        return str(prompt["prompt"])
    if len(prompt) == 1 and isinstance(prompt.get("prompt_token_ids"), list):
        return cast("list[int]", prompt["prompt_token_ids"])
    raise InvalidRequestError(
        'A prompt given as a mapping is {"prompt": text} or {"prompt_token_ids": [ids]}, '
        f"got the keys {sorted(map(str, prompt))}.",
        param="prompt",
    )
