"""What a request's parameters do to its logits before a token is drawn. Definitions and order are vLLM's:
allowed tokens, suppressed tokens, logit bias, then penalties."""

from __future__ import annotations

from paged_backend.errors import InvalidRequestError
from paged_backend.kernels.sampling_batch import LogitChanges
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SamplingTask


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Refuses token ids that the model does not have.

    Raises:
        InvalidRequestError: an id in allowed_token_ids, logit_bias or stop_token_ids is not the model's.
    """
    for name in ("allowed_token_ids", "logit_bias", "stop_token_ids"):
        for token in getattr(params, name) or ():
            if not 0 <= token < vocab_size:
                raise InvalidRequestError(
                    f"{name} holds token id {token}, but the model's ids are 0 to {vocab_size - 1}.",
                    param=name,
                )


def changes_logits(task: SamplingTask) -> bool:
    """Whether anything but temperature and filters applies to this task."""
    params = task.params
    return bool(
        task.suppressed_token_ids
        or params.logit_bias
        or params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or params.allowed_token_ids is not None
    )


def logit_changes(task: SamplingTask) -> LogitChanges:
    """What applies, as `Kernels.sample` takes it."""
    params = task.params
    return LogitChanges(
        params.allowed_token_ids,
        task.suppressed_token_ids,
        params.logit_bias,
        params.repetition_penalty,
        params.presence_penalty,
        params.frequency_penalty,
        task.prompt_token_ids,
        task.output_token_ids,
    )
