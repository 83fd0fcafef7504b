"""Random numbers without state: Philox by its authors' answers, in Python and in C++."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.reference import random_bits

Philox = Callable[[int, int, int], tuple[int, int]]
Uniform = Callable[[int, int], float]


def uniform_cpu(seed: int, position: int) -> float:
    return _cpu.uniform(seed % 2**64, position)


@pytest.mark.parametrize("philox", [random_bits.philox, _cpu.philox], ids=["reference", "cpu"])
def test_philox_known_answers(philox: Philox) -> None:
    """From the authors' Random123 distribution, kat_vectors."""
    ones = 2**64 - 1
    assert philox(0, 0, 0) == (0xCA00A0459843D731, 0x66C24222C9A845B5)
    assert philox(ones, ones, ones) == (0x65B021D60CD8310F, 0x4D02F3222F86DF20)
    assert philox(0xA4093822299F31D0, 0x243F6A8885A308D3, 0x13198A2E03707344) == (
        0x0A5E742C2997341C,
        0xB0F883D38000DE5D,
    )


@pytest.mark.parametrize("uniform", [random_bits.uniform, uniform_cpu], ids=["reference", "cpu"])
def test_uniform_is_keyed_by_seed_and_position(uniform: Uniform) -> None:
    numbers = {uniform(seed, position) for seed in (-(2**63), -1, 0, 1, 2**63 - 1) for position in range(50)}
    assert len(numbers) == 250
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert uniform(-1, 5) == uniform(2**64 - 1, 5)
    means = [uniform(seed, 7) for seed in range(4000)], [uniform(7, position) for position in range(4000)]
    for series in means:
        assert abs(sum(series) / len(series) - 0.5) < 0.02


def test_both_are_the_same_function() -> None:
    for seed in (-(2**63), -1, 0, 1, 12345678901234567, 2**63 - 1):
        for position in (0, 1, 2**31, 2**62):
            assert uniform_cpu(seed, position) == random_bits.uniform(seed, position)
