"""The engines' runs on one model, beside the limits and beside each other."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.card import Rates
from benchmarks.gpu.limits import ModelLimits
from benchmarks.gpu.plan import CONTEXT, MAX_MODEL_LEN, OURS, STATIC, VLLM, Amounts, Candidate, candidates
from benchmarks.gpu.session import Answered, Asked
from benchmarks.report import say
from benchmarks.workloads import BenchRequest

RunSession = Callable[[Asked, float], Answered]
LEAST_SESSION_S = 15.0
"""With less, nothing is started."""


@dataclass
class ModelRuns:
    """One model's.

    Attributes:
        name: of the model.
        folder: a Hugging Face one.
        answers: by the candidate's label.
    """

    name: str
    folder: Path
    rates: Rates
    amounts: Amounts
    answers: dict[str, Answered] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = json.loads((self.folder / "config.json").read_text())
        self.vocab_size: int = config["vocab_size"]
        self.max_model_len: int = min(MAX_MODEL_LEN, config["max_position_embeddings"])
        self.limits = ModelLimits.of(config, self.rates)

    def run(self, candidate: Candidate, budget: Budget, run_session: RunSession) -> None:
        """One candidate's session, if there is time for it and the engine is there."""
        what = f"{self.name}, {candidate.label}"
        if candidate.engine == VLLM and importlib.util.find_spec("vllm") is None:
            budget.skipped.append(f"{what}: the package vllm is not installed")
            return
        if not budget.allows(what, LEAST_SESSION_S):
            return
        say(what)
        asked = self._asked(candidate)
        self.answers[candidate.label] = answered = run_session(asked, min(candidate.timeout_s, budget.left_s))
        if answered.error is not None:
            say(f"{what}: {answered.error}")

    def report(self) -> dict[str, Any]:
        """Rates, fractions of the limits, and ours over the others'."""
        limits = self._limits()
        results = {label: self._result(label, answered, limits) for label, answered in self.answers.items()}
        ours = results.get(OURS, {}).get("tokens_per_s", {})
        others = {label: result["tokens_per_s"] for label, result in results.items() if label != OURS}
        return {
            "limits_tokens_per_s": {part: round(rate, 1) for part, rate in limits.items()},
            "engines": results,
            "ours_to_theirs": {
                label: {part: round(ours[part] / rate, 3) for part, rate in theirs.items() if rate and ours.get(part)}
                for label, theirs in others.items()
            },
            "first_tokens_as_ours": self._agreements(),
        }

    def _asked(self, candidate: Candidate) -> Asked:
        return Asked(
            engine=candidate.engine,
            model=str(self.folder),
            settings=candidate.settings,
            workloads=candidate.workloads,
            limits=candidate.limits,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
        )

    def _requests(self, label: str) -> list[BenchRequest]:
        chosen = next(one for one in candidates(self.amounts, "cuda") if one.label == label)
        return self._asked(chosen).requests(self.amounts.requests)

    def _limits(self) -> dict[str, float]:
        lengths = [(len(request.prompt_token_ids), request.num_output_tokens) for request in self._requests(OURS)]
        return {
            "one stream": self.limits.decode_rate(self.amounts.one.num_streams, CONTEXT),
            "streams": self.limits.decode_rate(self.amounts.many.num_streams, CONTEXT),
            "requests": self.limits.workload_rate(lengths),
        }

    def _result(self, label: str, answered: Answered, limits: dict[str, float]) -> dict[str, Any]:
        seconds = answered.seconds
        rates = {
            "one stream": self.amounts.one.rate(seconds),
            "streams": self.amounts.many.rate(seconds),
            "requests": None,
        }
        requests = self._requests(label)
        if took := seconds.get(self.amounts.requests):
            rates["requests"] = sum(request.num_output_tokens for request in requests) / took
        return {
            "tokens_per_s": {part: rate and round(rate, 1) for part, rate in rates.items()},
            "of_limit": {part: rate and round(rate / limits[part], 3) for part, rate in rates.items()},
            "num_requests": len(requests),
            "start_s": answered.start_s,
            "seconds": {workload: round(value, 4) for workload, value in seconds.items()},
            "versions": answered.versions,
            "error": answered.error and answered.error.splitlines()[-1][:300],  # the rest names folders
        }

    def _agreements(self) -> dict[str, str]:
        """How many of one stream's greedy tokens are ours before the first that is not: bfloat16 leaves ties."""
        workload = self.amounts.one.workloads[1]
        ours = self.answers[OURS].first_tokens.get(workload) if OURS in self.answers else None
        found = {}
        for label, answered in self.answers.items():
            theirs = answered.first_tokens.get(workload)
            if label == OURS or ours is None or theirs is None:
                continue
            same = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
            found[label] = f"{same} of {len(ours)}"
        return found


GOALS: dict[str, tuple[str, float]] = {
    "qwen3-0.6b": ("requests", 0.6),
    "llama-3-8b": ("one stream", 0.7),
    "llama-2-7b": ("one stream", 0.7),
}
"""Model to the part, and the fraction of its limit, that ours should reach."""
RATIO_GOALS = {STATIC: 24.0, VLLM: 1.0}
"""Of ours over theirs, on the ShareGPT-like requests."""
