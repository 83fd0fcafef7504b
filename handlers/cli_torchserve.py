"""TorchServe's side of the command line: `serve --host torchserve` and `pack`."""

from __future__ import annotations

import json
from pathlib import Path

from paged_backend.handlers.deployment import API_KEY_VARIABLE, Deployment
from paged_backend.handlers.torchserve.archive import pack as pack_archive
from paged_backend.handlers.torchserve.config_files import write_host_files, write_model_config
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


def pack(deployment: Deployment, export_path: Path, archive_format: str, files: Path | None) -> tuple[Path, ...]:
    """Writes an archive and, where a folder for them is given, the files for starting TorchServe by hand.

    Returns:
        What was written: the archive, then model-config.yaml, config.properties, log4j2.xml, metrics.yaml.

    Raises:
        ConfigError: what the archiver refuses.
    """
    archive = pack_archive(deployment, export_path, archive_format)
    if files is None:
        return (archive,)
    files.mkdir(parents=True, exist_ok=True)
    host_files = write_host_files(deployment, files, model_store=export_path)
    return (
        archive,
        write_model_config(deployment, files),
        host_files.config_properties,
        host_files.log_config,
        host_files.metrics_config,
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
