"""What a request's parameters do to its logits before a token is drawn. Definitions and order are vLLM's:
allowed tokens, suppressed tokens and bad words, logit bias, then penalties."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from paged_backend.errors import InvalidRequestError
from paged_backend.kernels.sampling_batch import LogitChanges
from paged_backend.sampling_params import BadWords, SamplingParams
from paged_backend.scheduler.plan import SamplingTask


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Refuses token ids that the model does not have.

    Raises:
        InvalidRequestError: an id in one of the parameters is not the model's; `param` is its name.
    """
    for name, token_ids in _token_ids(params):
        for token in token_ids:
            if not 0 <= token < vocab_size:
                raise InvalidRequestError(
                    f"{name} holds token id {token}, but the model's ids are 0 to {vocab_size - 1}.",
                    param=name,
                )


def logit_changes(task: SamplingTask) -> LogitChanges:
    """What applies, as `Kernels.sample` takes it."""
    params = task.params
    output = task.output_token_ids if task.penalises or params.bad_words_token_ids else ()
    return LogitChanges(
        params.allowed_token_ids,
        _suppressed(task, output),
        params.logit_bias,
        params.repetition_penalty,
        params.presence_penalty,
        params.frequency_penalty,
        task.prompt_token_ids,
        output,
    )


def unseen_changes(task: SamplingTask) -> LogitChanges:
    """What applies but for penalties, whatever the tokens before are."""
    params = task.params
    return LogitChanges(params.allowed_token_ids, _suppressed(task, ()), params.logit_bias)


def _suppressed(task: SamplingTask, output: Sequence[int]) -> tuple[int, ...]:
    bad_words = task.params.bad_words_token_ids
    if not bad_words:
        return task.suppressed_token_ids
    assert isinstance(bad_words, BadWords)
    return task.suppressed_token_ids + bad_words.last_tokens(output)  # the prompt counts for nothing


def _token_ids(params: SamplingParams) -> Iterator[tuple[str, Iterable[int]]]:
    for name in ("allowed_token_ids", "logit_bias", "stop_token_ids", "logprob_token_ids"):
        yield name, getattr(params, name) or ()
    yield "bad_words_token_ids", chain.from_iterable(params.bad_words_token_ids or ())
