"""Who may import whom: the house of docs/architecture.md, enforced on every import, lazy ones included."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 450

# Module prefix -> floor; the longest prefix counts. A module imports its own package and lower floors.
FLOORS = {
    "paged_backend": 10,  # the package's front: it offers what is below lazily, and nothing below imports it
    "paged_backend.version": 0,
    "paged_backend.errors": 0,
    "paged_backend.child_process": 0,
    "paged_backend.config": 0,
    "paged_backend.sampling_params": 0,
    "paged_backend.outputs": 0,
    "paged_backend.kernels": 0,
    "paged_backend.kv": 1,
    "paged_backend.scheduler": 2,
    "paged_backend.models": 2,
    "paged_backend.quantization": 1,
    "paged_backend.structured": 1,
    "paged_backend.sampling": 3,
    "paged_backend.executor": 4,
    "paged_backend.engine": 5,
    "paged_backend.handlers": 6,
    "paged_backend.handlers.access": 1,  # keys, limits and counts: standard library only
    "paged_backend.handlers.yaml_file": 1,
    "paged_backend.handlers.host_configs": 2,
    "paged_backend.handlers.deployment": 3,
    "paged_backend.handlers.openai": 6,
    "paged_backend.handlers.engine_group": 7,
    "paged_backend.handlers.logs": 7,
    "paged_backend.handlers.loading": 8,
    "paged_backend.handlers.launching": 7,
    "paged_backend.handlers.torchserve": 9,
    "paged_backend.handlers.bento": 9,
    "paged_backend.handlers.cli": 10,  # the front door: it starts the hosts
}

# Floor 0 may name its own neighbour: everybody raises from the one tree of exceptions.
ERRORS_FOR_ALL = "paged_backend.errors"

WEB_AND_HOSTS = frozenset(
    ("aiohttp", "bentoml", "fastapi", "flask", "grpc", "hypercorn", "starlette", "tornado", "ts", "uvicorn")
)
TORCH = frozenset({"torch", "numpy", "transformers", "safetensors", "triton"})

# Module prefix -> third-party packages that it may import; None = any that are not named in FORBIDDEN.
ALLOWED_THIRD_PARTY = {
    "paged_backend.errors": frozenset(),
    "paged_backend.config": frozenset(),
    "paged_backend.sampling_params": frozenset(),
    "paged_backend.outputs": frozenset(),
    "paged_backend.kernels": frozenset({"torch"}),
    "paged_backend.kernels.triton": frozenset({"torch", "triton"}),
    "paged_backend.kv": frozenset(),
    "paged_backend.scheduler": frozenset(),
}
FORBIDDEN = {
    "paged_backend": WEB_AND_HOSTS,
    "paged_backend.handlers": WEB_AND_HOSTS | TORCH,
    "paged_backend.handlers.torchserve": TORCH | (WEB_AND_HOSTS - {"ts"}),
    "paged_backend.handlers.bento": TORCH | (WEB_AND_HOSTS - {"bentoml", "starlette", "uvicorn"}),
    "paged_backend.handlers.cli_version": WEB_AND_HOSTS,
}


@dataclass(frozen=True)
class Import:
    """One module that a file imports."""

    importer: str
    imported: str
    where: str


def source_files() -> Iterator[tuple[str, Path]]:
    """Every Python file of the package with the module name that it is imported by."""
    for folder, package in (
        ("paged_backend", "paged_backend"),
        ("kernels", "paged_backend.kernels"),
        ("handlers", "paged_backend.handlers"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


MODULES = dict(source_files())


def imports_of(module: str, path: Path) -> Iterator[Import]:
    """Every import statement of a file, wherever it stands, type-checking blocks included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, where)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where}: relative imports hide the floor; write the whole name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".replace("paged_backend.__version__", "paged_backend.version")
                yield Import(module, inner if inner in MODULES else node.module or "", where)
        elif isinstance(node, ast.Call):
            yield from _dynamic_import(module, node, where)


def _dynamic_import(module: str, node: ast.Call, where: str) -> Iterator[Import]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
        yield Import(module, str(node.args[0].value), where)


ALL_IMPORTS = [found for module, path in MODULES.items() for found in imports_of(module, path)]


def prefix_of(module: str, table: dict[str, object] | dict[str, int]) -> str | None:
    """The longest key of a table that is the module or a package around it; cli_*.py count as cli."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        key = ".".join(parts[:length])
        if key in table:
            return key
        if key.startswith("paged_backend.handlers.cli_") and "paged_backend.handlers.cli" in table:
            return "paged_backend.handlers.cli"
    return None


def test_every_package_has_a_floor() -> None:
    unplaced = {
        module for module in MODULES if module != "paged_backend" and prefix_of(module, FLOORS) == "paged_backend"
    }
    assert not unplaced, f"give these a floor in tests/test_floors.py and docs/architecture.md: {sorted(unplaced)}"


def test_imports_go_down() -> None:
    wrong = []
    for found in ALL_IMPORTS:
        if not found.imported.startswith("paged_backend"):
            continue
        own, other = prefix_of(found.importer, FLOORS), prefix_of(found.imported, FLOORS)
        assert own is not None
        assert other is not None, found
        if own == other or other == ERRORS_FOR_ALL or FLOORS[other] < FLOORS[own]:
            continue
        wrong.append(f"{found.where}: {own} (floor {FLOORS[own]}) imports {found.imported} (floor {FLOORS[other]})")
    assert not wrong, "\n".join(wrong)


def test_third_party_imports_are_allowed() -> None:
    wrong = []
    for found in ALL_IMPORTS:
        top = found.imported.split(".")[0]
        if top == "paged_backend" or top in sys.stdlib_module_names:
            continue
        allowed = ALLOWED_THIRD_PARTY.get(prefix_of(found.importer, dict(ALLOWED_THIRD_PARTY)) or "")
        forbidden = FORBIDDEN[prefix_of(found.importer, dict(FORBIDDEN)) or "paged_backend"]
        if (allowed is not None and top not in allowed) or top in forbidden:
            wrong.append(f"{found.where}: {found.importer} must not import {found.imported}")
    assert not wrong, "\n".join(wrong)


def test_names_are_those_after_install() -> None:
    bare = [f for f in ALL_IMPORTS if f.imported.split(".")[0] in ("kernels", "handlers")]
    assert not bare, f"import paged_backend.kernels and paged_backend.handlers: {bare}"


@pytest.mark.parametrize("folder", ["paged_backend", "kernels", "handlers", "tests", "benchmarks"])
def test_files_stay_readable(folder: str) -> None:
    suffixes = {".py", ".cpp", ".hpp", ".h"}
    files = [path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes and path.is_file()]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    too_long = {name: count for name, count in lengths.items() if count > MAX_LINES}
    assert not too_long, f"more than {MAX_LINES} lines, one noun per file: {too_long}"


def test_the_checker_sees_every_kind_of_import(tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(
        "import importlib\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import numpy.typing\n"
        "def f():\n    import torch\n    from paged_backend.engine import llm\n"
        "importlib.import_module('bentoml')\n"
    )
    names = {found.imported for found in imports_of("paged_backend.kv.example", path)}
    assert names == {"importlib", "typing", "numpy.typing", "torch", "paged_backend.engine.llm", "bentoml"}
