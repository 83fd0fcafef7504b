"""The whole engine on the device cuda, simulated: work is done as late as can be, and memory that was given back is
garbage. Where a step waited for the card, read what is not there yet or is there no more, it would show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from paged_backend.engine.core import EngineCore
from paged_backend.errors import ConfigError, EngineUnavailableError, RequestFailedError
from paged_backend.executor import step_memory
from paged_backend.sampling_params import SamplingParams
from tests.engine_driver import Collector, new_core, new_request, run_core
from tests.simulated_gpu.card import Card
from tests.simulated_gpu.tensors import simulated
from tests.tiny_models import make_tiny_model

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="a build for CUDA has its own functions")

SMALL = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "hidden_size": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
ARGS: dict[str, Any] = {
    "block_size": 16,
    "max_num_batched_tokens": 16,
    "max_num_seqs": 3,
    "cudagraph_capture_sizes": [2, 3],
}


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 4, "ignore_eos": True, **fields})


PLAIN = [
    ([7, 200, 31], params(temperature=0.0, max_tokens=6)),
    (list(range(50, 67)), params(temperature=0.9, seed=3, top_p=0.9)),
    ([9, 9, 9, 9], params(temperature=0.8, seed=4, min_tokens=3)),
]
OTHERS = [
    ([7, 8], params(temperature=0.9, seed=5, presence_penalty=0.5, max_tokens=3)),
    ([5] * 5, params(temperature=0.0, max_tokens=2, logprobs=2)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("qwen3", tmp_path_factory.mktemp("model"), **SMALL)


@pytest.fixture(scope="module")
def card() -> Iterator[Card]:
    with pytest.MonkeyPatch.context() as patch, simulated(patch, Card(0)) as made:
        # What a start warms up, tests/kernels/triton/test_variants.py looks at.
        patch.setattr(step_memory, "smaller_steps", lambda *_: ())
        patch.setattr("paged_backend.kernels.triton.kernels.TritonKernels.warm_up", lambda *_: None)
        yield made


@pytest.fixture(scope="module")
def core(card: Card, folder: Path) -> EngineCore:
    made = new_core(folder, device="cuda", **ARGS)
    assert made._executor.async_scheduling
    return made


def tokens(core: EngineCore, requests: Any, steps_between: int) -> list[list[int]]:
    outputs = run_core(core, requests, steps_between=steps_between)
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_tokens_are_those_of_the_cpu(folder: Path, core: EngineCore, card: Card) -> None:
    live_bytes, num_steps = card.live_bytes, core.stats().num_steps
    card.waits.clear()
    found = tokens(core, PLAIN + OTHERS, 1)
    num_steps = core.stats().num_steps - num_steps
    assert card.num_replays > 3
    # A step's tokens are waited for, once, and nothing else is.
    assert card.waits == ["event.synchronize"] * num_steps
    card.synchronize()
    assert card.live_bytes == live_bytes
    other = new_core(folder, device="cpu", **ARGS)
    assert found == tokens(other, PLAIN + OTHERS, 1)


def test_what_a_decode_is_made_of(core: EngineCore, card: Card) -> None:
    """Of sequences that go on: their inputs in one copy, to where the recording reads them, that, and their tokens."""
    collector = Collector()
    for i in range(3):
        request = new_request(f"d{i}", [3 + i] * (2 + i), params(temperature=0.5, seed=i, max_tokens=7))
        collector.expect(request)
        core.add(request)
    for _ in range(4):
        collector.take(core.step())
    card.launches.clear()
    num_replays = card.num_replays
    for _ in range(2):
        collector.take(core.step())
    recorded = card.launches
    assert card.num_replays == num_replays + 2
    assert [recorded.count(name) / 2 for name in ("copy in", "copy_", "copy out")] == [1, 2, 1]
    assert set(recorded) == {"copy in", "copy_", "copy out"}
    while core.has_work():
        collector.take(core.step())


def test_a_step_without_memory_ends_its_requests_alone(core: EngineCore, card: Card) -> None:
    collector = Collector()
    total_bytes = card.total_bytes
    for name in ("before", "after"):
        request = new_request(name, [3, 4, 5], params())
        collector.expect(request)
        core.add(request)
        if name == "before":
            card.synchronize()
            card.total_bytes = card.live_bytes
        while core.has_work():
            collector.take(core.step())
        card.total_bytes = total_bytes
    assert isinstance(collector.errors["before"], RequestFailedError)
    assert len(collector.outputs["after"].outputs[0].token_ids) == 4


@pytest.mark.parametrize(
    ("total_bytes", "args", "words"),
    [
        (1000, {}, r"load the model's weights .*smaller dtype"),
        (200_000, {}, r"compute a step .*lower max_num_batched_tokens or max_num_seqs"),
        (2**33, {"num_gpu_blocks_override": 10**8}, r"100000000 blocks need .*lower .*num_gpu_blocks_override"),
    ],
)
def test_a_start_without_memory_says_what_to_lower(
    card: Card, folder: Path, total_bytes: int, args: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "total_bytes", total_bytes)
    monkeypatch.setattr(card, "live_bytes", 0)
    with pytest.raises(ConfigError, match=words):
        new_core(folder, device="cuda", enforce_eager=True, **{**ARGS, **args})


def test_a_lost_card_ends_the_engine(core: EngineCore, card: Card) -> None:
    """The last of this file's tests: an error that stays is raised by whatever is asked of the card."""
    core.add(new_request("lost", [3, 4, 5], params()))
    core.step()
    card.fault = RuntimeError("CUDA error: an illegal memory access was encountered\nMore words.")
    with pytest.raises(EngineUnavailableError, match=r"lost to this process .*illegal memory access was encountered"):
        for _ in range(3):
            core.step()
    assert len(core.end_all("lost")) == 1
    core.close(keep_cache=False)
