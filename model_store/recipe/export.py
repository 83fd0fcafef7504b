"""Write the model folder from a checkpoint: weights in bfloat16, config, tokenizer and model card."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from model_store.recipe import card, train
from model_store.recipe.tokenizer import EOS, PAD, TURN_END


def export(work: Path, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write `folder` from the running mean of the weights in `work`/checkpoint.pt."""
    saved = torch.load(work / "checkpoint.pt", weights_only=True)
    model = LlamaForCausalLM(train.architecture(tokenizer))
    train.load_weights(model, saved["mean"])
    model = model.to(torch.bfloat16).eval()
    end_of_turn, end, pad = tokenizer.convert_tokens_to_ids([TURN_END, EOS, PAD])
    model.generation_config = GenerationConfig(eos_token_id=[end_of_turn, end], pad_token_id=pad, bos_token_id=end)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card.write(model.float(), tokenizer, train.Progress(**saved["progress"])))
