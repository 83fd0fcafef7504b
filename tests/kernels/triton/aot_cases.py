"""Every `AotCase` of the package, by name; and, run as a program, their compilation for one card.

    python -m tests.kernels.triton.aot_cases 90 [NAME ...]

prints a JSON line for each case (all that are not wide, or those named): its name and resources, or the error. It must
run without TRITON_INTERPRET, which makes Triton's own library uncompilable; so tests run it as a process.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import paged_backend.kernels.triton
from paged_backend.kernels.triton.aot import AotCase


def all_cases() -> dict[str, AotCase]:
    """By "file/name"."""
    package = paged_backend.kernels.triton
    cases: dict[str, AotCase] = {}
    for found in iter_modules(package.__path__):
        module = import_module(f"{package.__name__}.{found.name}")
        for case in getattr(module, "aot_cases", tuple)():
            name = f"{found.name}/{case.name}"
            assert name not in cases, f"{name}: two cases have this name"
            cases[name] = case
    return cases


def compiled(case: AotCase, capability: int) -> dict[str, Any]:
    """The resources of a case on a card: registers of a thread, its bytes of stack, a program's bytes of shared memory;
    the matrix unit's instructions, each with its generation and shape; the bytes that a thread copies at once while
    others are computed; how many groups of such copies may still be under way, the most, where one is waited for; and
    how many products the matrix unit may add up in too few bits.

    A stack is where registers are spilled to.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    given = {*case.signature, *case.constexprs}
    assert given == set(names), f"the kernel has the arguments {names}, the case {sorted(given)}"
    signature = {name: case.signature.get(name, "constexpr").removesuffix(":16") for name in names}
    attrs = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if name not in case.kernel.do_not_specialize
        and (case.signature.get(name, "").endswith(":16") or case.signature.get(name, "").startswith("*"))
    }
    source = ASTSource(case.kernel, signature, dict(case.constexprs), attrs)
    options = {
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
        "maxnreg": case.maxnreg,
        "enable_fp_fusion": case.fp_fusion,
    }
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout).groups()  # type: ignore[union-attr]
    found = re.findall(r"nvidia_mma<{versionMajor = (\d).*?instrShape = \[([\d, ]+)\]}>", kernel.asm["ttgir"])
    return {
        "registers": int(registers),
        "stack": int(stack),
        "shared": kernel.metadata.shared,
        "products": sorted({f"{generation}: {shape}" for generation, shape in found}),
        "imprecise": sorted(map(int, set(re.findall(r"maxNumImpreciseAcc = (\d+)", kernel.asm["ttgir"])))),
        "copies": sorted({int(size, 0) for size in re.findall(r"cp\.async\.c[ag][^;]*?\], (\w+)", kernel.asm["ptx"])}),
        "under_way": max(map(int, re.findall(r"cp\.async\.wait_group\s+(\d+)", kernel.asm["ptx"])), default=0),
    }


def main() -> None:
    capability, names, cases = int(sys.argv[1]), sys.argv[2:], all_cases()
    for name in names or [name for name, case in cases.items() if not case.wide]:
        if cases[name].is_for(capability):
            try:
                result = compiled(cases[name], capability)
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps({"name": name, **result}), flush=True)


if __name__ == "__main__":
    main()
