"""A process that was forked has none of the parent's threads: it computes all the same, and ends."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import pytest
import torch

from paged_backend.kernels.cpu.kernels import CpuKernels

SECONDS = 60


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_computes_the_same_and_lets_go() -> None:
    kernels = CpuKernels(num_threads=3)
    generator = torch.Generator().manual_seed(0)
    weight = kernels.pack_linear(torch.randn(512, 256, generator=generator))
    x = torch.randn(20, 256, generator=generator)
    expected = bytes(kernels.linear(x, weight).contiguous().numpy())

    def compute(pipe: Connection) -> None:
        nonlocal kernels, weight
        pipe.send_bytes(bytes(kernels.linear(x, weight).contiguous().numpy()))
        del kernels, weight  # must not wait for threads that are not there
        pipe.send_bytes(b"let go")

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=compute, args=(theirs,))
    child.start()
    try:
        assert ours.poll(SECONDS)
        assert ours.recv_bytes() == expected
        assert ours.poll(SECONDS)
        assert ours.recv_bytes() == b"let go"
        child.join(SECONDS)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
    assert bytes(kernels.linear(x, weight).contiguous().numpy()) == expected
