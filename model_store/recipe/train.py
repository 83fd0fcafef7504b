"""Train paged-tiny: a small Llama, packed rows, Muon for the matrices and AdamW for the rest.

The end of the training uses rows of 1024 tokens, so that long conversations have been seen.
What is exported is a running mean of the weights.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from model_store.recipe import batches
from model_store.recipe.tokenizer import EOS, MAX_LENGTH, PAD, VOCAB_SIZE

TOKENS_PER_STEP: Final = 2048
ROW_TOKENS: Final = 256
LONG_ROW_TOKENS: Final = 1024
LONG_FROM: Final = 0.9  # share of the training after which rows are long
WARMUP_STEPS: Final = 100
PEAK_LR: Final = 2.5e-3
WEIGHT_DECAY: Final = 0.05
MEAN_DECAY: Final = 0.99
HELDOUT_SEED: Final = 10_000_000


@dataclass
class Progress:
    """Where a training stands; saved with the weights."""

    step: int = 0
    elapsed_s: float = 0.0
    num_tokens: int = 0
    train_loss: float = float("nan")
    heldout_loss: float = float("nan")


def architecture(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The shape of paged-tiny: 5.1 million parameters, two query heads to a key/value head."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.convert_tokens_to_ids(EOS),
        eos_token_id=tokenizer.convert_tokens_to_ids(EOS),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )


def loss_of(model: LlamaForCausalLM, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats over the labels that are not -100; both are int64 [rows, tokens]."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
        wanted = labels != -100
        logits = model.lm_head(hidden[wanted])
    return functional.cross_entropy(logits.float(), labels[wanted])


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, num_batches: int = 8) -> float:
    """Mean loss in nats a token on the held-out split: other seeds, and wordings never seen in training."""
    stream = batches.batches(tokenizer, TOKENS_PER_STEP // ROW_TOKENS, ROW_TOKENS, HELDOUT_SEED, "heldout")
    return sum(loss_of(model, *next(stream)).item() for _ in range(num_batches)) / num_batches


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [
        p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=PEAK_LR, weight_decay=WEIGHT_DECAY, ns_steps=4, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def _learning_rate(step: int, done: float) -> float:
    """Warm up over steps, then follow a cosine down to 2 % of the peak; `done`, 0 to 1, is the share done."""
    return (
        PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
    )


def train(folder: Path, tokenizer: PreTrainedTokenizerFast, *, steps: int, minutes: float, seed: int) -> Progress:
    """Train for `steps` steps or `minutes` of wall time, whichever ends first, resuming what `folder` holds.

    Writes checkpoint.pt into `folder` every 100 steps, and log.jsonl with one line each.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(architecture(tokenizer))
    model.set_attn_implementation("eager")  # on a CPU, its backward pass is the cheaper one for short rows
    mean = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = _optimizers(model)
    progress = Progress()
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        mean = saved["mean"]
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        progress = Progress(**saved["progress"])
    began_at = time.monotonic() - progress.elapsed_s
    stream, row_tokens = None, 0
    running: list[float] = []
    while True:
        progress.elapsed_s = time.monotonic() - began_at
        done = max(progress.step / steps, progress.elapsed_s / 60 / minutes)
        if progress.step % 100 == 0 or done >= 1:
            live = {name: p.detach().clone() for name, p in model.named_parameters()}
            load_weights(model, mean)
            progress.heldout_loss = heldout_loss(model, tokenizer)
            load_weights(model, live)
            progress.train_loss = sum(running) / max(1, len(running))
            running = []
            state = {
                "model": model.state_dict(),
                "mean": mean,
                "optimizers": [o.state_dict() for o in optimizers],
            }
            torch.save({**state, "progress": asdict(progress)}, folder / "checkpoint.new")
            (folder / "checkpoint.new").replace(checkpoint)
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(asdict(progress)) + "\n")
            print(json.dumps(asdict(progress)), flush=True)
        if done >= 1:
            return progress
        wanted_tokens = LONG_ROW_TOKENS if done >= LONG_FROM else ROW_TOKENS
        if stream is None or wanted_tokens != row_tokens:
            row_tokens = wanted_tokens
            first_chunk = seed * 1_000_000 + progress.step  # a resumed training goes on with other documents
            stream = batches.batches(tokenizer, TOKENS_PER_STEP // row_tokens, row_tokens, first_chunk)
        loss = loss_of(model, *next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(progress.step, done)
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            keep = min(MEAN_DECAY, progress.step / (progress.step + 10))
            for name, p in model.named_parameters():
                mean[name].lerp_(p, 1 - keep)
        running.append(loss.item())
        progress.step += 1
        progress.num_tokens += TOKENS_PER_STEP


@torch.no_grad()
def load_weights(model: LlamaForCausalLM, weights: dict[str, torch.Tensor]) -> None:
    """Copy `weights`, by parameter name, into `model`."""
    for name, p in model.named_parameters():
        p.copy_(weights[name])
