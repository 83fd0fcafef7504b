"""An engine in a thread of this process."""

from __future__ import annotations

from paged_backend.config import EngineConfig
from paged_backend.engine.core import EngineCore
from paged_backend.engine.facts import EngineFacts
from paged_backend.engine.front_desk import FrontDesk
from paged_backend.engine.grammars import make_compiler
from paged_backend.engine.loop import EngineLoop
from paged_backend.engine.metrics import EngineMetrics
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.engine.tracing import RequestTracer
from paged_backend.executor.executor import Executor


class EngineThread:
    """A core, the thread that steps it, and the desk in front of it.

    Attributes:
        facts: of what was loaded.
        metrics: what is told of its work.
        desk: where requests are let in.
        core: the thread's alone.
    """

    def __init__(self, config: EngineConfig, executor: Executor, tokenizer: Tokenizer | None) -> None:
        self.metrics = new_metrics(config, executor.max_model_len)
        self.core, self.facts = new_core(config, executor, tokenizer, self.metrics)
        self.loop = EngineLoop(self.core)
        self.desk = FrontDesk(config.scheduler, self.core.pace, self.core.stats(), self.loop.send)
        self.loop.start(self.desk)

    def shutdown(self) -> None:
        """Ends what is left with EngineUnavailableError and frees the model. Safe to call twice."""
        self.desk.stop()
        self.loop.shutdown()


def new_metrics(config: EngineConfig, max_model_len: int) -> EngineMetrics:
    """An engine's, with nothing observed."""
    return EngineMetrics(
        config.model.served_model_name[0], max_model_len, kv_cache_metrics=config.observability.kv_cache_metrics
    )


def new_core(
    config: EngineConfig, executor: Executor, tokenizer: Tokenizer | None, metrics: EngineMetrics
) -> tuple[EngineCore, EngineFacts]:
    """What is stepped, and what callers must know of it.

    Args:
        metrics: what it observes goes there.
    """
    endpoint = config.observability.otlp_traces_endpoint
    tracer = None if endpoint is None else RequestTracer.to(endpoint, config.model.served_model_name[0])
    compiler, grammars_lack = make_compiler(tokenizer, executor.vocab_size, executor.eos_token_ids)
    core = EngineCore(config, executor, tokenizer, metrics, tracer, compiler)
    return core, EngineFacts.of(executor, grammars_lack)
