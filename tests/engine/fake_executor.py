"""An executor without a model: tokens are a function of the sequence alone, and a step can be made slow or to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from paged_backend.kv.layer_group import LayerGroup
from paged_backend.scheduler.plan import StepPlan, StepResult

VOCAB_SIZE = 200
EOS = 2


class FakeExecutor:
    """Stands in for `paged_backend.executor.executor.Executor`.

    Attributes:
        plans: every plan that was run.
        before_run: called with each plan; may block or raise.
    """

    max_model_len = 256
    vocab_size = VOCAB_SIZE
    num_blocks = 64
    block_size = 4
    layer_groups = (LayerGroup(0, 4, 256),)
    eos_token_ids = frozenset({EOS})
    transfer = None
    async_scheduling = False
    default_sampling_params: Mapping[str, float] = MappingProxyType({})

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []
        self.before_run: Callable[[StepPlan], None] = lambda plan: None
        self.closed = threading.Event()

    def run(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        self.before_run(plan)
        samples = []
        for sequence in plan.sequences:
            if sequence.sampling is not None:
                task = sequence.sampling
                known = (*task.prompt_token_ids, *task.output_token_ids)
                samples += [next_token(known, seed) for seed in task.seeds]
        return StepResult(samples)

    def close(self) -> None:
        self.closed.set()


def next_token(known: Sequence[int], seed: int) -> int:
    """Never EOS: requests end at max_tokens."""
    return 3 + (sum(known) * 31 + len(known) * 7 + seed) % (VOCAB_SIZE - 3)
