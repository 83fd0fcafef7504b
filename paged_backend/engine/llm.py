"""The Python API: `LLM.generate` and `LLM.chat`, with vLLM's arguments and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, cast

from tqdm.auto import tqdm

from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.engine.stats import EngineStats
from paged_backend.engine.stream import RequestStream
from paged_backend.errors import InvalidRequestError
from paged_backend.outputs import RequestOutput
from paged_backend.sampling_params import SamplingParams

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
            sampling_params: one for all, or one per prompt; None means the defaults (16 tokens).
            use_tqdm: show a progress bar.
            priority: one per prompt, for the priority policy.

        Raises:
            InvalidRequestError: a prompt or parameter is wrong; nothing of the batch is left running.
        """
        batch = _as_batch(prompts)
        params = _one_per_prompt("sampling_params", sampling_params or SamplingParams(), len(batch))
        priorities = _one_per_prompt("priority", priority or 0, len(batch))
        streams: list[RequestStream] = []
        try:
            for prompt, sampling, rank in zip(batch, params, priorities, strict=True):
                streams.append(self._client.submit(_text_or_ids(prompt), sampling, priority=rank))
            return self._collect(streams, use_tqdm)
        except BaseException:
            for stream in streams:
                stream.abort()
            raise

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation, or many; each a list of {"role", "content"} messages."""
        tokenizer = self._client.tokenizer
        if tokenizer is None:
            raise InvalidRequestError("chat needs a tokenizer: leave skip_tokenizer_init off.", param="messages")
        if not messages:
            raise InvalidRequestError("messages must not be empty.", param="messages")
        single = isinstance(messages[0], Mapping)
        conversations = cast("Sequence[Messages]", [messages] if single else messages)
        prompts = [
            tokenizer.encode(
                tokenizer.apply_chat_template(
                    conversation,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    **(chat_template_kwargs or {}),
                ),
                add_special_tokens=False,
            )
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def stats(self) -> EngineStats:
        """What the engine did so far."""
        return self._client.stats()

    def close(self) -> None:
        """Ends the engine and frees its memory. Also done by `with LLM(...) as llm:`."""
        self._client.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    batch = list(prompts)
    if batch and isinstance(batch[0], int):
        return [cast("list[int]", batch)]  # one prompt of token ids
    return cast("list[Prompt]", batch)


def _one_per_prompt(name: str, value: Any, count: int) -> list[Any]:
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise InvalidRequestError(f"{name} has {len(value)} entries for {count} prompts.", param=name)
    return list(value)


def _text_or_ids(prompt: Prompt) -> str | Sequence[int]:
    if not isinstance(prompt, Mapping):
        return prompt
    known = {"prompt", "prompt_token_ids"}
    if len(prompt) != 1 or not known.issuperset(prompt):
        raise InvalidRequestError(
            f"A prompt given as a mapping has either 'prompt' or 'prompt_token_ids', got {sorted(prompt)}.",
            param="prompt",
        )
    value: str | Sequence[int] = next(iter(prompt.values()))
    return value
