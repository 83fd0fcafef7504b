"""From a deployment to an engine and the OpenAI service over it, the same on both hosts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from paged_backend.handlers.deployment import Deployment

if TYPE_CHECKING:
    from paged_backend.engine.client import EngineClient
    from paged_backend.handlers.openai.service import OpenAIService


def load_engine(deployment: Deployment) -> tuple[EngineClient, OpenAIService]:
    """Loads the model and builds the OpenAI service over it; blocks, and imports torch and transformers.

    Raises:
        PagedBackendError: the configuration or the model cannot be used.
    """
    from paged_backend.engine.client import EngineClient
    from paged_backend.handlers.openai.service import OpenAIService

    # Both hosts leave out what is below a warning; the engine's line about itself is one a start.
    logging.getLogger("paged_backend.engine").setLevel(logging.INFO)
    client = EngineClient.start(deployment.engine)
    service = OpenAIService(
        client,
        model_names=deployment.model_names,
        api_keys=deployment.server.api_key,
        max_body_bytes=deployment.server.max_body_bytes,
        stall_timeout_s=deployment.server.stall_timeout_s,
    )
    return client, service
