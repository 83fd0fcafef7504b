"""OpenVINO GenAI's ContinuousBatchingPipeline on the CPU.

Settings: `max_num_batched_tokens` and `max_num_seqs` of its scheduler, and `properties` of the device, such as
KV_CACHE_PRECISION, INFERENCE_PRECISION_HINT or DYNAMIC_QUANTIZATION_GROUP_SIZE; what is not given is OpenVINO's own
default. The cache is made large enough for the whole workload.
"""

from __future__ import annotations

import numpy as np
import openvino
import openvino_genai

from benchmarks.peers.contract import Job, Outcome, Stopwatch, main
from benchmarks.workloads import BenchRequest

CACHE_BLOCK_TOKENS = 32  # OpenVINO's own on CPU


def run(job: Job) -> Outcome:
    """Generates everything in one call."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = sum(
        -(-(len(request.prompt_token_ids) + request.num_output_tokens) // CACHE_BLOCK_TOKENS) + 1
        for request in job.requests
    )
    scheduler.dynamic_split_fuse = job.settings.get("dynamic_split_fuse", True)
    scheduler.max_num_batched_tokens = job.settings.get("max_num_batched_tokens", 256)
    scheduler.max_num_seqs = job.settings.get("max_num_seqs", 256)
    scheduler.enable_prefix_caching = False
    properties = {"INFERENCE_NUM_THREADS": job.num_threads, **job.settings.get("properties", {})}
    pipeline = openvino_genai.ContinuousBatchingPipeline(job.model, scheduler, "CPU", properties)
    _generate(pipeline, job.warm_up())
    watch = Stopwatch()
    output_token_ids = _generate(pipeline, job.requests)
    seconds, cpu_s = watch.stop()
    versions = {"openvino": openvino.__version__, "openvino-genai": openvino_genai.__version__}
    return Outcome(seconds, output_token_ids, cpu_s, versions, {"capabilities": _capabilities()})


def _capabilities() -> list[str]:
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return sorted(str(capability) for capability in capabilities)


def _generate(pipeline: openvino_genai.ContinuousBatchingPipeline, requests: list[BenchRequest]) -> list[list[int]]:
    prompts = [openvino.Tensor(np.array([request.prompt_token_ids], dtype=np.int64)) for request in requests]
    configs = [
        openvino_genai.GenerationConfig(
            max_new_tokens=request.num_output_tokens, ignore_eos=True, do_sample=False, apply_chat_template=False
        )
        for request in requests
    ]
    results = pipeline.generate(prompts, configs)
    return [[int(token_id) for token_id in result.m_generation_ids[0]] for result in results]


if __name__ == "__main__":
    main(run)
