"""The whole engine on the Triton kernels gives transformers' greedy tokens in float32, interpreted or on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from paged_backend.sampling_params import SamplingParams
from tests.engine_driver import new_core, run_core
from tests.tiny_models import make_tiny_model

pytest.importorskip("triton")

NUM_NEW_TOKENS = 6
PROMPTS = [[7, 200, 31], [50 + 3 * index for index in range(21)]]
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("family", "overrides", "penalty"),
    [
        ("qwen3", {**SMALL, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}, 1.0),
        ("opt", {**SMALL, "word_embed_proj_dim": 32, "init_std": 0.05}, 1.5),
    ],
)
def test_greedy_tokens(family: str, overrides: dict[str, object], penalty: float, tmp_path: Path) -> None:
    """With each step launched before the last one is read; and with tokens that are counted there, too."""
    folder = make_tiny_model(family, tmp_path, **overrides)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    settings = {"do_sample": False, "min_new_tokens": NUM_NEW_TOKENS, "max_new_tokens": NUM_NEW_TOKENS}
    settings["repetition_penalty"] = penalty
    expected = [
        model.generate(torch.tensor([prompt]), eos_token_id=None, pad_token_id=0, **settings)[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]
    assert len({token for row in expected for token in row}) > 4
    core = new_core(
        folder,
        kernel_backend="triton",
        async_scheduling=True,
        block_size=16,
        max_num_batched_tokens=16,
        max_num_seqs=4,
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=NUM_NEW_TOKENS, ignore_eos=True, repetition_penalty=penalty)
    outputs = run_core(core, [(prompt, greedy) for prompt in PROMPTS], steps_between=1)
    assert [output.outputs[0].token_ids for output in outputs] == expected
