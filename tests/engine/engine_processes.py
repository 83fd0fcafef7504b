"""What tests of engines in processes of their own share."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil

from paged_backend import SamplingParams
from paged_backend.engine.client import EngineClient
from paged_backend.engine.process.engine_process import EngineProcess

TIMEOUT_S = 60
ENGINE: dict[str, Any] = {
    "num_threads": 1,
    "block_size": 4,
    "max_model_len": 256,
    "num_gpu_blocks_override": 90,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "seed": 3,
    "kv_cache_metrics": True,
    "kv_cache_metrics_sample": 1.0,
    "logits_processors": ["tests.engine.example_processors:Shift", "tests.engine.example_processors:forbid_even"],
}
LONG = SamplingParams(max_tokens=200, ignore_eos=True, seed=0)
QUICK = SamplingParams(max_tokens=3, ignore_eos=True, seed=0)


def engine_of(client: EngineClient) -> EngineProcess:
    assert isinstance(client._engine, EngineProcess)
    return client._engine


def wait_until(question: Callable[[], bool]) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not question():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def wait_gone(pid: int) -> None:
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


class pause:  # noqa: N801  used like a function
    """Holds the process up while it is entered."""

    def __init__(self, client: EngineClient) -> None:
        self._pid = engine_of(client).pid

    def __enter__(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGCONT)
