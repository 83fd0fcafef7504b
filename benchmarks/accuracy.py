"""What narrow weights and caches cost in accuracy, against float32. Ends in one JSON object on stdout.

    python -m benchmarks.accuracy [--model paged-tiny] [--rows 8] [--row-tokens 512] [--quick] [--output FILE]

Every variant computes the logits of the same text through the engine's own decoder and paged cache. The text of the
bundled model is the held-out split of its recipe, and what counts are the tokens that its training counts (the
assistant's turns and plain text); another model gets random tokens, and all count. Of the logits x and their float32 y:

- rms_error: root mean square of x - y over that of y, each row less its mean (which softmax does not see);
- max_error: largest |x - y|, in the logits' own unit;
- top1_agreement: share of rows with the same largest logit;
- kl_nats: mean Kullback-Leibler divergence of softmax(x) from softmax(y);
- loss_nats: mean loss of the text's next token.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.report import finish, make_parser, say
from paged_backend.config import BUNDLED_MODEL, ModelConfig
from paged_backend.executor.kv_storage import KVStorage
from paged_backend.kernels.interface import Kernels, StepInputs
from paged_backend.kernels.registry import select_kernels
from paged_backend.models.folder import resolve_folder
from paged_backend.models.loader import LoadedModel, load_model

BLOCK_SIZE = 16
# Name: what the weights are quantized to, what the cache is held in.
VARIANTS: dict[str, tuple[str | None, str]] = {
    "weights int8": ("int8", "float32"),
    "weights int4": ("int4", "float32"),
    "cache bfloat16": (None, "bfloat16"),
    "cache float16": (None, "float16"),
    "cache int8": (None, "int8"),
    "weights int8, cache int8": ("int8", "int8"),
    "weights int4, cache int8": ("int4", "int8"),
}


class Row(NamedTuple):
    """One prompt.

    Attributes:
        token_ids: what is computed.
        next_ids: int64 [T], what comes after each.
        counts: bool [T], whether that is looked at.
    """

    token_ids: list[int]
    next_ids: Tensor
    counts: Tensor


def text_rows(model: str, vocab_size: int, num_rows: int, num_tokens: int) -> list[Row]:
    """Held-out text of the bundled model, random tokens for another one."""
    if model != BUNDLED_MODEL:
        torch.manual_seed(0)
        random = torch.randint(vocab_size, (num_rows, num_tokens + 1))
        return [Row(ids[:-1].tolist(), ids[1:], torch.ones(num_tokens, dtype=torch.bool)) for ids in random]
    from transformers import PreTrainedTokenizerFast

    from model_store.recipe import batches, train

    tokenizer = PreTrainedTokenizerFast.from_pretrained(resolve_folder(model))
    stream = batches.rows(tokenizer, num_tokens, train.HELDOUT_SEED, "heldout")
    return [
        Row(tokens[:-1], torch.tensor(tokens[1:]), torch.tensor(counts[1:]))
        for tokens, counts in itertools.islice(stream, num_rows)
    ]


class Variant:
    """A loaded model and a cache for one sequence."""

    def __init__(self, kernels: Kernels, config: ModelConfig, cache_dtype: str, num_tokens: int) -> None:
        self.model: LoadedModel = load_model(config, kernels)
        self._num_blocks = -(-num_tokens // BLOCK_SIZE)
        storage = KVStorage(self.model.architecture, self._num_blocks, BLOCK_SIZE, cache_dtype)
        decoder = self.model.decoder
        self._run = kernels.compile(lambda kernels, inputs: decoder(kernels, inputs, storage.layers))

    def logits(self, tokens: list[int]) -> Tensor:
        """float32 [tokens, vocab_size], as one prompt."""
        positions = torch.arange(len(tokens))
        inputs = StepInputs(
            token_ids=torch.tensor(tokens),
            positions=positions,
            slot_mapping=positions.clone(),
            block_tables=torch.arange(self._num_blocks, dtype=torch.int32).unsqueeze(0),
            query_start=torch.tensor([0, len(tokens)], dtype=torch.int32),
            context_lens=torch.tensor([len(tokens)], dtype=torch.int32),
            logits_rows=None,
        )
        return self._run(inputs).clone()


def compare(variant: Variant, exact: list[Tensor], rows: list[Row]) -> dict[str, float]:
    """The figures that the module's text names."""
    squares = totals = divergence = loss = largest = 0.0
    agreeing = count = 0
    for row, all_expected in zip(rows, exact, strict=True):
        logits, expected = variant.logits(row.token_ids)[row.counts], all_expected[row.counts]
        difference = logits - expected
        largest = max(largest, difference.abs().max().item())
        squares += (difference - difference.mean(-1, keepdim=True)).double().square().sum().item()
        totals += (expected - expected.mean(-1, keepdim=True)).double().square().sum().item()
        agreeing += int((logits.argmax(-1) == expected.argmax(-1)).sum())
        logprobs, truth = logits.log_softmax(-1), expected.log_softmax(-1)
        divergence += functional.kl_div(logprobs, truth, reduction="sum", log_target=True).item()
        loss += functional.nll_loss(logprobs, row.next_ids[row.counts], reduction="sum").item()
        count += len(expected)
    return {
        "rms_error": round((squares / totals) ** 0.5, 5),
        "max_error": round(largest, 4),
        "top1_agreement": round(agreeing / count, 5),
        "kl_nats": round(divergence / count, 6),
        "loss_nats": round(loss / count, 5),
    }


def main() -> None:
    """Measures every variant."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=BUNDLED_MODEL, help="a folder, a hub id, or the bundled model")
    parser.add_argument("--rows", type=int, default=8, help="rows of text")
    parser.add_argument("--row-tokens", type=int, default=512, help="tokens in a row")
    parser.add_argument("--kernel-backend", default="auto", choices=("auto", "reference", "cpu"))
    options = parser.parse_args()
    if options.quick:
        options.rows, options.row_tokens = 2, 128
    kernels = select_kernels(options.kernel_backend)
    with torch.inference_mode():
        plain = Variant(kernels, ModelConfig(model=options.model, dtype="float32"), "float32", options.row_tokens)
        rows = text_rows(options.model, plain.model.architecture.vocab_size, options.rows, options.row_tokens)
        exact = [plain.logits(row.token_ids) for row in rows]
        results = {"float32": compare(plain, exact, rows)}
        for name, (quantization, cache_dtype) in VARIANTS.items():
            config = ModelConfig(model=options.model, quantization=quantization)
            results[name] = compare(Variant(kernels, config, cache_dtype, options.row_tokens), exact, rows)
            say(f"{name}: {results[name]}")
    report = {
        "benchmark": "accuracy",
        "model": options.model,
        "tokens": sum(int(row.counts.sum()) for row in rows),
        "kernels": kernels.report["linear"].implementation,
        "results": results,
    }
    finish(report, options.output)


if __name__ == "__main__":
    main()
