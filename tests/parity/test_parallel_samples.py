"""n samples share their prompt's blocks, part by copy-on-write, and equal single requests with the matching seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import NOT_DRAWN
from tests.engine_driver import Collector, new_core, new_request, run_core
from tests.tiny_models import make_tiny_model

BLOCK_SIZE = 8
PROMPT = [5 + i * 7 % 90 for i in range(BLOCK_SIZE * 5 + 3)]  # five full blocks and a part of a sixth


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"))


def sampling(seed: int, n: int = 1, max_tokens: int = 30) -> SamplingParams:
    return SamplingParams(n=n, seed=seed, temperature=1.0, top_p=0.95, max_tokens=max_tokens, ignore_eos=True)


def test_four_samples_equal_four_single_requests(model_folder: Path) -> None:
    core = new_core(model_folder, block_size=BLOCK_SIZE, max_model_len=256)
    singles = [run_core(core, [(PROMPT, sampling(40 + i))])[0].outputs[0].token_ids for i in range(4)]
    fresh = new_core(model_folder, block_size=BLOCK_SIZE, max_model_len=256)
    together = run_core(fresh, [(PROMPT, sampling(40, n=4))])[0]
    assert [sample.token_ids for sample in together.outputs] == singles
    assert len({tuple(row) for row in singles}) == 4


def test_the_prompt_is_held_once(model_folder: Path) -> None:
    core = new_core(model_folder, block_size=BLOCK_SIZE, max_model_len=256)
    request = new_request("r", PROMPT, sampling(1, n=4))
    collector = Collector()
    collector.expect(request)
    core.add(request)
    collector.take(core.step())
    assert core.stats().num_used_blocks == 6, "four samples hold the prompt's six blocks, and nothing else"
    collector.take(core.step())
    # The first write parts them: three copy the shared last block, the fourth keeps it.
    assert core.stats().num_used_blocks == 6 + 3
    while core.has_work():
        collector.take(core.step())
    assert core.stats().num_used_blocks == 0
    assert [len(sample.token_ids) for sample in collector.outputs["r"].outputs] == [30] * 4
    assert core.stats().prompt_tokens == len(PROMPT)


def test_a_seeded_request_repeats_whatever_surrounds_it(model_folder: Path) -> None:
    core = new_core(model_folder, block_size=BLOCK_SIZE, max_model_len=256)
    alone = run_core(core, [(PROMPT, sampling(7))])[0].outputs[0].token_ids
    crowd = new_core(
        model_folder,
        block_size=BLOCK_SIZE,
        max_model_len=128,
        max_num_seqs=8,
        max_num_batched_tokens=24,
        num_gpu_blocks_override=18,
    )
    others = [(PROMPT[:length], sampling(100 + length, n=1 + length % 3)) for length in (3, 9, 20, 31, 43)]
    outputs = run_core(crowd, [*others, (PROMPT, sampling(7)), *others], steps_between=4)
    assert outputs[len(others)].outputs[0].token_ids == alone
    assert crowd.stats().num_preemptions > 0


def test_requests_without_a_seed_differ_and_repeat_in_a_new_engine(model_folder: Path) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=20, ignore_eos=True)
    runs = [
        [output.outputs[0].token_ids for output in run_core(new_core(model_folder, seed=seed), [(PROMPT, params)] * 2)]
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]
    assert runs[0] != runs[2]


def test_a_failed_draw_ends_its_request_alone(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that are not numbers: the executor reports no sample for that sequence."""
    core = new_core(model_folder, block_size=BLOCK_SIZE, max_model_len=256)
    run = core._executor.run
    marked = PROMPT[:9]

    def run_without_marked(plan):  # type: ignore[no-untyped-def]
        result = run(plan)
        tasks = [sequence.sampling for sequence in plan.sequences if sequence.sampling is not None]
        tasks = [task for task in tasks for _ in task.seeds]
        for place, task in enumerate(tasks):
            if list(task.prompt_token_ids) == marked and len(task.output_token_ids) == 3:
                result.token_ids[place] = NOT_DRAWN
        return result

    monkeypatch.setattr(core._executor, "run", run_without_marked)
    collector = Collector()
    for request in (new_request("bad", marked, sampling(1, n=2)), new_request("good", PROMPT, sampling(2))):
        collector.expect(request)
        core.add(request)
    while core.has_work():
        collector.take(core.step())
    assert list(collector.errors) == ["bad"]
    assert len(collector.outputs["good"].outputs[0].token_ids) == 30
    assert core.stats().num_used_blocks == 0
