"""Packs a deployment with torch-model-archiver.

An archive holds the handler's file and model-config.yaml, which carries the deployment; code and weights stay
where they are installed. Beside the archive, `pack` leaves a folder with all that the host's own tools need to do
the same by hand, and to serve it:

    torch-model-archiver --model-name NAME --version VERSION --export-path STORE --force \\
        --handler STORE/NAME.torchserve/paged_handler.py --config-file STORE/NAME.torchserve/model-config.yaml
    torchserve --start --foreground --ncs --disable-token-auth --model-store STORE --models NAME.mar \\
        --ts-config STORE/NAME.torchserve/config.properties --log-config STORE/NAME.torchserve/log4j2.xml
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from paged_backend.errors import ConfigError
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.torchserve.config_files import write_host_files, write_model_config

HANDLER_FILE = Path(__file__).with_name("paged_handler.py")
"""The handler that goes into an archive: give it to torch-model-archiver as --handler."""

ARCHIVE_FORMATS = {"no-archive": "", "mar": ".mar"}
"""Formats by name, with what is appended to the archive's name."""

_ARCHIVER_FORMATS = {"no-archive": "no-archive", "mar": "default"}


def archive_path(deployment: Deployment, export_path: Path, archive_format: str) -> Path:
    """Where `pack` puts the archive: a folder or a .mar file named after the deployment.

    Raises:
        ConfigError: no such format.
    """
    if archive_format not in ARCHIVE_FORMATS:
        raise ConfigError(f"archive format must be one of {', '.join(ARCHIVE_FORMATS)}, got {archive_format!r}.")
    return export_path / (deployment.name + ARCHIVE_FORMATS[archive_format])


def files_folder(deployment: Deployment, export_path: Path) -> Path:
    """Where `pack` leaves model-config.yaml, config.properties, log4j2.xml, metrics.yaml and the handler."""
    return export_path / f"{deployment.name}.torchserve"


def pack(
    deployment: Deployment,
    export_path: Path,
    archive_format: str = "no-archive",
    *,
    handler_file: Path = HANDLER_FILE,
) -> Path:
    """Runs torch-model-archiver and writes the host's files; an archive of the same name is replaced.

    Args:
        export_path: folder for the archive (TorchServe's model store); made where it is missing.
        archive_format: "no-archive" (a folder) or "mar" (one file).
        handler_file: the archive's Python file with one handler class.

    Returns:
        The archive's path.

    Raises:
        ConfigError: the archiver is missing or fails, or the name is taken by a folder that is no archive.
    """
    target = archive_path(deployment, export_path, archive_format)
    if target.is_dir() and not (target / "MAR-INF").is_dir():
        raise ConfigError(f"{target} exists and is no archive: choose another export path, or rename the deployment.")
    folder = files_folder(deployment, export_path)
    folder.mkdir(parents=True, exist_ok=True)
    config_file = write_model_config(deployment, folder)
    write_host_files(deployment, folder, model_store=export_path)
    handler_copy = Path(shutil.copy(handler_file, folder))
    if target.is_dir():
        # The archiver would copy into it, and leave what an older archive had.
        shutil.rmtree(target)
    with tempfile.TemporaryDirectory(prefix="paged-pack-") as scratch:
        command = [
            find_tool("torch-model-archiver"),
            *("--model-name", deployment.name),
            *("--version", deployment.version),
            *("--handler", str(handler_copy)),
            *("--config-file", str(config_file)),
            *("--archive-format", _ARCHIVER_FORMATS[archive_format]),
            *("--export-path", str(export_path)),
            "--force",
        ]
        # It collects files in TMPDIR/NAME, which two runs at once would share.
        environment = {**os.environ, "TMPDIR": scratch}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(f"torch-model-archiver failed: {(done.stderr or done.stdout).strip()}")
    return target


def find_tool(name: str) -> str:
    """A host's command line tool: the one of this Python's environment, else the one on PATH.

    Raises:
        ConfigError: neither is there.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ConfigError(
            f"{name} is not installed: run `pip install 'paged-backend[torchserve]'` in this environment."
        )
    return found
