"""An engine over two processes is an engine: the same tokens, every feature, and nothing left behind when it dies."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from paged_backend import LLM, SamplingParams, child_process
from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.errors import ConfigError, EngineUnavailableError, ModelLoadError
from paged_backend.executor import leader as leader_module
from paged_backend.executor.leader import Leader
from paged_backend.outputs import RequestOutput
from tests.tiny_models import make_tiny_model

GREEDY = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}
PROMPTS = [[(7 * i * i + 11 * p) % 300 + 2 for i in range(150)] for p in range(4)]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


def rank_pids(pid: int | str = "self") -> list[int]:
    """A process's children that are ranks."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            children += map(int, (task / "children").read_text(encoding="ascii").split())
    name = b"paged_backend.executor.rank"
    return [child for child in children if name in Path(f"/proc/{child}/cmdline").read_bytes()]


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never came to that"
        time.sleep(0.01)


def is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def engine_args(folder: Path, size: int, **others: Any) -> dict[str, Any]:
    return {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "num_threads": 1,
        "block_size": 4,
        "tensor_parallel_size": size,
        **others,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def engines(folder: Path) -> Iterator[dict[int, LLM]]:
    """Of one process and of two, whose pools are too small for all; made by a thread that has ended since. The two
    begin a step before the first of them has read the tokens of the last."""
    made: dict[int, LLM] = {}

    def make() -> None:
        for size in (1, 2):
            limits = {"num_gpu_blocks_override": 90, "kv_offloading_size": 0.01, "preemption_mode": "swap"}
            overlaps = size > 1
            args = engine_args(folder, size, max_num_batched_tokens=290, async_scheduling=overlaps, **limits)
            made[size] = LLM(**args)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    yield made
    for llm in made.values():
        llm.close()


def told(outputs: list[RequestOutput]) -> tuple[list[Any], list[float]]:
    """Tokens, and all log-probabilities."""
    samples = [sample for output in outputs for sample in output.outputs]
    tokens = [list(sample.token_ids) for sample in samples]
    described = [place for sample in samples for place in sample.logprobs or ()]
    described += [place for output in outputs for place in (output.prompt_logprobs or ())[1:] if place]
    return tokens, [entry.logprob for place in described for _, entry in sorted(place.items())]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"logprobs": 2}, id="chunks, prefixes, preemptions"),
        pytest.param({"n": 3, "temperature": 0.9, "seed": 5, "max_tokens": 9, "logprobs": 0}, id="samples that fork"),
        pytest.param({"prompt_logprobs": 1, "max_tokens": 2}, id="prompts that are scored"),
        pytest.param({"use_beam_search": True, "n": 2, "best_of": 2, "max_tokens": 5}, id="beams"),
        pytest.param({"repetition_penalty": 1.3, "allowed_token_ids": list(range(5, 90))}, id="changed logits"),
    ],
)
def test_two_processes_give_the_tokens_of_one(engines: dict[int, LLM], changes: dict[str, Any]) -> None:
    params = SamplingParams(**{**GREEDY, **changes})
    tokens, logprobs = told(engines[1].generate(PROMPTS, params, use_tqdm=False))
    for _ in range(2):  # the second time from what is cached
        others, near = told(engines[2].generate(PROMPTS, params, use_tqdm=False))
        assert others == tokens
        assert near == pytest.approx(logprobs, abs=2e-5)  # float32 sums in another order


def test_a_request_alone_has_the_bits_that_it_has_among_others(
    engines: dict[int, LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = engines[2]._client._engine.core._executor._ranks  # type: ignore[union-attr]
    shared: list[torch.Tensor] = []
    monkeypatch.setattr(ranks, "share", lambda x: (shared.append(x), Leader.share(ranks, x)))
    params = SamplingParams(**GREEDY, logprobs=1)
    together = engines[2].generate(PROMPTS, params, use_tqdm=False)
    for prompt, output in zip(PROMPTS[:2], together[:2], strict=True):
        for _ in range(2):  # the second time with a prefix from the pool
            assert told(engines[2].generate([prompt], params, use_tqdm=False)) == told([output])
    assert len(shared) > 100  # steps that were begun before their tokens were read


def test_what_the_pool_gave_up_came_back(engines: dict[int, LLM]) -> None:
    stats = engines[2].stats()
    assert stats.num_preemptions > 0 and stats.num_swaps > 0
    assert stats.prefix_cache_hits > 0 and stats.external_prefix_cache_hits > 0


def test_a_rank_that_dies_ends_the_requests_that_are_computed(engines: dict[int, LLM]) -> None:
    client = engines[2]._client
    long = SamplingParams(temperature=0.0, max_tokens=240, ignore_eos=True)
    streams = [client.submit(prompt[:9], long) for prompt in PROMPTS]
    next(streams[0])
    (pid,) = rank_pids()
    os.kill(pid, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(
            EngineUnavailableError, match=r"Rank 1 of 2 ended \(SIGKILL\)\. The engine must be restarted"
        ):
            stream.collect()
    assert not is_healthy(client)
    with pytest.raises(EngineUnavailableError, match="must be restarted"):
        engines[2].generate(PROMPTS[:1], SamplingParams(**GREEDY), use_tqdm=False)
    assert engines[1].generate(PROMPTS[:1], SamplingParams(**GREEDY), use_tqdm=False)[0].finished


def is_healthy(client: EngineClient) -> bool:
    try:
        client.check_health()
    except EngineUnavailableError:
        return False
    return True


def test_a_rank_that_dies_ends_an_idle_engine(tmp_path: Path) -> None:
    """Fused, transposed and tied weights with an odd vocabulary this time, in int8, and one step after the other."""
    folder = make_tiny_model("gpt2", tmp_path, vocab_size=321)
    config = EngineConfig.from_args(engine_args(folder, 2, quantization="int8", kernel_backend="reference"))
    params = SamplingParams(**GREEDY)
    with LLM(**engine_args(folder, 1, quantization="int8", kernel_backend="reference")) as single:
        expected = single.generate(PROMPTS, params, use_tqdm=False)
    client = EngineClient.start(config)
    try:
        streams = [client.submit(prompt, params) for prompt in PROMPTS]
        assert told([stream.collect() for stream in streams]) == told(expected)
        (pid,) = rank_pids()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_healthy(client))
        with pytest.raises(EngineUnavailableError, match=r"Rank 1 of 2 ended \(SIGKILL\)"):
            client.submit(PROMPTS[0], params)
    finally:
        client.shutdown()
    assert not rank_pids()


def test_ranks_die_with_the_engines_process(folder: Path) -> None:
    script = (
        "import sys, time; from paged_backend import LLM; "
        f"llm = LLM(**{engine_args(folder, 2)!r}); print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            (pid,) = rank_pids(process.pid)
        finally:
            process.kill()
    until(lambda: is_over(pid))


def test_a_rank_that_cannot_be_started_leaves_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def spawn(module: str, theirs: socket.socket, rank: int, **options: Any) -> subprocess.Popen[bytes]:
        if rank == 2:
            theirs.close()
            raise OSError("no more processes")
        begun.append(child_process.spawn(module, theirs, rank, **options))
        return begun[-1]

    start = leader_module._Child.start
    monkeypatch.setattr(leader_module, "spawn", spawn)
    monkeypatch.setattr(leader_module._Child, "start", lambda child: (start(child), child._started.wait()))
    with pytest.raises(EngineUnavailableError, match="Rank 2 of 3 ended"):
        Leader(EngineConfig.from_args(engine_args(folder, 3)))
    assert [process.returncode for process in begun] == [-signal.SIGKILL]


def test_a_rank_that_dies_while_it_loads_is_told_of(folder: Path) -> None:
    leader = Leader(EngineConfig.from_args(engine_args(folder, 2)))
    try:
        until(lambda: len(rank_pids()) == 1)
        os.kill(rank_pids()[0], signal.SIGKILL)
        with pytest.raises(EngineUnavailableError, match=r"Rank 1 of 2 ended \(SIGKILL\)"):
            leader.agree(3)
    finally:
        leader.close()


def test_what_keeps_another_rank_from_loading_is_told(tmp_path: Path) -> None:
    leader = Leader(EngineConfig.from_args(engine_args(tmp_path, 2)))
    with pytest.raises(ModelLoadError, match=r"config\.json"), leader.loading():
        leader._children[0].join(60)
        raise RuntimeError("nobody came to the exchange")
    assert not rank_pids()


def test_what_the_first_rank_refuses_leaves_no_other(folder: Path) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size 3 does not fit"):
        EngineClient.start(EngineConfig.from_args(engine_args(folder, 3)))
    assert not rank_pids()
    with pytest.raises(ConfigError, match="kv_offloading_dir keeps one process's blocks"):
        EngineConfig.from_args(engine_args(folder, 2, kv_offloading_dir="kv"))
