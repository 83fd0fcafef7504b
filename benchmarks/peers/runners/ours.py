"""paged-backend itself: `LLM.generate` with the given engine arguments."""

from __future__ import annotations

from benchmarks.peers.contract import Job, Outcome, Stopwatch, main
from benchmarks.workloads import BenchRequest
from paged_backend import LLM, SamplingParams, __version__


def run(job: Job) -> Outcome:
    """Settings are engine arguments; the batch is as wide as the workload unless they say otherwise."""
    arguments = {
        "max_model_len": job.max_model_len,
        "num_threads": job.num_threads,
        "skip_tokenizer_init": True,
        **job.settings,
    }
    llm = LLM(model=job.model, **arguments)
    generate(llm, job.warm_up())
    watch = Stopwatch()
    output_token_ids = generate(llm, job.requests)
    seconds, cpu_s = watch.stop()
    return Outcome(seconds, output_token_ids, cpu_s, {"paged-backend": __version__})


def generate(llm: LLM, requests: list[BenchRequest]) -> list[list[int]]:
    """The output tokens of each request."""
    outputs = llm.generate(
        [request.prompt_token_ids for request in requests],
        [
            SamplingParams(temperature=0.0, max_tokens=request.num_output_tokens, ignore_eos=True, detokenize=False)
            for request in requests
        ],
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    main(run)
