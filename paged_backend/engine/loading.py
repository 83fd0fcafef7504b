"""From a configuration to what an engine is made of."""

from __future__ import annotations

import logging
from pathlib import Path

from paged_backend.config import EngineConfig
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.engine.tracing import require_opentelemetry
from paged_backend.executor.executor import Executor
from paged_backend.models.folder import resolve_folder

logger = logging.getLogger(__name__)


def load_engine(config: EngineConfig) -> tuple[Executor, Tokenizer | None]:
    """Loads the model, and its tokenizer unless `skip_tokenizer_init`.

    What computes it, and on how many threads, goes to the log.

    Raises:
        ConfigError, ModelLoadError: with what to change.
    """
    if config.observability.otlp_traces_endpoint is not None:
        require_opentelemetry()  # before the model is loaded for nothing
    folder = _tokenizer_folder(config)
    executor = Executor(config)
    # As a rule one implementation computes all operations.
    choices = dict.fromkeys(f"{chosen}, {reason}" for chosen, reason in executor.kernel_report.values())
    name, kernels = config.model.served_model_name[0], " ".join(choices)
    logger.info("%s is loaded; CPU threads: %d; kernels: %s", name, executor.num_threads, kernels)
    return executor, _tokenizer(config, folder)


def load_tokenizer(config: EngineConfig) -> Tokenizer | None:
    """The tokenizer alone; None with `skip_tokenizer_init`.

    Raises:
        ModelLoadError: with what to change.
    """
    return _tokenizer(config, _tokenizer_folder(config))


def _tokenizer_folder(config: EngineConfig) -> Path | None:
    model = config.model
    if model.skip_tokenizer_init:
        return None
    return resolve_folder(
        model.tokenizer or model.model,
        None if model.tokenizer else model.revision,
        load_format=model.load_format,
        trust_remote_code=model.trust_remote_code,
    )


def _tokenizer(config: EngineConfig, folder: Path | None) -> Tokenizer | None:
    if folder is None:
        return None
    return Tokenizer.load(folder, config.chat.chat_template, trust_remote_code=config.model.trust_remote_code)
