"""How the decoder uses the kernels: the same calls for any inputs, and no work on rows that nobody reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from paged_backend.config import ModelConfig
from paged_backend.executor.kv_storage import KVStorage
from paged_backend.kernels.interface import LinearWeight, Rows, StepInputs
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.models.loader import LoadedModel, load_model
from tests.models.step_driver import BLOCK_SIZE, build_inputs, chunked_logits, scheduled
from tests.tiny_models import FAMILIES, VOCAB_SIZE, make_tiny_model

TOKENS = list(range(2, 40))


class CallLog(ReferenceKernels):
    """The reference, which remembers how many rows each linear layer had, and how many times rows were chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_rows: list[int] = []
        self.num_selections = 0

    def linear(
        self, x: Rows, weight: LinearWeight, *, activation: str | None = None, residual: Rows | None = None
    ) -> torch.Tensor:
        self.linear_rows.append(x.shape[0])
        return super().linear(x, weight, activation=activation, residual=residual)

    def select_rows(self, x: Rows, inputs: StepInputs) -> torch.Tensor:
        self.num_selections += 1
        return super().select_rows(x, inputs)


def load(family: str, folder: Path, **overrides: Any) -> LoadedModel:
    folder = make_tiny_model(family, folder, **overrides)
    return load_model(ModelConfig(model=str(folder)), ReferenceKernels())


def run(model: LoadedModel, kernels: ReferenceKernels, rows: list[int] | None) -> torch.Tensor:
    """Logits of some rows of one prompt."""
    storage = KVStorage(model.architecture, len(TOKENS), BLOCK_SIZE, "float32")
    inputs = build_inputs([scheduled(0, TOKENS, 0, list(range(len(TOKENS))), params=None)], BLOCK_SIZE)
    wanted = None if rows is None else torch.tensor(rows, dtype=torch.int64)
    step = kernels.compile(lambda kernels, inputs: model.decoder(kernels, inputs, storage.layers))
    return step(replace(inputs, logits_rows=wanted))


@pytest.mark.parametrize("family", [*FAMILIES, "opt post-norm"])
def test_only_wanted_rows_go_on_after_the_last_attention(family: str, tmp_path: Path) -> None:
    overrides = {"do_layer_norm_before": False, "word_embed_proj_dim": 32} if " " in family else {}
    model = load(family.split(" ", maxsplit=1)[0], tmp_path, **overrides)
    whole, some, none = CallLog(), CallLog(), CallLog()
    logits = run(model, whole, None)
    torch.testing.assert_close(run(model, some, [37, 5]), logits[[37, 5]], rtol=1e-5, atol=1e-5)
    assert run(model, none, []).shape == (0, VOCAB_SIZE)
    num_heads = 1 + (len(overrides) > 0)  # the head, and a projection before it
    num_last = 3 + num_heads
    num_calls = 3 * 4 + num_heads + (len(overrides) > 0)
    for log, num_rows in ((whole, len(TOKENS)), (some, 2), (none, 0)):
        assert log.linear_rows == [len(TOKENS)] * (num_calls - num_last) + [num_rows] * num_last
        assert log.num_selections == 2


def test_soft_cap_of_the_logits(tmp_path: Path) -> None:
    model = load("llama", tmp_path)
    kernels = ReferenceKernels()
    plain = chunked_logits(model, kernels, TOKENS, (38,))
    capped = replace(model, decoder=replace(model.decoder, logit_soft_cap=0.5))
    logits = chunked_logits(capped, kernels, TOKENS, (38,))
    torch.testing.assert_close(logits, 0.5 * torch.tanh(plain / 0.5))


def test_soft_cap_of_the_scores(tmp_path: Path) -> None:
    """A cap far above all scores changes next to nothing, a low one much."""
    model = load("llama", tmp_path)
    kernels = ReferenceKernels()
    plain = chunked_logits(model, kernels, TOKENS, (38,))
    for cap, is_near in ((1e4, True), (0.1, False)):
        layers = [replace(layer, attention=replace(layer.attention, soft_cap=cap)) for layer in model.decoder.layers]
        capped = replace(model, decoder=replace(model.decoder, layers=layers))
        assert torch.allclose(chunked_logits(capped, kernels, TOKENS, (38,)), plain, rtol=1e-3, atol=1e-3) == is_near
