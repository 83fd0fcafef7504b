"""llama.cpp's own converter, told the pre-tokenizer.

    python -m benchmarks.peers.hf_to_gguf LLAMA_CPP_SOURCE MODEL_FOLDER --outfile FILE --outtype bf16

The converter knows a BPE model's pre-tokenizer by a hash of what its tokenizer does, and refuses a home-made one. The
benchmarks send token ids, so that any pre-tokenizer will do: GPT-2's is written.
"""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Runs the converter with the arguments after its source folder."""
    sys.path.insert(0, sys.argv.pop(1))
    base = importlib.import_module("conversion.base")
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    importlib.import_module("convert_hf_to_gguf").main()


if __name__ == "__main__":
    main()
