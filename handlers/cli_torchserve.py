"""`paged-backend serve --host torchserve`: the launcher, and what a person reads when it is ready."""

from __future__ import annotations

from pathlib import Path

from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.launching import ready_text
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
        on_ready=lambda url: print(ready_text(deployment, f"TorchServe at {url}", url), flush=True),
    )
