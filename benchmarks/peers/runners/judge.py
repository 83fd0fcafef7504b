"""transformers in float64 says how good given next tokens are: see `benchmarks.peers.compare`.

    python -m benchmarks.peers.runners.judge CASES GAPS

Both are JSON files: {"model": folder, "cases": [{"token_ids": [...], "choices": [a, b]}]}, and for every case how far
each choice's logit is below the best one's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers


@torch.inference_mode()
def main() -> None:
    """One forward pass for each case."""
    asked, answered = map(Path, sys.argv[1:])
    job = json.loads(asked.read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float64)
    gaps = []
    for case in job["cases"]:
        logits = model(torch.tensor([case["token_ids"]]), logits_to_keep=1).logits[0, -1]
        gaps.append([float(logits.max() - logits[choice]) for choice in case["choices"]])
    answered.write_text(json.dumps(gaps))


if __name__ == "__main__":
    main()
