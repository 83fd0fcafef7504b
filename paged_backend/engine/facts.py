"""What whoever is at an engine's door must know of what is behind it; plain data, also from another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paged_backend.config import SchedulerConfig
from paged_backend.engine.request import EngineRequest
from paged_backend.executor.executor import Executor
from paged_backend.kv.layer_group import LayerGroup
from paged_backend.kv.pool_shape import PoolShape
from paged_backend.scheduler.limits import resolve_max_tokens


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """Of an engine that is loaded; none of them changes.

    Attributes:
        max_model_len: most tokens of prompt plus output.
        vocab_size: token ids are 0 .. vocab_size - 1.
        eos_token_ids: what ends a text, by the model's own files.
        default_sampling_params: sampling parameters by name, for requests that leave them out.
        pool: the KV cache.
        grammars_lack: why no request can have a grammar; None where it can.
    """

    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    default_sampling_params: Mapping[str, float | int]
    pool: PoolShape
    grammars_lack: str | None

    @classmethod
    def of(cls, executor: Executor, grammars_lack: str | None) -> EngineFacts:
        """Those of an executor."""
        groups: tuple[LayerGroup, ...] = tuple(executor.layer_groups)
        return cls(
            executor.max_model_len,
            executor.vocab_size,
            executor.eos_token_ids,
            dict(executor.default_sampling_params),
            PoolShape(executor.num_blocks, executor.block_size, groups),
            grammars_lack,
        )

    def check_fits(self, request: EngineRequest, config: SchedulerConfig) -> int:
        """The most tokens of a sample, if the request can ever be served here.

        Raises:
            InvalidRequestError: it cannot.
        """
        return resolve_max_tokens(
            len(request.prompt_token_ids),
            request.params,
            max_num_seqs=config.max_num_seqs,
            max_model_len=self.max_model_len,
            pool=self.pool,
        )
