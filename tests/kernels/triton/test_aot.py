"""Every Triton kernel compiles for the cards, in the configurations that it is launched with, and spills nothing.

No GPU is needed: Triton brings the assembler. The two cards are compiled for beside each other, each in a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.triton.aot_cases import all_cases

pytestmark = pytest.mark.timeout(1200)  # the first test compiles for all

CASES = all_cases()
SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024}
"""What a program may take of a multiprocessor's shared memory, by compute capability: H100's, and what those of 8.6,
8.9 and 12.0 have, which run what is made for 8.0 (an A100 has 163 KiB)."""

REGISTERS = 65536
"""Of a multiprocessor."""

LINEAR = ("matmul/", "experts/")
ATTENTION = ("attention_aot/decode-", "attention_aot/prefill-")

capabilities = pytest.mark.parametrize("capability", sorted(SHARED_BYTES))
Resources = Mapping[str, Mapping[str, Any]]


def compile_all(names: list[str], cache: Path) -> dict[int, Resources]:
    """The resources of some cases by card and name."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", "tests.kernels.triton.aot_cases"]
    processes = {
        capability: subprocess.Popen([*command, str(capability), *names], env=environment, stdout=subprocess.PIPE)
        for capability in SHARED_BYTES
    }
    outputs = {capability: process.communicate()[0] for capability, process in processes.items()}
    for capability, process in processes.items():
        last = outputs[capability].decode().splitlines()[-1:]
        assert process.returncode == 0, f"ended with {process.returncode} for {capability}; compiled last: {last}"
    return {
        capability: {result.pop("name"): result for result in map(json.loads, output.splitlines())}
        for capability, output in outputs.items()
    }


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Resources]:
    names = [name for name, case in CASES.items() if not case.wide]
    return compile_all(names, tmp_path_factory.mktemp("triton"))


def check(name: str, resources: Resources, capability: int) -> None:
    if not CASES[name].is_for(capability):
        assert name not in resources
        return
    result = resources[name]
    assert "error" not in result, result["error"]
    assert result["stack"] == 0, f"spills: {result}"
    assert result["shared"] <= SHARED_BYTES[capability]


@capabilities
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.wide])
def test_compiles_without_spilling(name: str, capability: int, resources: dict[int, Resources]) -> None:
    check(name, resources[capability], capability)


def test_linear_layers_multiply_by_one_kind_of_instruction(resources: dict[int, Resources]) -> None:
    """However few rows there are, so that a row's sums are the same: Ampere's of a warp, Hopper's of four."""
    for capability, generation in ((80, "2"), (90, "3")):
        found = {name: found["products"] for name, found in resources[capability].items() if name.startswith(LINEAR)}
        assert {product[0] for products in found.values() for product in products} == {generation}
        assert all(found.values()), "some do not use the matrix unit"


def test_sums_of_float8_do_not_stay_in_hoppers_matrix_unit(resources: dict[int, Resources]) -> None:
    """It would cut them off, the more the longer rows are. The library's product is asked for the same."""
    found = [result["imprecise"] for name, result in resources[90].items() if name.startswith("matmul/fp8/")]
    assert found and all(most == [128] for most in found)


@capabilities
def test_tiles_are_read_in_large_pieces_and_ahead(capability: int, resources: dict[int, Resources]) -> None:
    """Keys, values and weights: at least a tile, in two groups, is on its way while another is computed."""
    for name, found in resources[capability].items():
        if name.startswith((*LINEAR, *ATTENTION)):
            assert max(found["copies"]) == 16 or ("int4" in name and min(found["copies"]) == 8), f"{name}: {found}"
            assert found["under_way"] >= 2, f"{name}: {found}"


def test_prefill_on_hopper(resources: dict[int, Resources]) -> None:
    """Its matrix unit's own instruction; and two programs side by side: one computes weights while the other's products
    are."""
    name = "attention_aot/prefill-bf16-bfloat16-128-hopper"
    found = resources[90][name]
    assert found["products"] and all(product.startswith("3:") for product in found["products"])
    assert 2 * found["registers"] * CASES[name].num_warps * 32 <= REGISTERS
    assert 2 * (found["shared"] + 1024) <= 228 * 1024


PAIRS = [
    (name, name.replace("/decode-", "/prefill-"))
    for name in CASES
    if name.startswith("attention_aot/decode-") and name.endswith("-invariant")
]


def check_pair(decode: str, prefill: str, resources: dict[int, Resources]) -> None:
    """Batch-invariant attention has the same bits in both: so both multiply by the same instructions."""
    for capability, results in resources.items():
        if CASES[decode].is_for(capability):
            products = results[decode]["products"]
            assert products == results[prefill]["products"]
            assert CASES[decode].constexprs["BLOCK_N"] == CASES[prefill].constexprs["BLOCK_N"]
            assert products or "fp32" in decode


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not CASES[pair[0]].wide], ids=lambda pair: pair[0])
def test_batch_invariant_attention_multiplies_alike(pair: tuple[str, str], resources: dict[int, Resources]) -> None:
    check_pair(*pair, resources)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_wide_sweep_compiles_without_spilling(tmp_path: Path) -> None:
    names = [name for name, case in CASES.items() if case.wide]
    resources = compile_all(names, tmp_path) if names else {}
    wrong = []
    for capability, results in resources.items():
        for name in names:
            try:
                check(name, results, capability)
            except AssertionError as error:
                wrong.append(f"{capability}: {name}: {error}")
    assert not wrong, "\n".join(wrong)
    for pair in PAIRS:
        if pair[0] in names:
            check_pair(*pair, resources)
