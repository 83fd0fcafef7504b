"""generation_config.json: what a model's makers want sampled by default, and what ends a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from paged_backend.config import DEFAULT_PARAMETERS, ModelConfig
from paged_backend.errors import ConfigError, InvalidRequestError, ModelLoadError
from paged_backend.models.folder import read_json
from paged_backend.models.registry import eos_token_ids
from paged_backend.sampling_params import SamplingParams

FILE_NAME = "generation_config.json"


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What it says, as far as it is used.

    Attributes:
        sampling: sampling parameters by name, for requests that leave them out; `max_tokens` is also the most that a
            request over HTTP gets.
        eos_token_ids: what ends a text; the vocabulary may lack some of them.
    """

    sampling: Mapping[str, float | int]
    eos_token_ids: frozenset[int] = frozenset()


def read_generation_config(config: ModelConfig, folder: Path) -> GenerationConfig:
    """The model's, or that of the folder that config.generation_config names, with what the configuration overrides.

    Args:
        folder: the model's; it need not have the file.

    Raises:
        ConfigError: the folder that the configuration names has no such file, or an overriding value is wrong.
        ModelLoadError: the file cannot be read, or holds a wrong value.
    """
    source = config.generation_config
    path = folder / FILE_NAME
    if source not in ("auto", "vllm"):
        path = Path(source).expanduser() / FILE_NAME
        if not path.is_file():
            raise ConfigError(
                f"generation_config must be auto, vllm or a folder with a {FILE_NAME}: there is none in {source!r}."
            )
    stored = read_json(path) if path.is_file() else {}
    try:
        ends = eos_token_ids(stored)
        sampling = {} if source == "vllm" else _sampling(stored)
    except (ValueError, InvalidRequestError) as error:
        raise ModelLoadError(f"{path} has a wrong value: {str(error).rstrip('.')}.") from error
    try:
        sampling |= _sampling(cast("Mapping[str, Any]", config.override_generation_config))
    except InvalidRequestError as error:
        raise ConfigError(f"override_generation_config has a wrong value: {error}") from error
    return GenerationConfig(sampling, ends)


def _sampling(values: Mapping[str, Any]) -> dict[str, float | int]:
    """Those of a file's values that sampling parameters stand for, under the parameters' names."""
    sampling = {name: values[stored] for stored, name in DEFAULT_PARAMETERS.items() if values.get(stored) is not None}
    SamplingParams(**sampling)  # looks at every value
    return sampling
