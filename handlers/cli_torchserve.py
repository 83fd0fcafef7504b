"""`paged-backend serve --host torchserve`: the launcher, and what a person reads when it is ready."""

from __future__ import annotations

import json
from pathlib import Path

from paged_backend.handlers.deployment import API_KEY_VARIABLE, Deployment
from paged_backend.handlers.torchserve.launch import serve as launch


def serve(deployment: Deployment, model_store: Path | None) -> int:
    """Serves until a signal or a fault ends it; returns the exit status.

    Args:
        model_store: where the archive goes; None means a temporary folder.

    Raises:
        ConfigError: what the launcher refuses.
    """
    return launch(
        deployment,
        export_path=model_store,
        archive_format="mar",
        on_ready=lambda base_url: print(ready_text(deployment, base_url), flush=True),
    )


def ready_text(deployment: Deployment, base_url: str) -> str:
    """Where the server is, and a command to paste; a key is taken from the environment."""
    body = {
        "model": deployment.model_names[0],
        "messages": [{"role": "user", "content": "Tell me a short story."}],
        "max_tokens": 64,
    }
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if deployment.server.api_key is not None else ""
    return (
        f"Ready: {', '.join(deployment.model_names)} on TorchServe at {base_url}. Try:\n\n"
        f"curl {base_url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d '{json.dumps(body)}'\n"
    )
