"""The same request gives the same bits alone and in any surrounding: at reduced size here, in full with `make soak`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.soak.provoked import Provoked
from tests.soak.soak import Expected, run_alone, run_crowded
from tests.soak.subjects import RECIPES, Subject
from tests.soak.surroundings import REDUCED, Surrounding, surroundings

NUM_REQUESTS, NUM_REDUCED = 200, 32
FULL = [(name, surrounding) for place, name in enumerate(RECIPES) for surrounding in surroundings(place)]

ExpectedOf = Callable[[str, int], Expected]


@pytest.fixture(scope="module")
def expected_of(tmp_path_factory: pytest.TempPathFactory, soak_seed: int) -> ExpectedOf:
    """So many requests' outputs, each alone on a model of this name."""

    @cache
    def expected(name: str, count: int) -> Expected:
        return run_alone(Subject.make(RECIPES[name], tmp_path_factory.mktemp("model")), soak_seed, count)

    return expected


def check(expected: Expected, surrounding: Surrounding, folder: Path, request: pytest.FixtureRequest) -> Provoked:
    provoked, found = run_crowded(expected, surrounding, folder)
    again = f"Again: pytest --soak-seed {expected.seed} '{request.node.nodeid}'"
    assert not found, "\n".join([f"{len(found)} differences", *found[:5], again])
    missing = provoked.missing(surrounding.must_provoke)
    assert not missing, f"{surrounding} proves nothing of {', '.join(missing)}: {provoked}. {again}"
    return provoked


@pytest.mark.parametrize(("name", "surrounding"), REDUCED, ids=str)
def test_reduced(
    name: str, surrounding: Surrounding, expected_of: ExpectedOf, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    check(expected_of(name, NUM_REDUCED), surrounding, tmp_path, request)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "surrounding"), FULL, ids=str)
def test_full(
    name: str,
    surrounding: Surrounding,
    expected_of: ExpectedOf,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    provoked_by_model: dict[str, Provoked],
) -> None:
    provoked = check(expected_of(name, NUM_REQUESTS), surrounding, tmp_path, request)
    provoked_by_model[name] = provoked_by_model.get(name, Provoked()) + provoked
