"""Put on PYTHONPATH, it makes a server's engine stop inside a step while the file that STALL_FILE names is there.

Python imports a module of this name at its start. The executor is changed when, and only where, it is imported.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_MODULE = "paged_backend.executor.executor"


class _StallingFinder(importlib.abc.MetaPathFinder):
    """Finds the executor's module as everybody else does, and changes what its loader makes of it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            module.Executor.run = _stalling(module.Executor.run)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _stalling(run: Any) -> Any:
    @functools.wraps(run)
    def stall_then_run(self: Any, plan: Any) -> Any:
        while os.path.exists(os.environ["STALL_FILE"]):
            time.sleep(0.05)
        return run(self, plan)

    return stall_then_run


if "STALL_FILE" in os.environ:
    sys.meta_path.insert(0, _StallingFinder())
