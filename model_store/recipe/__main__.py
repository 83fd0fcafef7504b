"""Make the bundled model: `python -m model_store.recipe`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from model_store.recipe import tokenizer, train


def main() -> None:
    """Train for the given time or steps, then write the model folder."""
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(prog="python -m model_store.recipe", description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="wall time of the training, in minutes")
    parser.add_argument(
        "--steps",
        type=int,
        default=4500,
        help="steps of 2048 tokens; the first limit reached ends the training",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--work",
        type=Path,
        default=here / "work",
        help="folder of the checkpoint; a training is resumed from it",
    )
    parser.add_argument("--to", type=Path, default=here / "paged-tiny", help="folder of the model to write")
    parser.add_argument("--export-only", action="store_true", help="write the model from the checkpoint as it is")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    words = tokenizer.load_or_train(options.work)
    if not options.export_only:
        train.train(options.work, words, steps=options.steps, minutes=options.minutes, seed=options.seed)
    from model_store.recipe import export

    export.export(options.work, words, options.to)


if __name__ == "__main__":
    main()
