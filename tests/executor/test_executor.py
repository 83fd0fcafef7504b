"""Plans in, tokens out: batches, chunks, copies, draws, and what a configuration may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from paged_backend.config import EngineConfig
from paged_backend.errors import ConfigError
from paged_backend.executor import kv_storage
from paged_backend.executor.executor import Executor
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import NOT_DRAWN, SamplingTask, ScheduledSequence, StepPlan
from tests.models.step_driver import GREEDY, scheduled
from tests.tiny_models import VOCAB_SIZE, make_tiny_model

BLOCK_SIZE = 4
LENGTHS = (1, 5, 16, 33, 50)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randint(2, VOCAB_SIZE, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    """What transformers generates for each prompt, 20 tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    outputs = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        outputs.append(output[0, len(prompt) :].tolist())
    return outputs


def new_executor(folder: Path, **arguments: Any) -> Executor:
    defaults = {"model": str(folder), "block_size": BLOCK_SIZE, "max_num_seqs": 8, "num_threads": 1}
    return Executor(EngineConfig.from_args({**defaults, **arguments}))


def table(index: int) -> list[int]:
    """32 blocks of the sequence's own, in falling order."""
    return list(range(32 * index + 31, 32 * index - 1, -1))


def run_one(executor: Executor, sequence: ScheduledSequence) -> int:
    result = executor.run(StepPlan((sequence,)))
    return result.token_ids[0]


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_mixed_batches_give_transformers_tokens(folder: Path, expected: list[list[int]], backend: str) -> None:
    """Prompts come in chunks of 7, one more sequence each step, while others decode."""
    executor = new_executor(folder, kernel_backend=backend)
    known = prompts()
    computed = [0] * len(known)
    for step in range(60):
        shares = []
        for index, tokens in enumerate(known[: step + 1]):
            end = min(len(tokens), computed[index] + 7)
            last = end == len(tokens)
            if len(tokens) < LENGTHS[index] + 20:
                shares.append(
                    scheduled(index, tokens[:end], computed[index], table(index), params=GREEDY if last else None)
                )
                computed[index] = end
        if not shares:
            break
        result = executor.run(StepPlan(tuple(shares)))
        drawing = [share.seq_id for share in shares if share.sampling is not None]
        for seq_id, token_id in zip(drawing, result.token_ids, strict=True):
            known[seq_id].append(token_id)
    assert [tokens[length:] for tokens, length in zip(known, LENGTHS, strict=True)] == expected
    assert all(len(set(tokens)) > 5 for tokens in expected)


def test_copied_blocks_hold_the_same(folder: Path) -> None:
    executor = new_executor(folder)
    tokens = prompts()[3]
    first = run_one(executor, scheduled(0, tokens, 0, table(0)))
    again = scheduled(1, tokens, len(tokens) - 1, [200 + i for i in range(32)])
    pairs = tuple(zip(table(0)[:9], again.block_table, strict=False))
    result = executor.run(StepPlan((again,), block_copies=pairs))
    assert list(result.token_ids) == [first]
    assert not executor.run(StepPlan((), block_copies=pairs)).token_ids


def test_draws_repeat_with_their_seed(folder: Path) -> None:
    executor = new_executor(folder)
    tokens = prompts()[4]
    share = scheduled(0, tokens, 0, table(0), params=SamplingParams(temperature=3.0), seeds=(1, 2, 3, 4))
    first = executor.run(StepPlan((share,))).token_ids
    assert len(first) == 4 and len(set(first)) > 1
    assert executor.run(StepPlan((share,))).token_ids == first


def test_broken_logits_end_their_own_sequence(folder: Path) -> None:
    executor = new_executor(folder)
    tokens = prompts()[2]
    good = scheduled(0, tokens, 0, table(0))
    nothing = SamplingTask(SamplingParams(temperature=0.0, allowed_token_ids=[1]), (0,), tokens, tokens, (1,))
    bad = ScheduledSequence(1, tokens, 0, table(1), nothing)
    tokens_drawn = executor.run(StepPlan((good, bad))).token_ids
    assert tokens_drawn[0] >= 0 and tokens_drawn[1] == NOT_DRAWN


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "fp8_e4m3"])
def test_narrow_cache(folder: Path, expected: list[list[int]], dtype: str) -> None:
    backend = "reference" if dtype == "fp8_e4m3" else "auto"
    executor = new_executor(folder, kv_cache_dtype=dtype, kernel_backend=backend)
    tokens = prompts()[3]
    assert run_one(executor, scheduled(0, tokens, 0, table(0))) == expected[3][0]
    again = scheduled(1, tokens, len(tokens) - 1, table(1))
    pairs = tuple(zip(table(0)[:9], again.block_table, strict=False))
    result = executor.run(StepPlan((again,), block_copies=pairs))
    assert result.token_ids[0] == expected[3][0], "a copied block is the whole block, scales included"


def test_a_cache_that_the_kernels_cannot_read_is_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^kv_cache_dtype fp8_e4m3 .* the cpu kernels: choose one of float32, .*int8,"
    ):
        new_executor(folder, kv_cache_dtype="fp8", kernel_backend="cpu")


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_weights(folder: Path, backend: str, quantization: str) -> None:
    """A prompt's token does not depend on what is computed beside it."""
    executor = new_executor(folder, kernel_backend=backend, quantization=quantization)
    shares = [scheduled(index, tokens, 0, table(index)) for index, tokens in enumerate(prompts())]
    together = executor.run(StepPlan(tuple(shares))).token_ids
    assert [run_one(executor, share) for share in shares] == list(together)


def test_attributes(folder: Path) -> None:
    executor = new_executor(folder, max_model_len=100)
    assert executor.max_model_len == 100
    assert executor.vocab_size == VOCAB_SIZE
    assert executor.block_size == BLOCK_SIZE
    assert executor.num_blocks == 8 * 25, "never more than all sequences can fill"
    assert executor.eos_token_ids == {1}
    assert executor.model_folder == folder.resolve()
    assert executor.architecture.num_layers == 3
    assert "paged_attention" in executor.kernel_report
    executor.close()
    executor.close()


def test_pool_sizes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_per_block = 2 * 3 * 2 * 16 * BLOCK_SIZE * 4
    assert new_executor(folder, num_gpu_blocks_override=70).num_blocks == 70
    assert new_executor(folder, kv_cache_memory_bytes=100 * bytes_per_block).num_blocks == 100
    narrow = new_executor(folder, kv_cache_memory_bytes=100 * bytes_per_block, kv_cache_dtype="bfloat16")
    assert narrow.num_blocks == 200
    # 2 heads of 4 tokens: 128 bytes of numbers, 32 of scales, 32 of padding; where float32 has 512.
    tiny = new_executor(folder, kv_cache_memory_bytes=99 * bytes_per_block, kv_cache_dtype="int8")
    assert tiny.num_blocks == 99 * 512 // 192
    monkeypatch.setattr(kv_storage, "free_memory_bytes", lambda: 300 * bytes_per_block)
    assert new_executor(folder, gpu_memory_utilization=0.5).num_blocks == 150
    monkeypatch.setattr(kv_storage, "free_memory_bytes", lambda: 100 * bytes_per_block)
    for arguments, words in (
        ({"num_gpu_blocks_override": 63}, "num_gpu_blocks_override 63.*at least 64"),
        ({"kv_cache_memory_bytes": 63 * bytes_per_block}, "kv_cache_memory_bytes.*max_model_len 256"),
        ({"gpu_memory_utilization": 0.5}, "gpu_memory_utilization.*room for 50 blocks"),
        ({"max_model_len": 300}, "256 positions"),
        ({"num_threads": 1025}, "num_threads must be in 1..1024"),
    ):
        with pytest.raises(ConfigError, match=words):
            new_executor(folder, **arguments)


def test_free_memory() -> None:
    assert 2**20 < kv_storage.free_memory_bytes() < 2**50


def test_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_storage, "_machine_free_bytes", lambda: None)
    monkeypatch.setattr(kv_storage, "_container_free_bytes", lambda: None)
    with pytest.raises(ConfigError, match="kv_cache_memory_bytes"):
        kv_storage.free_memory_bytes()
    monkeypatch.setattr(kv_storage, "_container_free_bytes", lambda: -5)
    assert kv_storage.free_memory_bytes() == 0
