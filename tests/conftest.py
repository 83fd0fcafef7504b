"""Settings for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conformance.exchange import Caller

# The models here are tiny: a second thread costs more than it brings, above all where several tests share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without an NVIDIA GPU Triton's kernels are interpreted. Triton looks at this when it is imported, and transformers may
# import it at any time.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Servers under test must hear the terminal close, also where the tests themselves run under nohup: a signal that is
# ignored stays so in every program started from here, one that is caught does not.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)


@pytest.fixture(scope="session")
def in_process() -> Iterator[Caller]:
    """The conformance list's service in this process; live hosts are compared with it."""
    from tests.conformance.deployment import served_in_process

    with served_in_process() as caller:
        yield caller
