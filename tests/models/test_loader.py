"""What a model folder may look like, and how a wrong one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paged_backend.config import ModelConfig
from paged_backend.errors import ConfigError, KernelError, ModelLoadError
from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.kernels.reference.linear import ReferenceLinear
from paged_backend.kernels.registry import select_kernels
from paged_backend.models.folder import resolve_folder
from paged_backend.models.loader import LoadedModel, load_model
from tests.models.step_driver import chunked_logits
from tests.tiny_models import VOCAB_SIZE, make_tiny_model

KERNELS = select_kernels("reference")


class PackingLog(ReferenceKernels):
    """The reference, which remembers what it packed: weights and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.packed: list[tuple[torch.Tensor | QuantizedWeight, torch.Tensor | None]] = []

    def pack_linear(
        self, weight: torch.Tensor | QuantizedWeight, bias: torch.Tensor | None = None, *, gated: bool = False
    ) -> ReferenceLinear:
        self.packed.append((weight, bias))
        return super().pack_linear(weight, bias, gated=gated)


def load(folder: Path, **arguments: Any) -> LoadedModel:
    return load_model(ModelConfig(model=str(folder), **arguments), KERNELS)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make_tiny_model("llama", tmp_path / "llama")


def test_what_a_loaded_model_says(llama: Path) -> None:
    model = load(llama)
    assert model.folder == llama.resolve()
    assert model.max_model_len == 256
    assert model.eos_token_ids == {1}
    assert (model.architecture.num_kv_heads, model.architecture.head_dim) == (2, 16)


def test_eos_of_both_files(llama: Path) -> None:
    edit_config(llama, eos_token_id=[1, 5])
    (llama / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert load(llama).eos_token_ids == {1, 5, 7}
    (llama / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(ModelLoadError, match="eos_token_id"):
        load(llama)


@pytest.mark.parametrize("eos", ["x", [1, "x"], 1.5, [True], {"1": 1}], ids=str)
def test_eos_of_a_wrong_type(llama: Path, eos: object) -> None:
    edit_config(llama, eos_token_id=eos)
    with pytest.raises(ModelLoadError, match="eos_token_id"):
        load(llama)


def test_eos_outside_the_vocabulary_is_left_out(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_config(llama, eos_token_id=[1, -1])
    (llama / "generation_config.json").write_text('{"eos_token_id": [2, 1000000]}')
    assert load(llama).eos_token_ids == {1, 2}
    assert "names -1, 1000000, but" in caplog.text


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16", "float16"])
def test_dtypes(stored: torch.dtype, asked: str, tmp_path: Path) -> None:
    """Weights and tables as stored or as asked for; norms and biases in float32."""
    folder = make_tiny_model("qwen2", tmp_path, dtype=stored)
    kernels = PackingLog()
    decoder = load_model(ModelConfig(model=str(folder), dtype=asked), kernels).decoder
    expected = stored if asked == "auto" else getattr(torch, asked)
    assert decoder.embedding.dtype == expected
    assert {weight.dtype for weight, _ in kernels.packed if isinstance(weight, torch.Tensor)} == {expected}
    assert {bias.dtype for _, bias in kernels.packed if bias is not None} == {torch.float32}
    norm = decoder.layers[0].attention_norm
    assert norm.weight is not None and norm.weight.dtype == torch.float32


def test_layers_of_several_dtypes_lose_nothing(llama: Path) -> None:
    """One float32 matrix among bfloat16 ones: what is joined with it is held in float32."""
    tokens = list(range(2, 40))
    edit_weights(llama, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items() if ".v_" not in n}))
    narrow = chunked_logits(load(llama), KERNELS, tokens, (38,))
    edit_weights(llama, lambda tensors: tensors.update({n: t.float() for n, t in tensors.items()}))
    assert torch.equal(chunked_logits(load(llama), KERNELS, tokens, (38,)), narrow)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_quantized_layers(name: str, tmp_path: Path) -> None:
    """int4 for the layers and int8 for the head, the table as it is stored; tied or not."""
    folder = make_tiny_model(name, tmp_path)
    for quantization, layer_bits in (("int8", 8), ("int4", 4), ("fp8", 8)):
        kernels = PackingLog()
        decoder = load_model(ModelConfig(model=str(folder), quantization=quantization), kernels).decoder
        weights = [weight for weight, _ in kernels.packed if isinstance(weight, QuantizedWeight)]
        assert len(weights) == len(kernels.packed) == 1 + 3 * 4
        assert sorted(weight.bits for weight in weights) == sorted([8] + [layer_bits] * 12)
        head = next(weight for weight in weights if weight.values.shape[0] == VOCAB_SIZE)
        assert head.bits == 8 and not head.is_float8
        assert sum(weight.is_float8 for weight in weights) == (12 if quantization == "fp8" else 0)
        assert decoder.embedding.dtype == torch.float32


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_quantized_logits_are_near(quantization: str, llama: Path) -> None:
    tokens = list(range(2, 40))
    exact = chunked_logits(load(llama), KERNELS, tokens, (38,))
    narrow = chunked_logits(load(llama, quantization=quantization), KERNELS, tokens, (38,))
    similarity = torch.nn.functional.cosine_similarity(exact, narrow, dim=-1).median()
    # Random weights enlarge rounding from layer to layer.
    assert similarity > {"int8": 0.999, "fp8": 0.98, "int4": 0.75}[quantization]
    assert not torch.equal(exact, narrow)


def test_fp8_on_the_cpu(llama: Path) -> None:
    with pytest.raises(KernelError, match=r"fp8, which no CPU multiplies: quantize it to int8"):
        load_model(ModelConfig(model=str(llama), quantization="fp8"), select_kernels("cpu", num_threads=1))


def test_weights_that_cannot_be_quantized(llama: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    edit_weights(llama, lambda tensors: tensors[name][3, 5].fill_(torch.nan))
    with pytest.raises(ModelLoadError, match=r"model\.layers\.1\.mlp\.down_proj .*not finite"):
        load(llama, quantization="int8")


def test_unknown_quantization() -> None:
    with pytest.raises(ConfigError, match=r"quantization must be one of int8, int4, fp8, got 'awq'"):
        ModelConfig(quantization="awq")


def test_max_model_len(llama: Path) -> None:
    model = load(llama, max_model_len=100)
    assert model.max_model_len == 100
    assert model.decoder.rotary is not None
    assert len(model.decoder.rotary[0]) == 100
    with pytest.raises(ConfigError, match=r"max_model_len 257 .* 256 positions"):
        load(llama, max_model_len=257)


def test_unknown_family(llama: Path) -> None:
    edit_config(llama, model_type="mamba")
    with pytest.raises(ModelLoadError, match=r"'mamba'.* llama, mistral, qwen2, qwen3, gpt2, opt"):
        load(llama)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized .gptq."),
        ({"hidden_act": "mish"}, "activation 'mish'"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_hidden_layers": "three"}, "num_hidden_layers|wrong value"),
    ],
)
def test_unsupported_configuration(llama: Path, changes: dict[str, Any], words: str) -> None:
    edit_config(llama, **changes)
    with pytest.raises(ModelLoadError, match=words):
        load(llama)


def test_missing_value(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    del config["hidden_size"]
    (llama / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="hidden_size"):
        load(llama)


def test_older_rope_keys_mean_the_same(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = make_tiny_model("llama", tmp_path, rope_parameters=rope)
    new = load(folder).architecture.rotary
    assert new is not None
    assert new.kind == "llama3"
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}
    (folder / "config.json").write_text(
        json.dumps({**config, "rope_theta": 500.0, "rope_scaling": {**scaling, "type": "llama3"}})
    )
    assert load(folder).architecture.rotary == new


def test_yarn_serves_the_stretched_length(llama: Path) -> None:
    edit_config(
        llama,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    )
    assert load(llama).max_model_len == 256


def test_pickles_are_refused(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    (llama / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelLoadError, match=r"pickle.*save_pretrained.*load_format: pt"):
        load(llama)


def test_no_weights(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"no model\.safetensors"):
        load(llama)


def test_broken_weights(llama: Path) -> None:
    (llama / "model.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(ModelLoadError, match="Cannot read"):
        load(llama)


def test_missing_tensor(llama: Path) -> None:
    edit_weights(llama, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelLoadError, match=r"lacks weights.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load(llama)


def test_unexpected_tensor(llama: Path) -> None:
    edit_weights(llama, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))
    with pytest.raises(ModelLoadError, match=r"no place for: model\.layers\.0\.self_attn\.q_proj\.bias"):
        load(llama)


def test_wrong_shape(llama: Path) -> None:
    edit_weights(llama, lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}))
    with pytest.raises(ModelLoadError, match=r"model\.norm\.weight.*\[65\].*\[64\]"):
        load(llama)


def test_wrong_dtype(llama: Path) -> None:
    edit_weights(llama, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    with pytest.raises(ModelLoadError, match="I8"):
        load(llama)


def test_buffers_are_ignored(llama: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(llama, lambda tensors: tensors.update({name: torch.ones(8)}))
    load(llama)


def test_gpt2_without_its_prefix(tmp_path: Path) -> None:
    """The original GPT-2 on the hub has bare names, and masks stored as buffers."""
    folder = make_tiny_model("gpt2", tmp_path)
    tokens = list(range(2, 40))
    before = chunked_logits(load(folder), KERNELS, tokens, (38,))

    def strip(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 256, 256)

    edit_weights(folder, strip)
    assert torch.equal(chunked_logits(load(folder), KERNELS, tokens, (38,)), before)


def test_tied_weights_stored_twice(tmp_path: Path) -> None:
    """Equal ones are one tensor; a head of its own wins over a configuration that says otherwise."""
    folder = make_tiny_model("llama", tmp_path, tie_word_embeddings=True)
    head = "lm_head.weight"
    edit_weights(folder, lambda t: t.update({head: t["model.embed_tokens.weight"].clone()}))
    decoder = load(folder).decoder
    assert isinstance(decoder.lm_head, ReferenceLinear)
    assert decoder.lm_head.weight is decoder.embedding
    edit_weights(folder, lambda t: t.update({head: t[head] * 2}))
    decoder = load(folder).decoder
    assert isinstance(decoder.lm_head, ReferenceLinear)
    assert torch.equal(decoder.lm_head.weight, decoder.embedding * 2)


def test_missing_head_of_an_untied_model(llama: Path) -> None:
    edit_weights(llama, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight"):
        load(llama)


def test_shard_that_is_not_there(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path, max_shard_size="60KB")
    sorted(folder.glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(ModelLoadError, match="lacks weight files"):
        load(folder)


def test_index_that_leads_outside(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path, max_shard_size="60KB")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../other.safetensors"}}))
    with pytest.raises(ModelLoadError, match="outside"):
        load(folder)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelLoadError, match="object"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="JSON"):
        load(tmp_path)


def test_resolve_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert resolve_folder("here") == (tmp_path / "here").resolve()
    with pytest.raises(ModelLoadError, match="revision"):
        resolve_folder("here", "main")
    for name in ("./absent", "/absent/model", "a/b/c"):
        with pytest.raises(ModelLoadError, match="not a folder"):
            resolve_folder(name)


@pytest.mark.parametrize("failure", ["LocalEntryNotFoundError", "ValueError"])
def test_hub_that_cannot_be_reached(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, failure, ValueError)

    def refuse(*_: object, **__: object) -> str:
        raise kind("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelLoadError, match=r"some/model.*(cannot be reached|could not be fetched)"):
        resolve_folder("some/model")


def test_hub_gives_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def fetch(model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(model=model, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve_folder("some/model", "v2") == tmp_path
    assert (asked["model"], asked["revision"]) == ("some/model", "v2")
    assert not any("bin" in pattern or "py" in pattern for pattern in asked["patterns"])
    resolve_folder("some/model", load_format="pt", trust_remote_code=True)
    assert {"*.bin", "*.py"} < set(asked["patterns"]) and "*.safetensors" not in asked["patterns"]
