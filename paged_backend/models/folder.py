"""Where a model's files are: a local folder, the bundled model, or a snapshot from the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paged_backend.config import BUNDLED_MODEL
from paged_backend.errors import ModelLoadError

_PACKAGE = Path(__file__).resolve().parent.parent
_HUB_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
"""What is fetched from the hub beside the weights: no other framework's."""


def resolve_folder(
    model: str, revision: str | None = None, *, load_format: str = "auto", trust_remote_code: bool = False
) -> Path:
    """The folder with the model's files, fetched from the hub if need be.

    Args:
        model: a local folder, "paged-tiny" for the bundled model, or a hub id ("organisation/name").
        revision: branch, tag or commit; for hub ids only.
        load_format: whose weights are fetched: pickles only with "pt".
        trust_remote_code: fetch code, too.

    Raises:
        ModelLoadError: there is no such folder, or the hub does not give it.
    """
    folder = _bundled_folder() if model == BUNDLED_MODEL else Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelLoadError(f"revision is for models from the hub, but {model!r} is a local folder: remove it.")
        return folder.resolve()
    if model == BUNDLED_MODEL:
        raise ModelLoadError(
            f"The bundled model {BUNDLED_MODEL!r} is not in this installation (looked for {folder}). Install "
            "a wheel, or give a model folder or hub id."
        )
    if model.count("/") > 1 or model.startswith((".", "/", "~")) or "\\" in model:
        raise ModelLoadError(f"model {model!r} is not a folder on this machine, and cannot be a hub id.")
    patterns = [*_HUB_FILES, "*.bin" if load_format == "pt" else "*.safetensors"]
    if trust_remote_code:
        patterns.append("*.py")
    return _fetch(model, revision, patterns)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelLoadError: it cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise ModelLoadError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} must hold a JSON object.")
    return value


def _bundled_folder() -> Path:
    """Beside the package in a source tree, inside it in a wheel."""
    installed = _PACKAGE / "bundled_model"
    return installed if installed.is_dir() else _PACKAGE.parent / "model_store" / BUNDLED_MODEL


def _fetch(model: str, revision: str | None, patterns: list[str]) -> Path:
    # Lazy: a local model needs nothing of the hub.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise ModelLoadError(
            f"{model!r} is gated on the hub: accept its terms there and log in with `hf auth login`, or set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{model!r} has no revision {revision!r} on the hub.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelLoadError(
            f"model {model!r} is neither a folder on this machine nor a model on the hub that this login can see."
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(
            f"model {model!r} is not a folder on this machine, is not in the hub's local cache, and the hub "
            "cannot be reached: check the network (or HF_HUB_OFFLINE), or give a local folder."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"model {model!r} could not be fetched from the hub: {error}") from error
