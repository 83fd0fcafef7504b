"""The engines that the GPU's benchmark starts: each gives a function that answers requests greedily."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
import transformers

from benchmarks.gpu.session import Asked, Started
from benchmarks.peers.runners import continuous, static
from benchmarks.workloads import BenchRequest


def start_ours(asked: Asked) -> Started:
    """paged-backend; settings are engine arguments."""
    from benchmarks.peers.runners import ours
    from paged_backend import LLM, __version__

    llm = LLM(model=asked.model, max_model_len=asked.max_model_len, skip_tokenizer_init=True, **asked.settings)
    return partial(ours.generate, llm), {"paged-backend": __version__}


def start_static(asked: Asked) -> Started:
    """transformers' `generate`, in static batches of `batch_size`."""
    model = _transformers_model(asked)
    model.generation_config.eos_token_id = None  # nothing ends an answer early
    return partial(_generate_static, model, asked.settings["batch_size"]), _versions()


def start_continuous(asked: Asked) -> Started:
    """transformers' continuous batching; settings `config` are its configuration's."""
    model = _transformers_model(asked)
    model.generation_config.update(do_sample=False, eos_token_id=-1, pad_token_id=1, max_new_tokens=1)
    manager: Any = model.init_continuous_batching(
        generation_config=model.generation_config,
        continuous_batching_config=transformers.ContinuousBatchingConfig(
            allow_block_sharing=False, **asked.settings["config"]
        ),
    )
    manager.start()
    calls = itertools.count()
    return lambda requests: continuous.generate(manager, requests, f"call-{next(calls)}"), _versions()


def start_vllm(asked: Asked) -> Started:
    """vLLM; settings are engine arguments."""
    vllm: Any = importlib.import_module("vllm")
    llm = vllm.LLM(model=asked.model, max_model_len=asked.max_model_len, skip_tokenizer_init=True, **asked.settings)

    def generate(requests: list[BenchRequest]) -> list[list[int]]:
        outputs = llm.generate(
            [{"prompt_token_ids": request.prompt_token_ids} for request in requests],
            [
                vllm.SamplingParams(
                    temperature=0.0, max_tokens=request.num_output_tokens, ignore_eos=True, detokenize=False
                )
                for request in requests
            ],
            use_tqdm=False,
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate, {"vllm": vllm.__version__}


ENGINES: Final[dict[str, Callable[[Asked], Started]]] = {
    "paged-backend": start_ours,
    "transformers generate": start_static,
    "transformers continuous batching": start_continuous,
    "vLLM": start_vllm,
}


def _transformers_model(asked: Asked) -> Any:
    settings = asked.settings
    model = transformers.AutoModelForCausalLM.from_pretrained(asked.model, dtype=getattr(torch, settings["dtype"]))
    return model.to(settings["device"]).eval()


def _generate_static(model: Any, batch_size: int, requests: list[BenchRequest]) -> list[list[int]]:
    return static.generate(model, requests, batch_size)


def _versions() -> dict[str, str]:
    return {"transformers": transformers.__version__, "torch": torch.__version__}
