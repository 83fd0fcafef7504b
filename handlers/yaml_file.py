"""Reads YAML strictly, and says what is wrong with it without a word of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from paged_backend.errors import ConfigError


def read_yaml(file: Path) -> Any:
    """What a file holds.

    Raises:
        ConfigError: it cannot be read or is not YAML; the message starts with its name.
    """
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is not valid YAML: {yaml_problem(error)}.") from None


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
