"""Which deployment a `bentoml serve` process runs, and where it was told so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import bentoml
from pydantic import BaseModel

from paged_backend.config import BUNDLED_MODEL
from paged_backend.errors import ConfigError
from paged_backend.handlers.deployment import Deployment

CONFIG_VARIABLE = "PAGED_BACKEND_CONFIG"
"""The environment variable that names the deployment's YAML file. A built Bento reads it at serve time."""

MAX_DRAIN_S = 25.0
"""Longest draining: circus, which supervises BentoML's workers, kills them 30 s after SIGTERM, and the last words of
streams, the shutdown and a busy machine want a part of that."""

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
    if path or _BUNDLED_FILE.is_file():
        deployment = Deployment.load(path or _BUNDLED_FILE, environ=environ)
    else:
        deployment = Deployment.from_dict({"name": BUNDLED_MODEL}, environ=environ)
    check_drain(deployment)
    return deployment


def check_drain(deployment: Deployment) -> None:
    """Looks whether BentoML leaves the time for the deployment's draining.

    Raises:
        ConfigError: it does not.
    """
    if deployment.server.drain_timeout_s > MAX_DRAIN_S:
        raise ConfigError(
            f"server.drain_timeout_s must be at most {MAX_DRAIN_S:g} on BentoML, whose supervisor kills its workers "
            f"30 s after it tells them to stop; got {deployment.server.drain_timeout_s:g}."
        )
