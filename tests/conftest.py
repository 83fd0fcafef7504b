"""Settings for all tests."""

from __future__ import annotations

import os

# The models here are tiny: a second thread costs more than it brings, above all where several tests share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
