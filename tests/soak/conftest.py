"""The soak's seed, and its summary at the end."""

from __future__ import annotations

import pytest

from tests.soak.provoked import Provoked, table

PROVOKED = pytest.StashKey[dict[str, Provoked]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-seed", type=int, default=0, help="other requests, and other lives of the engines")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PROVOKED] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[PROVOKED]:
        terminalreporter.section("soaked")
        for line in table(config.stash[PROVOKED]):
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def soak_seed(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("soak_seed", default=0))


@pytest.fixture(scope="session")
def provoked_by_model(pytestconfig: pytest.Config) -> dict[str, Provoked]:
    """What is summed up at the end, by model."""
    return pytestconfig.stash[PROVOKED]
