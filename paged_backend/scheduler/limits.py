"""What can never be served is refused at the door."""

from __future__ import annotations

from paged_backend.errors import InvalidRequestError
from paged_backend.kv.pool_shape import PoolShape
from paged_backend.sampling_params import SamplingParams


def resolve_max_tokens(
    num_prompt_tokens: int, params: SamplingParams, *, max_num_seqs: int, max_model_len: int, pool: PoolShape
) -> int:
    """Checks that a request can be served, if need be alone, and resolves its max_tokens.

    A sequence that fits alone always ends: whatever else runs gives way to the first. So the samples of one
    request need not fit together, only each.

    Args:
        num_prompt_tokens: tokens of the prompt.
        params: the request's parameters; n, best_of, max_tokens and min_tokens count here.
        max_num_seqs: most sequences that run at once.
        max_model_len: most tokens of prompt plus output.
        pool: the KV cache.

    Returns:
        Output tokens that each sample may have at most: params.max_tokens within the context's room, or all
        of the room, of the context and of the cache, where it is None. One where it is 0, to be drawn and left out.

    Raises:
        InvalidRequestError: the prompt, the output or n can never fit.
    """
    if params.num_sequences > max_num_seqs:
        name = "n" if params.best_of is None else "best_of"
        raise InvalidRequestError(
            f"{name} ({params.num_sequences}) exceeds max_num_seqs ({max_num_seqs}): ask for fewer samples, or raise "
            "max_num_seqs.",
            param=name,
        )
    if num_prompt_tokens < 1:
        raise InvalidRequestError("The prompt must hold at least one token.", param="prompt")
    room = max_model_len - num_prompt_tokens
    if room < 1 and (room < 0 or params.max_tokens != 0):
        raise InvalidRequestError(
            f"The prompt has {num_prompt_tokens} tokens, but the context holds {max_model_len}, one of them "
            "at least for the output: shorten the prompt, or raise max_model_len.",
            param="prompt",
        )
    num_slots = pool.slots_for_each(num_prompt_tokens, params.num_sequences if params.use_beam_search else 1)
    holds = f"{num_slots} for each of {params.num_sequences} beams" if params.use_beam_search else str(num_slots)
    # The last token of a sequence is never computed, so it needs no slot.
    cache_room = num_slots + 1 - num_prompt_tokens
    if cache_room < 1:
        raise InvalidRequestError(
            f"The prompt has {num_prompt_tokens} tokens, but the KV cache holds {holds}: "
            "shorten the prompt, or give the cache more memory.",
            param="prompt",
        )
    max_tokens = min(room, cache_room if params.max_tokens is None else params.max_tokens)
    if max_tokens > cache_room:
        raise InvalidRequestError(
            f"The prompt's {num_prompt_tokens} tokens and max_tokens ({params.max_tokens}) need more than "
            f"the KV cache holds ({holds}): lower max_tokens to at most {cache_room}, shorten the "
            "prompt, or give the cache more memory.",
            param="max_tokens",
        )
    if params.min_tokens > max_tokens:
        raise InvalidRequestError(
            f"min_tokens ({params.min_tokens}) cannot be reached: there is room for {max_tokens} output "
            "tokens after this prompt. Lower min_tokens or shorten the prompt.",
            param="min_tokens",
        )
    return max(1, max_tokens)
