"""Frozen, validated configuration. Argument names are vLLM's; an unknown one raises with the nearest name."""

from paged_backend.config.checks import DEFAULT_PARAMETERS, unknown_name_message
from paged_backend.config.engine_config import (
    BUNDLED_MODEL,
    TEMPLATE_ARGUMENTS,
    CacheConfig,
    ChatConfig,
    EngineConfig,
    ExecutorConfig,
    ModelConfig,
    ObservabilityConfig,
    SchedulerConfig,
    engine_argument_names,
    is_template_path,
)

__all__ = [
    "BUNDLED_MODEL",
    "DEFAULT_PARAMETERS",
    "TEMPLATE_ARGUMENTS",
    "CacheConfig",
    "ChatConfig",
    "EngineConfig",
    "ExecutorConfig",
    "ModelConfig",
    "ObservabilityConfig",
    "SchedulerConfig",
    "engine_argument_names",
    "is_template_path",
    "unknown_name_message",
]
