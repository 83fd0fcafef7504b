"""Checkpoints that are pickles: read where the operator asks for it, and as tensors alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paged_backend.config import ModelConfig
from paged_backend.errors import ModelLoadError
from paged_backend.kernels.registry import select_kernels
from paged_backend.models.checkpoint import Checkpoint
from paged_backend.models.fingerprint import checkpoint_fingerprint
from paged_backend.models.loader import LoadedModel, load_model
from tests.tiny_models import make_tiny_model

KERNELS = select_kernels("reference")


def load(folder: Path, **arguments: Any) -> LoadedModel:
    return load_model(ModelConfig(model=str(folder), **arguments), KERNELS)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make_tiny_model("llama", tmp_path / "llama")


def as_pickles(folder: Path, *, shards: int = 1) -> dict[str, torch.Tensor]:
    """Turns a folder's safetensors into what older checkpoints have."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return tensors
    places = {name: f"pytorch_model-{index % shards}.bin" for index, name in enumerate(tensors)}
    for file in set(places.values()):
        torch.save({name: tensor for name, tensor in tensors.items() if places[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return tensors


@pytest.mark.parametrize("shards", [1, 3])
def test_pickles_are_read_where_the_operator_asks_for_them(llama: Path, shards: int) -> None:
    with Checkpoint(llama, "model.") as checkpoint:
        name = "model.embed_tokens.weight"
        shape = load_file(llama / "model.safetensors")[name].shape
        expected = checkpoint.take(name, list(shape), None)
    before = load(llama)
    as_pickles(llama, shards=shards)
    assert load(llama, load_format="pt").architecture == before.architecture
    with Checkpoint(llama, "model.", "pt") as checkpoint:
        assert torch.equal(checkpoint.take(name, list(shape), None), expected)
    fingerprint = checkpoint_fingerprint(llama, "pt")
    assert checkpoint_fingerprint(llama, "pt") == fingerprint
    with pytest.raises(ModelLoadError, match="pickle"):
        load(llama)


class Hostile:
    """What a pickle may hold: a call, made when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was-here",)


@pytest.mark.parametrize("content", [Hostile(), {"x": Hostile()}, {"x": 1}, [torch.ones(1)], {1: torch.ones(1)}])
def test_a_pickle_of_anything_but_tensors_is_refused_and_not_run(
    llama: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llama)
    (llama / "model.safetensors").unlink()
    torch.save(content, llama / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"as tensors alone|does not hold tensors"):
        load(llama, load_format="pt")
    assert not (llama / "was-here").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"PK\x03\x04" + b"x" * 100])
def test_a_broken_pickle(llama: Path, content: bytes) -> None:
    (llama / "model.safetensors").unlink()
    (llama / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelLoadError, match="as tensors alone"):
        load(llama, load_format="pt")


def test_an_index_of_safetensors_names_no_pickles(llama: Path) -> None:
    tensors = as_pickles(llama)
    index = {"weight_map": dict.fromkeys(tensors, "pytorch_model.bin")}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=r"no \.safetensors files"):
        load(llama)
