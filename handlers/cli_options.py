"""The command line's options for engine and sampling, made from the very dataclasses that check their values.

A new engine argument thus has its option, its type and its help line at once, and none can be forgotten.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from paged_backend.config import EngineConfig, ModelConfig
from paged_backend.errors import ConfigError
from paged_backend.handlers.attribute_help import attribute_help
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.yaml_file import yaml_problem
from paged_backend.sampling_params import SamplingParams

_ENGINE_PARTS = tuple(type(getattr(EngineConfig(), part.name)) for part in dataclasses.fields(EngineConfig))
_IN_FRONT = ("model",)
_SAMPLING_NAMES = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "ignore_eos",
)
_SAMPLING_DEFAULTS = {"max_tokens": 256, "temperature": 0.7}
"""A person at a terminal expects a whole answer, and not a wild one; an API's caller says what it wants."""
_DEFAULT_DEPLOYMENT_NAME = "model"
_DEFAULT_MODEL = ModelConfig().model


def engine_options(*, listed: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one option per engine argument; they reach it as `engine_args`, holding those given.

    Args:
        listed: False leaves all but --model out of the command's help; they work all the same.
    """
    return lambda command: _with_options(command, "engine_args", _engine_parameters(listed))


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the sampling options; they reach it as `sampling_args`, holding those given."""
    return _with_options(command, "sampling_args", _sampling_parameters(), _SAMPLING_DEFAULTS)


def build_deployment(
    config: Path | None, engine_args: Mapping[str, Any], assignments: list[str], port: int | None
) -> Deployment:
    """One deployment out of the command line.

    Args:
        config: the deployment's YAML file; None means all defaults, named after the model. So is a deployment whose
            model is not the file's, unless the command line gives a name.
        engine_args: engine arguments that override the file's.
        assignments: "key=value" or "section.key=value", values in YAML; they come last.
        port: overrides server.port.

    Raises:
        ConfigError: the file, a key or a value is wrong.
    """
    data: dict[str, Any] = {}
    if config is not None:
        Deployment.load(config)  # a mistake in the file itself is told with the file's name
        data = Deployment.read(config)
    file_model = _model_of(data)
    if engine_args and "models" in data:
        raise ConfigError(
            f"{config} has several models: write {', '.join(sorted(engine_args))} into their entries, as the command "
            "line does not say whose it is."
        )
    if engine_args:
        data["engine"] = {**(data.get("engine") or {}), **engine_args}
    if port is not None:
        data["server"] = {**(data.get("server") or {}), "port": port}
    assigned = {_assign(data, assignment) for assignment in assignments}
    model = _model_of(data)
    is_named = "name" in assigned or "engine.served_model_name" in assigned or "served_model_name" in engine_args
    if "name" not in data or ("models" not in data and model != file_model and not is_named):
        # The file's name is the name of the file's model.
        data["name"] = _name_of(model)
    return Deployment.from_dict(data, base_folder=Path.cwd())


def _model_of(data: Mapping[str, Any]) -> str:
    engine = data.get("engine")
    return str(engine.get("model", _DEFAULT_MODEL) if isinstance(engine, Mapping) else _DEFAULT_MODEL)


def _name_of(model: str) -> str:
    """A model's folder name or the last part of its hub id, made safe for a URL."""
    last_part = model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last_part).lstrip("._-") or _DEFAULT_DEPLOYMENT_NAME


def build_engine_config(config: Path | None, engine_args: Mapping[str, Any], assignments: list[str]) -> EngineConfig:
    """The engine's part of `build_deployment`.

    Raises:
        ConfigError: the deployment has several models.
    """
    deployment = build_deployment(config, engine_args, assignments, None)
    if len(deployment.engines) > 1:
        raise ConfigError(
            f"{config} has several models ({', '.join(deployment.model_names)}): give a file with one, or --model."
        )
    return deployment.engine


def _assign(data: dict[str, Any], assignment: str) -> str:
    """Carries out one `--set`; gives the key that it set, "name" or "section.name"."""
    path, separator, text = assignment.partition("=")
    keys = path.strip().replace("-", "_").split(".")
    if not separator or not all(keys) or len(keys) > 2:
        raise ConfigError(f"--set takes key=value or section.key=value, got {assignment!r}.")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--set {path}: the value is not valid YAML: {yaml_problem(error)}.") from None
    if len(keys) == 2:
        section = data.get(keys[0])
        data[keys[0]] = section = {} if section is None else section
        if not isinstance(section, dict):
            raise ConfigError(f"--set {path}: {keys[0]} is a single value, not a section.")
        section[keys[1]] = value
    else:
        data[keys[0]] = value
    return ".".join(keys)


def _engine_parameters(listed: bool) -> dict[str, Any]:
    parameters = {}
    for part in _ENGINE_PARTS:
        described = attribute_help(part)
        hints = typing.get_type_hints(part)
        for field in dataclasses.fields(part):
            front = field.name in _IN_FRONT
            parameters[field.name] = _option(
                field,
                hints[field.name],
                described.get(field.name, ""),
                hidden=not (front or listed),
            )
    return parameters


def _sampling_parameters() -> dict[str, Any]:
    described = attribute_help(SamplingParams)
    hints = typing.get_type_hints(SamplingParams)
    fields = {field.name: field for field in dataclasses.fields(SamplingParams)}
    return {name: _option(fields[name], hints[name], described[name]) for name in _SAMPLING_NAMES}


def _option(field: dataclasses.Field[Any], hint: Any, text: str, *, hidden: bool = False) -> Any:
    """An annotation for typer. Options default to None, "not given": the dataclass holds the defaults."""
    flag = "--" + field.name.replace("_", "-")
    text = re.sub(r"\bNone (means )?", "unset: ", text)
    default = _SAMPLING_DEFAULTS.get(field.name, field.default)
    if default not in (None, (), "", dataclasses.MISSING):
        text = f"{text} (default: {str(default).lower() if isinstance(default, bool) else default})"
    text = text[:1].upper() + text[1:]
    kind = _plain_type(hint)
    flags = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    metavar = "TEXT" if kind == list[str] else None
    option = typer.Option(flags, metavar=metavar, help=text, hidden=hidden)
    return Annotated[kind | None, option]


def _plain_type(hint: Any) -> Any:
    """The type that the command line parses: a sequence of strings is a repeated option, and a mapping is JSON."""
    candidates = [hint, *typing.get_args(hint)]
    if any(typing.get_origin(candidate) is Mapping for candidate in candidates):
        return str
    if any(typing.get_origin(candidate) in (tuple, list) or _is_sequence(candidate) for candidate in candidates):
        return list[str]
    for kind in (bool, int, float, str):
        if kind in candidates:
            return kind
    raise AssertionError(f"no command line type for {hint}")


def _is_sequence(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, typing.Sequence) and origin is not str


def _with_options(
    command: Callable[..., None],
    argument: str,
    parameters: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> Callable[..., None]:
    """Replaces a command's parameter `argument` (a mapping) by one keyword parameter per option.

    An option that the command has already stays its own (`--seed` of a sampling command is the request's).
    """
    own = inspect.signature(command, eval_str=True)
    parameters = {name: option for name, option in parameters.items() if name not in own.parameters}

    @functools.wraps(command)
    def wrapper(**kwargs: Any) -> None:
        given = {name: kwargs.pop(name) for name in parameters}
        given = {name: value for name, value in given.items() if value not in (None, [])}
        command(**kwargs, **{argument: {**(defaults or {}), **given}})

    kept = [parameter for name, parameter in own.parameters.items() if name != argument]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in parameters.items()
    ]
    ordered = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in kept] + added
    wrapper.__signature__ = own.replace(parameters=ordered)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
    return wrapper
