"""The whole list against the service that both hosts mount, on a real engine with the bundled model.

`tests/serving/test_both_hosts.py` sends the same list to the live hosts.
"""

from __future__ import annotations

import pytest

from tests.conformance import shapes
from tests.conformance.case import Case
from tests.conformance.exchange import Caller
from tests.conformance.rows import ROWS


def test_the_list() -> None:
    names = [case.name for case in ROWS]
    assert len(ROWS) > 300
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_conforms(in_process: Caller, case: Case) -> None:
    shapes.check(case, in_process.ask(case.method, case.path, case.body))
