"""Settings for all tests."""

from __future__ import annotations

import os
import signal

# The models here are tiny: a second thread costs more than it brings, above all where several tests share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Servers under test must hear the terminal close, also where the tests themselves run under nohup: a signal that is
# ignored stays so in every program started from here, one that is caught does not.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)
