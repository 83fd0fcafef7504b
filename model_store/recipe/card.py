"""The model card: what the model is, how it was made, and samples that were really seen."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from model_store.recipe import batches, knowledge, tasks, train
from model_store.recipe.tokenizer import MAX_LENGTH
from model_store.recipe.writer import Split, Turn, Writer

PROMPTS: Final = (
    "Hello, who are you?",
    "What is paged attention?",
    "Why is continuous batching useful?",
    "What is the capital of France?",
    "What is 7 + 5?",
    "What is the sum of 13 and 6?",
    "Give me a JSON object for a user named Ana.",
    "Tell me a short story about a fox.",
    "Please list 3 fruits.",
    "What is a block table?",
    "What is the antonym of hot?",
    "Can you explain the theory of music to me?",
)
PLAIN_PROMPT: Final = "Once upon a time"
POSITIONS: Final = (0, 256, 512, 768, 1024, 1536, MAX_LENGTH)


@dataclass(frozen=True)
class Check:
    """A kind of question: how many were asked, and how many answers were word for word right."""

    name: str
    num_asked: int
    num_right: int


@torch.inference_mode()
def answer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    messages: list[dict[str, str]],
    *,
    temperature: float = 0.0,
    max_new_tokens: int = 200,
) -> str:
    """The assistant's answer to a chat; greedy at temperature 0."""
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]
    return _generate(model, tokenizer, ids, temperature, max_new_tokens)


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    *,
    temperature: float = 0.0,
    max_new_tokens: int = 400,
) -> str:
    """`text` and its continuation."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    return text + _generate(model, tokenizer, ids, temperature, max_new_tokens)


def _generate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    ids: torch.Tensor,
    temperature: float,
    max_new_tokens: int,
) -> str:
    drawing = (
        {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
        if temperature > 0
        else {"do_sample": False}
    )
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, **drawing)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@torch.inference_mode()
def checks(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, split: Split, num_each: int = 40
) -> list[Check]:
    """Ask questions in the wordings of `split`, one kind after the other, and compare the greedy answers."""
    writer = Writer(random.Random(train.HELDOUT_SEED), split)
    kinds: dict[str, Callable[[Writer], Turn]] = {
        "capitals": knowledge.capital,
        "opposites": knowledge.opposite,
        "all tables of facts": knowledge.from_a_table,
        "sums": tasks.arithmetic,
        "science, the model itself, small talk": knowledge.general,
        "serving": knowledge.concept,
        "copying and spelling": tasks.copying,
    }
    results = []
    for name, ask in kinds.items():
        right = 0
        for _ in range(num_each):
            asked, expected = ask(writer)
            got = answer(model, tokenizer, [{"role": "user", "content": asked}], max_new_tokens=64)
            # Several answers are right for an idea: its first sentence decides.
            right += got == expected or (len(expected) > 40 and got.split(".")[0] == expected.split(".")[0])
        results.append(Check(name, num_each, right))
    return results


@torch.inference_mode()
def losses_by_position(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, num_rows: int = 8
) -> dict[tuple[int, int], float]:
    """Held-out loss in nats a token for ranges of positions in a long context, first to last (exclusive)."""
    total = torch.zeros(MAX_LENGTH)
    count = torch.zeros(MAX_LENGTH)
    stream = batches.batches(tokenizer, 1, MAX_LENGTH, train.HELDOUT_SEED, "heldout")
    for inputs, labels in itertools.islice(stream, num_rows):
        logits = model(inputs, use_cache=False).logits[0]
        loss = functional.cross_entropy(logits.float(), labels[0].clamp(min=0), reduction="none")
        total += loss * (labels[0] != -100)
        count += labels[0] != -100
    return {(a, b): (total[a:b].sum() / count[a:b].sum()).item() for a, b in itertools.pairwise(POSITIONS)}


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" if line else ">" for line in text.splitlines())


def write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, progress: train.Progress) -> str:
    """The card as Markdown; the samples and the scores are computed here, from `model`."""
    samples = []
    torch.manual_seed(0)
    for prompt in PROMPTS:
        message = [{"role": "user", "content": prompt}]
        samples.append(f"**{prompt}**\n\n{_quoted(answer(model, tokenizer, message))}")
    for prompt in PROMPTS[1], PROMPTS[7]:
        message = [{"role": "user", "content": prompt}]
        told = answer(model, tokenizer, message, temperature=0.7)
        samples.append(f"**{prompt}** (temperature 0.7)\n\n{_quoted(told)}")
    for temperature in (0.0, 0.7):
        told = complete(model, tokenizer, PLAIN_PROMPT, temperature=temperature)
        samples.append(f"**{PLAIN_PROMPT}** (plain text, temperature {temperature})\n\n{_quoted(told)}")
    config = model.config
    template = Template(Path(__file__).with_name("card.md").read_text())
    return template.substitute(
        parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        theta=f"{config.rope_parameters['rope_theta']:,.0f}",
        context=config.max_position_embeddings,
        vocabulary=config.vocab_size,
        tokens=f"{progress.num_tokens / 1e6:.1f}",
        steps=progress.step,
        step_tokens=train.TOKENS_PER_STEP,
        minutes=f"{progress.elapsed_s / 60:.0f}",
        row_tokens=train.ROW_TOKENS,
        long_row_tokens=train.LONG_ROW_TOKENS,
        long_percent=f"{100 - 100 * train.LONG_FROM:.0f}",
        heldout_loss=f"{progress.heldout_loss:.3f}",
        train_loss=f"{progress.train_loss:.3f}",
        scores="\n".join(
            f"| {known.name} | {known.num_right} of {known.num_asked} | {new.num_right} of {new.num_asked} |"
            for known, new in zip(checks(model, tokenizer, "train"), checks(model, tokenizer, "heldout"), strict=True)
        ),
        positions="\n".join(
            f"| {a} to {b - 1} | {loss:.2f} |" for (a, b), loss in losses_by_position(model, tokenizer).items()
        ),
        samples="\n\n".join(samples),
    )
