"""Write the model folder from a checkpoint: weights in bfloat16, config, tokenizer and model card."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from model_store.recipe import card, train
from model_store.recipe.tokenizer import EOS, PAD, TURN_END

# Training rotates with the usual base of 10,000 over rows of up to 1,024 tokens. A larger base slows the rotation, so
# that positions up to 2,047 look like those that were learned: the loss beyond 1,536 falls from about 1.7 to about 0.6
# nats a token, and does not change below 256 (the model card has the table).
ROPE_THETA: Final = 35_000.0


def export(work: Path, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write `folder` from the running mean of the weights in `work`/checkpoint.pt."""
    saved = torch.load(work / "checkpoint.pt", weights_only=True)
    config = train.architecture(tokenizer)
    config.rope_parameters = {"rope_type": "default", "rope_theta": ROPE_THETA}
    model = LlamaForCausalLM(config)
    train.load_weights(model, saved["mean"])
    model = model.to(torch.bfloat16).eval()
    end_of_turn, end, pad = tokenizer.convert_tokens_to_ids([TURN_END, EOS, PAD])
    model.generation_config = GenerationConfig(eos_token_id=[end_of_turn, end], pad_token_id=pad, bos_token_id=end)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card.write(model.float(), tokenizer, train.Progress(**saved["progress"])))
