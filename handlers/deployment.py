"""One deployment, read from one YAML file: both hosts derive their own files from it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from paged_backend.config import (
    BUNDLED_MODEL,
    EngineConfig,
    engine_argument_names,
    is_template_path,
    unknown_name_message,
)
from paged_backend.errors import ConfigError

API_KEY_VARIABLE = "PAGED_BACKEND_API_KEY"
"""The environment variable that overrides `server.api_key`, so that no file has to hold a key; several are
separated by spaces."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*")
_JAVA_SIZE = re.compile(r"[1-9][0-9]*[kmgKMG]")
_ENGINE_PATHS = ("model", "tokenizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What both hosts' servers have in common.

    Attributes:
        host: address to bind. Loopback by default: put a reverse proxy with TLS in front for anything else.
        port: TCP port; None means the host's own default (TorchServe 8080, BentoML 3000).
        api_key: clients must send it, or one of them, as `Authorization: Bearer KEY`; none lets everybody in. Each key
            is a tenant of its own: no other key's requests share its prefixes, or its part of the engine under
            engine.scheduling_policy: fair. In a file it may be a single string, or null.
        max_body_bytes: larger request bodies are refused with 413.
        drain_timeout_s: seconds that running requests get to end after the server is told to stop.
        stall_timeout_s: seconds without an engine step, while there is work, after which it counts as stuck.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    api_key: tuple[str, ...] = field(default=(), repr=False)
    max_body_bytes: int = 20_000_000
    drain_timeout_s: float = 10.0
    stall_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        _check_text("server.host", self.host)
        _check_integer("server.port", self.port, low=1, high=65535, optional=True)
        object.__setattr__(self, "api_key", _api_keys(self.api_key))
        _check_integer("server.max_body_bytes", self.max_body_bytes, low=1)
        _check_seconds("server.drain_timeout_s", self.drain_timeout_s, above_zero=False)
        _check_seconds("server.stall_timeout_s", self.stall_timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchServeConfig:
    """What only TorchServe needs.

    Attributes:
        management_port, metrics_port: TorchServe's other two ports.
        batch_size: most requests that live at once in the worker; None means what engine.max_num_seqs and
            engine.max_num_queued_reqs let in, so that the engine's own queue answers 429. Those beyond it wait in
            TorchServe's job queue.
        job_queue_size: requests that may wait there; one more is refused with 503.
        startup_timeout_s: seconds that the worker may take to load the model.
        response_timeout_s: seconds that one call of the handler may take (a call, not a stream).
        max_response_bytes: largest reply; TorchServe kills the worker past it.
        java_heap: the JVM's heap bound, such as "512m".
    """

    management_port: int = 8081
    metrics_port: int = 8082
    batch_size: int | None = None
    job_queue_size: int = 100
    startup_timeout_s: int = 600
    response_timeout_s: int = 20
    max_response_bytes: int = 100_000_000
    java_heap: str = "512m"

    def __post_init__(self) -> None:
        _check_integer("torchserve.management_port", self.management_port, low=1, high=65535)
        _check_integer("torchserve.metrics_port", self.metrics_port, low=1, high=65535)
        _check_integer("torchserve.batch_size", self.batch_size, low=1, optional=True)
        _check_integer("torchserve.job_queue_size", self.job_queue_size, low=1)
        _check_integer("torchserve.startup_timeout_s", self.startup_timeout_s, low=1)
        _check_integer("torchserve.response_timeout_s", self.response_timeout_s, low=1)
        _check_integer("torchserve.max_response_bytes", self.max_response_bytes, low=1)
        if not isinstance(self.java_heap, str) or not _JAVA_SIZE.fullmatch(self.java_heap):
            raise ConfigError(f'torchserve.java_heap must look like "512m" or "2g", got {self.java_heap!r}.')


@dataclass(frozen=True, slots=True, kw_only=True)
class BentoConfig:
    """What only BentoML needs.

    Attributes:
        timeout_s: bound on the time to a response's first byte; BentoML answers 504 past it.
        access_log: log a line per request.
        tracing: keep OpenTelemetry on for the API routes; it costs more than the rest of the host's overhead.
    """

    timeout_s: int = 3600
    access_log: bool = False
    tracing: bool = False

    def __post_init__(self) -> None:
        _check_integer("bento.timeout_s", self.timeout_s, low=1)
        _check_bool("bento.access_log", self.access_log)
        _check_bool("bento.tracing", self.tracing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model under a name, an engine for it, and the servers' settings.

    Attributes:
        name: route name on TorchServe, and the served model name where engine.served_model_name is not given.
        version: route version on TorchServe, such as "1.0".
    """

    name: str
    version: str = "1.0"
    engine: EngineConfig = field(default_factory=EngineConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    torchserve: TorchServeConfig = field(default_factory=TorchServeConfig)
    bento: BentoConfig = field(default_factory=BentoConfig)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name must start with a letter or digit and hold only letters, digits, '.', '_' and '-', "
                f"got {self.name!r}."
            )
        if not isinstance(self.version, str) or not _VERSION.fullmatch(self.version):
            raise ConfigError(f'version must be a quoted string such as "1.0", got {self.version!r}.')

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that requests may use; the first one is used in replies where a request names none."""
        return self.engine.model.served_model_name

    @classmethod
    def load(cls, path: str | Path, *, environ: Mapping[str, str] | None = None) -> Deployment:
        """Reads a deployment's YAML file.

        Args:
            path: the file; relative model folders in it are relative to the file's own folder.
            environ: where PAGED_BACKEND_API_KEY is looked up; None means the process's environment.

        Raises:
            ConfigError: the file cannot be read, is not YAML, or has an unknown key or a wrong value; the
                message starts with the file's name.
        """
        data = cls.read(path)
        try:
            return cls.from_dict(data, environ=environ)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def read(cls, path: str | Path) -> dict[str, Any]:
        """What a deployment's YAML file says, for `from_dict`: nothing is filled in, relative folders are absolute.

        Raises:
            ConfigError: the file cannot be read, is not YAML, or is not a mapping; its keys are not checked.
        """
        file = Path(path)
        try:
            data = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror or error}.") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{file}: is not valid YAML: {yaml_problem(error)}.") from None
        if data is None:
            return {}
        if not isinstance(data, Mapping):
            raise ConfigError(f"{file}: deployment must be a mapping of keys to values, got {type(data).__name__}.")
        content = dict(data)
        if isinstance(content.get("engine"), Mapping):
            content["engine"] = _with_absolute_folders(content["engine"], file.resolve().parent)
        return content

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        *,
        base_folder: str | Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Deployment:
        """Builds a deployment from the YAML file's content.

        Args:
            data: the file's keys; every one but `name` may be left out.
            base_folder: what relative model folders are relative to; None leaves them as they are.
            environ: where PAGED_BACKEND_API_KEY is looked up; None means the process's environment.

        Raises:
            ConfigError: a key is unknown (the nearest known one is named) or a value is wrong.
        """
        top = _section("deployment", data, tuple(f.name for f in dataclasses.fields(cls)))
        if "name" not in top:
            raise ConfigError("name is missing: give the deployment one, it becomes part of its URL.")
        _check_text("name", top["name"])
        engine_args = _section("engine", top.get("engine"), engine_argument_names())
        engine_args = _with_absolute_folders(engine_args, base_folder)
        if not engine_args.get("served_model_name"):
            engine_args["served_model_name"] = (top["name"],)
        server_args = _arguments(ServerConfig, "server", top.get("server"))
        override = (os.environ if environ is None else environ).get(API_KEY_VARIABLE)
        if override is not None:
            if not override.split():
                # An empty key would silently open the server: most likely a secret that failed to load.
                raise ConfigError(f"{API_KEY_VARIABLE} is set but empty: give it a key, or unset it.")
            server_args["api_key"] = override.split()
        return cls(
            name=top["name"],
            version=top.get("version", "1.0"),
            engine=EngineConfig.from_args(engine_args),
            server=ServerConfig(**server_args),
            torchserve=TorchServeConfig(**_arguments(TorchServeConfig, "torchserve", top.get("torchserve"))),
            bento=BentoConfig(**_arguments(BentoConfig, "bento", top.get("bento"))),
        )

    def to_dict(self, *, with_api_key: bool = True) -> dict[str, Any]:
        """Plain data (for YAML or JSON) that gives this deployment again through `from_dict`.

        Args:
            with_api_key: False leaves the keys out: do so for files that others may read, and hand the keys
                over in PAGED_BACKEND_API_KEY.
        """
        engine_args = {name: _plain(value) for name, value in self.engine.to_args().items()}
        server = {name: _plain(value) for name, value in dataclasses.asdict(self.server).items()}
        if not with_api_key:
            del server["api_key"]
        return {
            "name": self.name,
            "version": self.version,
            "engine": engine_args,
            "server": server,
            "torchserve": dataclasses.asdict(self.torchserve),
            "bento": dataclasses.asdict(self.bento),
        }

    def replace(self, **changes: Any) -> Deployment:
        """Another deployment with some of its parts changed."""
        return dataclasses.replace(self, **changes)


_Part = TypeVar("_Part", ServerConfig, TorchServeConfig, BentoConfig)


def yaml_problem(error: Exception) -> str:
    """What is wrong with a YAML text, and where, without a word of the text: it may hold a key."""
    if isinstance(error, yaml.MarkedYAMLError):
        problem = error.problem or error.context or "malformed"
        if not isinstance(error, _RepeatedKeyError):
            # What PyYAML quotes, it has from the text, but for single characters and its own <names>.
            problem = re.sub(r"(['\"])(?!<)(?!.\1).*\1", "...", problem)
        mark = error.problem_mark or error.context_mark
        return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.reason} (position {error.position})"
    if isinstance(error, UnicodeDecodeError):
        return f"{error.reason} (byte {error.start})"
    return "nested too deeply" if isinstance(error, RecursionError) else "a malformed value"


class _RepeatedKeyError(yaml.constructor.ConstructorError):
    """A key that a mapping holds twice."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error: the first value would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            key = key_node.value
            if key != "<<" and key in seen:
                raise _RepeatedKeyError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _arguments(part: type[_Part], name: str, data: object) -> dict[str, Any]:
    return _section(name, data, tuple(f.name for f in dataclasses.fields(part)))


def _section(name: str, data: object, known: tuple[str, ...]) -> dict[str, Any]:
    """A copy of one mapping of the file, its keys checked; an empty section (None) is an empty mapping."""
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise ConfigError(f"{name} must be a mapping of keys to values, got {type(data).__name__}.")
    for key in data:
        if key not in known:
            raise ConfigError(unknown_name_message(f"{name} key", str(key), known))
    return dict(data)


def _with_absolute_folders(engine_args: Mapping[str, Any], base_folder: str | Path | None) -> dict[str, Any]:
    """A copy in which the arguments that may be folders are resolved."""
    resolved = {
        key: _resolve(value, base_folder) if key in _ENGINE_PATHS and isinstance(value, str) else value
        for key, value in engine_args.items()
    }
    folder = resolved.get("kv_offloading_dir")
    if isinstance(folder, str) and folder and base_folder is not None:  # always a folder, there or not
        resolved["kv_offloading_dir"] = str(Path(base_folder, Path(folder).expanduser()).absolute())
    template = resolved.get("chat_template")
    if isinstance(template, str) and template and is_template_path(template) and base_folder is not None:
        resolved["chat_template"] = str(Path(base_folder, Path(template).expanduser()).absolute())
    return resolved


def _resolve(value: str, base_folder: str | Path | None) -> str:
    """A model argument with a relative folder made absolute.

    "./x", "../x" and "~/x" are always folders. Another value is one where such a folder lies beside the file
    (a hub id such as "org/name" looks the same); the bundled model's name never is.
    """
    if value.startswith("~"):
        return str(Path(value).expanduser())
    if base_folder is None or not value or value == BUNDLED_MODEL:
        return value
    folder = Path(base_folder) / value
    if value.split("/", 1)[0] in (".", "..") or folder.is_dir():
        return str(folder.resolve())
    return value


def _plain(value: Any) -> Any:
    """A value as YAML and JSON know it."""
    return list(value) if isinstance(value, tuple) else value


def _api_keys(given: object) -> tuple[str, ...]:
    """The keys, given as one, several or None. A key must not get into a log, so no message here repeats it."""
    if given is None:
        return ()
    keys = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    for key in keys:
        if not isinstance(key, str) or not key:
            raise ConfigError("server.api_key must be a quoted string that is not empty, or several in a list.")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError("server.api_key must be printable ASCII without spaces, as it travels in a header.")
    if len(set(keys)) < len(keys):
        raise ConfigError("server.api_key holds a key twice: each is a tenant of its own.")
    return tuple(str(key) for key in keys)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} must be a string that is not empty, got {value!r}.")


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}.")


def _check_integer(name: str, value: object, *, low: int, high: int | None = None, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be an integer, got {value!r}.")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"in {low}..{high}"
        raise ConfigError(f"{name} must be {bounds}, got {value}.")


def _check_seconds(name: str, value: object, *, above_zero: bool = True) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a number of seconds, got {value!r}.")
    if value < 0 or (above_zero and value == 0):
        raise ConfigError(f"{name} must be {'above' if above_zero else 'at least'} 0, got {value}.")
