"""The docstrings of dataclasses and bodies, as help for whoever meets their fields on a command line or a page."""

from __future__ import annotations

import inspect
import re
from typing import Any


def attribute_help(documented: type[Any]) -> dict[str, str]:
    """What a class's docstring says about each attribute, in its order, each as one line."""
    text = inspect.getdoc(documented) or ""
    _, _, section = text.partition("Attributes:\n")
    section = section.split("\n\n", 1)[0]
    help_by_name: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        start = re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if start:
            names = start[1].split(", ")
            help_by_name.update(dict.fromkeys(names, start[2].strip()))
        else:
            for name in names:
                help_by_name[name] += " " + line.strip()
    return help_by_name
