"""Greedy tokens equal transformers' own in float32, whatever the batch, the chunks, the blocks and the preemptions."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from paged_backend.outputs import RequestOutput
from paged_backend.sampling_params import SamplingParams
from tests.engine_driver import new_core, run_core
from tests.tiny_models import make_tiny_model

OVERRIDES: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 512},
    "mistral": {"max_position_embeddings": 512, "sliding_window": 40},
    "qwen2": {"max_position_embeddings": 512, "tie_word_embeddings": True},
    "qwen3": {"max_position_embeddings": 512, "tie_word_embeddings": True},
    "gpt2": {"n_positions": 512},
    "opt": {"max_position_embeddings": 512, "init_std": 0.05},
}
"""By family: grouped-query attention, biases, tied and untied embeddings are all among them."""
PROMPT_LENGTHS = (1, 2, 7, 16, 17, 33, 64, 100, 150, 201, 256, 300)
NUM_NEW_TOKENS = 48
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_NEW_TOKENS, ignore_eos=True)


def make_prompts(vocab_size: int) -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(5, vocab_size) for _ in range(length)] for length in PROMPT_LENGTHS]


@pytest.fixture(scope="module", params=tuple(OVERRIDES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model_folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(family, tmp_path_factory.mktemp(family), **OVERRIDES[family])


@pytest.fixture(scope="module")
def truth(model_folder: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts, and the tokens that transformers generates for each alone."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    prompts = make_prompts(model.config.vocab_size)
    expected = []
    for prompt in prompts:
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            min_new_tokens=NUM_NEW_TOKENS,
            max_new_tokens=NUM_NEW_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
        expected.append(output[0, len(prompt) :].tolist())
    return prompts, expected


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_truth_depends_on_the_context(truth: tuple[list[list[int]], list[list[int]]]) -> None:
    """A model that repeats one token would let every other test here pass."""
    _, expected = truth
    assert len({token for row in expected for token in row}) > 40
    assert len({tuple(row) for row in expected}) == len(expected)
    assert all(len(set(row)) > 5 for row in expected)


@pytest.mark.parametrize(("block_size", "budget", "num_blocks"), [(8, 48, 70), (16, 100, 400)])
@pytest.mark.parametrize("kernel_backend", ["reference", "auto"])
def test_staggered_chunked_preempted(
    family: str,
    model_folder: Path,
    truth: tuple[list[list[int]], list[list[int]]],
    block_size: int,
    budget: int,
    num_blocks: int,
    kernel_backend: str,
) -> None:
    prompts, expected = truth
    core = new_core(
        model_folder,
        block_size=block_size,
        max_num_seqs=12,
        max_num_batched_tokens=budget,
        num_gpu_blocks_override=num_blocks,
        kernel_backend=kernel_backend,
        max_model_len=400,
    )
    outputs = run_core(core, [(prompt, GREEDY) for prompt in prompts], steps_between=3)
    assert tokens(outputs) == expected
    if num_blocks == 70 and family != "mistral":  # its window leaves room for all
        assert core.stats().num_preemptions > 0
    assert core.stats().num_used_blocks == 0


def test_warm_prefix(model_folder: Path, truth: tuple[list[list[int]], list[list[int]]]) -> None:
    prompts, expected = truth
    core = new_core(model_folder, block_size=8, max_num_seqs=12, max_num_batched_tokens=64, max_model_len=400)
    requests = [(prompt, GREEDY) for prompt in prompts]
    assert tokens(run_core(core, requests)) == expected
    again = run_core(core, requests)
    assert tokens(again) == expected
    assert [output.num_cached_tokens for output in again] == [(len(prompt) - 1) // 8 * 8 for prompt in prompts]
