"""Models with sliding windows, far past them: transformers' tokens, in any chunks, from any prefix, in few blocks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from paged_backend.engine.core import EngineCore
from paged_backend.outputs import RequestOutput
from paged_backend.sampling_params import SamplingParams
from tests.engine_driver import Collector, new_core, new_request, run_core
from tests.tiny_models import make_tiny_model

WINDOW = 20
BLOCK_SIZE = 4
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "all layers": ("mistral", {"sliding_window": WINDOW}),
    "the last two": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "every other": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
}
NUM_GROUPS = {"all layers": 1, "the last two": 3, "every other": 2}
LENGTHS = (3, 19, 64, 131, 200)
NUM_NEW_TOKENS = 40
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_NEW_TOKENS, ignore_eos=True)
SEEDED = SamplingParams(temperature=1.0, top_p=0.95, n=3, seed=5, max_tokens=30, ignore_eos=True, logprobs=2)


@pytest.fixture(scope="module", params=tuple(MODELS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, overrides = MODELS[kind]
    return make_tiny_model(family, tmp_path_factory.mktemp("model"), **overrides)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """The last two begin alike."""
    rng = random.Random(3)
    drawn = [[rng.randrange(5, 300) for _ in range(length)] for length in LENGTHS]
    return [*drawn, [*drawn[-1][:150], *drawn[0], *drawn[1]]]


@pytest.fixture(scope="module")
def truth(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers generates for each prompt alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=NUM_NEW_TOKENS,
            max_new_tokens=NUM_NEW_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
        expected.append(output[0, len(prompt) :].tolist())
    return expected


@pytest.fixture(scope="module")
def seeded(folder: Path, prompts: list[list[int]]) -> list[list[list[Any]]]:
    """Sampled tokens with their logprobs, each request alone in an engine of its own that computes prompts whole."""
    return [
        drawn(run_core(engine(folder, max_num_batched_tokens=256, enable_prefix_caching=False), [(prompt, SEEDED)]))[0]
        for prompt in prompts
    ]


def engine(folder: Path, **arguments: Any) -> EngineCore:
    return new_core(folder, **{"block_size": BLOCK_SIZE, "max_num_seqs": 16, "max_model_len": 256, **arguments})


def drawn(outputs: list[RequestOutput]) -> list[list[Any]]:
    """Tokens and logprobs, to the bit."""
    return [[(sample.token_ids, sample.logprobs) for sample in output.outputs] for output in outputs]


def test_groups(folder: Path, kind: str) -> None:
    assert len(engine(folder, max_num_batched_tokens=64)._kv.groups) == NUM_GROUPS[kind]
    assert len(engine(folder, max_model_len=WINDOW)._kv.groups) == 1, "a window that nothing passes is none"


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("budget", [16, 40, 256])
def test_transformers_tokens_past_the_window(
    folder: Path, prompts: list[list[int]], truth: list[list[int]], budget: int, backend: str
) -> None:
    core = engine(folder, max_num_batched_tokens=budget, kernel_backend=backend)
    requests = [(prompt, GREEDY) for prompt in prompts]
    for prefix in ("cold", "warm"):
        outputs = run_core(core, requests, steps_between=2)
        assert [output.outputs[0].token_ids for output in outputs] == truth, prefix
    assert [output.num_cached_tokens for output in outputs] == [
        (len(p) - 1) // BLOCK_SIZE * BLOCK_SIZE for p in prompts
    ]
    assert core.stats().num_used_blocks == 0


@pytest.mark.parametrize("budget", [16, 48])
def test_the_same_bits_alone_together_and_preempted(
    folder: Path, prompts: list[list[int]], seeded: list[list[list[Any]]], budget: int
) -> None:
    """Three samples of each request, in pools so small that sequences give way to each other."""
    roomy = engine(folder, max_num_batched_tokens=budget)
    requests = [(prompt, SEEDED) for prompt in prompts]
    assert drawn(run_core(roomy, requests, steps_between=3)) == seeded
    needed = roomy._kv.blocks_for(256)
    tight = engine(folder, max_num_batched_tokens=budget, num_gpu_blocks_override=needed)
    assert drawn(run_core(tight, [*requests, *requests], steps_between=1)) == [*seeded, *seeded]
    assert tight.stats().num_preemptions > 0
    assert tight.stats().num_used_blocks == 0
    tight._kv.check_invariants()


def test_blocks_that_the_window_has_left_are_never_read(
    folder: Path, prompts: list[list[int]], truth: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each step, what no sequence holds is made not-a-number."""
    core = engine(folder, max_num_batched_tokens=24, enable_prefix_caching=False)
    run, kv, storage = core._executor.run, core._kv, core._executor._runner._storage  # type: ignore[union-attr]
    num_poisoned = 0

    def run_poisoned(plan):  # type: ignore[no-untyped-def]
        nonlocal num_poisoned
        free = kv.pool.free_blocks()
        num_poisoned += len(free)
        with torch.inference_mode():
            storage.blocks[:, :, free] = 255  # all bits set
        return run(plan)

    monkeypatch.setattr(core._executor, "run", run_poisoned)
    outputs = run_core(core, [(prompt, GREEDY) for prompt in prompts], steps_between=3)
    assert [output.outputs[0].token_ids for output in outputs] == truth
    assert num_poisoned > 0


def test_a_generation_of_ten_windows_holds_little_more_than_one(folder: Path, kind: str) -> None:
    core = engine(folder, max_num_batched_tokens=16)
    request = new_request("r", [7, 8, 9], SamplingParams(temperature=0.0, max_tokens=10 * WINDOW, ignore_eos=True))
    collector = Collector()
    collector.expect(request)
    core.add(request)
    most = 0
    while core.has_work():
        collector.take(core.step())
        most = max(most, core.stats().num_used_blocks)
        if core.stats().num_used_blocks:
            length = len(collector.outputs["r"].outputs[0].token_ids) + 2
    num_windowed = sum(group.window > 0 for group in core._kv.groups)
    of_a_window = WINDOW // BLOCK_SIZE + 1
    whole = -(-length // BLOCK_SIZE)
    assert length > 10 * WINDOW and whole > 8 * of_a_window
    assert most <= num_windowed * of_a_window + (NUM_GROUPS[kind] - num_windowed) * whole
    assert core.stats().kv_cache_usage == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_cache_dtypes(folder: Path, prompts: list[list[int]], dtype: str) -> None:
    """In chunks and past the window, the same tokens as whole prompts in one group's table give."""
    requests = [(prompt, GREEDY) for prompt in prompts]
    whole = engine(folder, max_num_batched_tokens=256, kv_cache_dtype=dtype, enable_prefix_caching=False)
    expected = drawn(run_core(whole, requests))
    core = engine(folder, max_num_batched_tokens=16, kv_cache_dtype=dtype)
    for _ in range(2):
        assert drawn(run_core(core, requests, steps_between=2)) == expected


def test_what_can_never_fit_is_refused_by_what_all_groups_need(folder: Path, kind: str) -> None:
    needed = engine(folder, max_num_batched_tokens=16)._kv.blocks_for(256)
    with pytest.raises(Exception, match=f"num_gpu_blocks_override {needed - 1}.*at least {needed} blocks"):
        engine(folder, max_num_batched_tokens=16, num_gpu_blocks_override=needed - 1)
    if kind == "all layers":
        assert needed == (WINDOW - 1 + 16 - 1 + BLOCK_SIZE - 1) // BLOCK_SIZE + 1 < 256 // BLOCK_SIZE
