"""Which deployment a `bentoml serve` process runs, and where it was told so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import bentoml
from pydantic import BaseModel

from paged_backend.config import BUNDLED_MODEL
from paged_backend.handlers.deployment import Deployment

CONFIG_VARIABLE = "PAGED_BACKEND_CONFIG"
"""The environment variable that names the deployment's YAML file. A built Bento reads it at serve time."""

_BUNDLED_FILE = Path(__file__).resolve().parents[2] / "configs" / "paged-tiny.yaml"


class Arguments(BaseModel):
    """What `bentoml serve --arg key=value` takes; arguments of a user's own service are left to that service."""

    config: str | None = None


def load_deployment(environ: Mapping[str, str] | None = None) -> Deployment:
    """The deployment of this process.

    `--arg config=FILE` comes first, then the environment's PAGED_BACKEND_CONFIG, then the repository's
    configs/paged-tiny.yaml; an installed wheel, which has no configs folder, serves the bundled model.

    Raises:
        ConfigError: the file cannot be read or has a wrong value.
    """
    environ = os.environ if environ is None else environ
    path = bentoml.use_arguments(Arguments).config or environ.get(CONFIG_VARIABLE)
    if path:
        return Deployment.load(path, environ=environ)
    if _BUNDLED_FILE.is_file():
        return Deployment.load(_BUNDLED_FILE, environ=environ)
    return Deployment.from_dict({"name": BUNDLED_MODEL}, environ=environ)
