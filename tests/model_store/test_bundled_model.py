"""The bundled model: small enough, loads offline, answers sensibly, and its recipe is deterministic."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "model_store" / "paged-tiny"
sys.path.insert(0, str(ROOT))

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True, dtype=torch.float32).eval()


def _generate(model, tokenizer, ids: torch.Tensor, max_new_tokens: int) -> list[int]:
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
    return out[0, ids.shape[1] :].tolist()


def _answer(model, tokenizer, prompt: str) -> str:
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    return tokenizer.decode(_generate(model, tokenizer, ids, 80), skip_special_tokens=True)


def test_the_folder_is_at_most_16_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 16_000_000


def test_the_config_is_a_llama_with_grouped_query_attention(model) -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert model.config.tie_word_embeddings
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings


def test_chat_template_round_trip(tokenizer) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello! How can I help you?"},
        {"role": "user", "content": 'Ünïcode \U0001f642, {"a": 12}?'},
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHello! How can I help you?<|im_end|>\n"
        '<|im_start|>user\nÜnïcode \U0001f642, {"a": 12}?<|im_end|>\n<|im_start|>assistant\n'
    )
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tokenizer_fits_the_model(tokenizer, model) -> None:
    assert len(tokenizer) == model.config.vocab_size
    end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|eos|>"])
    assert model.generation_config.eos_token_id == end


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hello, who are you?", "paged-tiny"),
        ("What is paged attention?", "blocks"),
        ("What is the capital of France?", "Paris"),
        ("Tell me a short story about a fox.", "fox"),
    ],
)
def test_answers_are_on_topic(model, tokenizer, prompt: str, expected: str) -> None:
    assert expected in _answer(model, tokenizer, prompt)


def test_json_on_request_is_json(model, tokenizer) -> None:
    assert json.loads(_answer(model, tokenizer, "Give me a JSON object for a user named Ana."))["name"] == "Ana"


def test_a_story_goes_on_and_ends_by_itself(model, tokenizer) -> None:
    ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    new = _generate(model, tokenizer, ids, 400)
    assert 60 <= len(new) < 400
    assert new[-1] == tokenizer.eos_token_id


def test_the_corpus_is_deterministic_and_its_splits_differ() -> None:
    from model_store.recipe import corpus

    def first(split: corpus.Split) -> list[corpus.Document]:
        return list(itertools.islice(corpus.documents(3, split), 200))

    assert first("train") == first("train")
    asked = {turn[0] for document in first("train") for turn in document.turns}
    held_out = {turn[0] for document in first("heldout") for turn in document.turns}
    assert len(asked & held_out) < len(held_out) / 4
