"""One deployment, read from one YAML file: both hosts derive their own files from it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from paged_backend.config import (
    BUNDLED_MODEL,
    CacheConfig,
    EngineConfig,
    engine_argument_names,
    is_template_path,
    unknown_name_message,
)
from paged_backend.config.checks import check_text
from paged_backend.errors import ConfigError
from paged_backend.handlers.access.api_key import keys_from_words
from paged_backend.handlers.host_configs import BentoConfig, ServerConfig, TorchServeConfig
from paged_backend.handlers.yaml_file import read_yaml

API_KEY_VARIABLE = "PAGED_BACKEND_API_KEY"
"""The environment variable that overrides `server.api_key` and `server.api_key_file`, so that no file has to hold a
key: each is KEY or NAME:KEY, and several are separated by spaces."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*")
_ENGINE_PATHS = ("model", "tokenizer", "generation_config")
_KEYS = ("name", "version", "engine", "models", "server", "torchserve", "bento")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Models, an engine for each, and the servers' settings.

    Attributes:
        name: route name on TorchServe, and the served model name of a single model that has none of its own.
        version: route version on TorchServe, such as "1.0".
        engines: one for each model. A file has the only one under `engine`, several under `models`.
    """

    name: str
    version: str = "1.0"
    engines: tuple[EngineConfig, ...] = (EngineConfig(),)
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
        _check_apart(self.engines)

    @property
    def engine(self) -> EngineConfig:
        """The first model's engine: in most deployments the only one."""
        return self.engines[0]

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that requests may use; the first one is meant where a request names none."""
        return tuple(name for engine in self.engines for name in engine.model.served_model_name)

    @property
    def num_gpus(self) -> int:
        """GPUs that it is to be given where `device: cuda` asks for some, else 0: its engines share them, so as many as
        the one with the most ranks has."""
        sizes = [engine.executor.tensor_parallel_size for engine in self.engines if engine.executor.device == "cuda"]
        return max(sizes, default=0)

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
        data = read_yaml(file)
        if data is None:
            return {}
        if not isinstance(data, Mapping):
            raise ConfigError(f"{file}: deployment must be a mapping of keys to values, got {type(data).__name__}.")
        return _with_absolute_paths(data, file.resolve().parent)

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
        top = _section("deployment", data, _KEYS)
        if "name" not in top:
            raise ConfigError("name is missing: give the deployment one, it becomes part of its URL.")
        check_text("name", top["name"])
        if base_folder is not None:
            top = _with_absolute_paths(top, base_folder)
        if "engine" in top and "models" in top:
            raise ConfigError("Give engine, for one model, or models, for several; not both.")
        if "models" in top:
            engines = _several(top["models"])
        else:
            arguments = _section("engine", top.get("engine"), engine_argument_names())
            if not arguments.get("served_model_name"):
                arguments["served_model_name"] = (top["name"],)
            engines = (EngineConfig.from_args(arguments),)
        server_args = _arguments(ServerConfig, "server", top.get("server"))
        override = (os.environ if environ is None else environ).get(API_KEY_VARIABLE)
        if override is not None:
            server_args["api_key"] = keys_from_words(override.split(), API_KEY_VARIABLE)
            server_args.pop("api_key_file", None)
        return cls(
            name=top["name"],
            version=top.get("version", "1.0"),
            engines=engines,
            server=ServerConfig(**server_args),
            torchserve=TorchServeConfig(**_arguments(TorchServeConfig, "torchserve", top.get("torchserve"))),
            bento=BentoConfig(**_arguments(BentoConfig, "bento", top.get("bento"))),
        )

    def to_dict(self, *, with_api_key: bool = True) -> dict[str, Any]:
        """Plain data (for YAML or JSON) that gives this deployment again through `from_dict`.

        Args:
            with_api_key: False leaves the keys out (but not the name of their file): do so for files that others may
                read, and hand the keys over in PAGED_BACKEND_API_KEY.
        """
        engines = [{name: _plain(value) for name, value in engine.to_args().items()} for engine in self.engines]
        server = {name: _plain(value) for name, value in dataclasses.asdict(self.server).items()}
        server["api_key"] = {key.name: key.secret for key in self.server.api_key} or None
        if not with_api_key:
            del server["api_key"]
        return {
            "name": self.name,
            "version": self.version,
            **({"engine": engines[0]} if len(engines) == 1 else {"models": engines}),
            "server": server,
            "torchserve": dataclasses.asdict(self.torchserve),
            "bento": dataclasses.asdict(self.bento),
        }

    def replace(self, **changes: Any) -> Deployment:
        """Another deployment with some of its parts changed."""
        return dataclasses.replace(self, **changes)


_Part = TypeVar("_Part", ServerConfig, TorchServeConfig, BentoConfig)


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


def _several(value: object) -> tuple[EngineConfig, ...]:
    """The engines of a file's `models`. Those that do not say how much memory their cache may take divide what a single
    one would get."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigError("models must be a list of engine arguments, with one entry for each model.")
    engines = []
    for place, entry in enumerate(value):
        arguments = _section(f"models.{place}", entry, engine_argument_names())
        arguments.setdefault("gpu_memory_utilization", CacheConfig().gpu_memory_utilization / len(value))
        try:
            engines.append(EngineConfig.from_args(arguments))
        except ConfigError as error:
            raise ConfigError(f"models.{place}: {error}") from error
    return tuple(engines)


def _check_apart(engines: Sequence[EngineConfig]) -> None:
    """Several engines must have names, folders and memory of their own."""
    if not engines:
        raise ConfigError("A deployment needs a model.")
    for what, values in (
        ("served_model_name", [name for engine in engines for name in engine.model.served_model_name]),
        ("kv_offloading_dir", [engine.cache.kv_offloading_dir for engine in engines if engine.cache.kv_offloading_dir]),
    ):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise ConfigError(f"{what} {twice[0]!r} is given twice: each model needs one of its own.")
    caches = [engine.cache for engine in engines]
    share = sum(cache.gpu_memory_utilization for cache in caches if cache.kv_cache_memory_bytes is None)
    if share > 1:
        raise ConfigError(
            f"The models' gpu_memory_utilization add up to {share:g}, more than all free memory: lower them, or give "
            "kv_cache_memory_bytes."
        )


def _with_absolute_paths(data: Mapping[str, Any], base_folder: str | Path) -> dict[str, Any]:
    """A copy of a file's content in which what may be a folder or a file is resolved; nothing is checked."""
    result = dict(data)
    if isinstance(data.get("engine"), Mapping):
        result["engine"] = _with_absolute_folders(data["engine"], base_folder)
    if isinstance(data.get("models"), (list, tuple)):
        result["models"] = [
            _with_absolute_folders(entry, base_folder) if isinstance(entry, Mapping) else entry
            for entry in data["models"]
        ]
    server = data.get("server")
    if isinstance(server, Mapping) and isinstance(server.get("api_key_file"), str) and server["api_key_file"]:
        file = str(Path(base_folder, Path(server["api_key_file"]).expanduser()).absolute())
        result["server"] = {**server, "api_key_file": file}
    return result


def _with_absolute_folders(engine_args: Mapping[str, Any], base_folder: str | Path) -> dict[str, Any]:
    """A copy in which the arguments that may be folders are resolved."""
    resolved = {
        key: _resolve(value, base_folder) if key in _ENGINE_PATHS and isinstance(value, str) else value
        for key, value in engine_args.items()
    }
    folder = resolved.get("kv_offloading_dir")
    if isinstance(folder, str) and folder:  # always a folder, there or not
        resolved["kv_offloading_dir"] = str(Path(base_folder, Path(folder).expanduser()).absolute())
    template = resolved.get("chat_template")
    if isinstance(template, str) and template and is_template_path(template):
        resolved["chat_template"] = str(Path(base_folder, Path(template).expanduser()).absolute())
    return resolved


def _resolve(value: str, base_folder: str | Path) -> str:
    """A model argument with a relative folder made absolute.

    "./x", "../x" and "~/x" are always folders. Another value is one where such a folder lies beside the file
    (a hub id such as "org/name" looks the same); the bundled model's name never is.
    """
    if value.startswith("~"):
        return str(Path(value).expanduser())
    if not value or value == BUNDLED_MODEL:
        return value
    folder = Path(base_folder) / value
    if value.split("/", 1)[0] in (".", "..") or folder.is_dir():
        return str(folder.resolve())
    return value


def _plain(value: Any) -> Any:
    """A value as YAML and JSON know it."""
    return list(value) if isinstance(value, tuple) else value
