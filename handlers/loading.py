"""From a deployment to its engines and the OpenAI service over them, the same on both hosts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from paged_backend.handlers.access.gate import Gate
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.engine_group import EngineGroup
from paged_backend.handlers.logs import configure_logging
from paged_backend.handlers.openai.access_log import LOGGER_NAME, AccessLog

if TYPE_CHECKING:
    from paged_backend.handlers.openai.service import OpenAIService


def make_access_log(deployment: Deployment) -> AccessLog | None:
    """The log of a server's requests; None where the operator wants none."""
    if not deployment.server.access_log:
        return None
    # Both hosts leave out what is below a warning.
    logging.getLogger(LOGGER_NAME).setLevel(logging.INFO)
    return AccessLog(prompts=deployment.server.log_prompts)


def load_engines(
    deployment: Deployment, *, gate: Gate | None = None, access_log: AccessLog | None = None
) -> tuple[EngineGroup, OpenAIService]:
    """Loads the models and builds the OpenAI service over them; blocks, and imports torch and transformers.

    Args:
        gate, access_log: where the host has others beside the service that share them; None makes them.

    Raises:
        PagedBackendError: the configuration or a model cannot be used.
    """
    from paged_backend.handlers.openai.service import OpenAIService

    server = deployment.server
    configure_logging(server.log_format, server.log_level)
    gate = server.make_gate() if gate is None else gate
    engines = EngineGroup.start(deployment.engines)
    service = OpenAIService(
        engines.models,
        gate=gate,
        request_limits=server.request_limits,
        max_body_bytes=server.max_body_bytes,
        stall_timeout_s=server.stall_timeout_s,
        access_log=access_log or make_access_log(deployment),
    )
    return engines, service
