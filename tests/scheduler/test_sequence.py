"""What ends a sequence."""

from __future__ import annotations

from typing import Any

import pytest

from paged_backend.kv.block_table import BlockTable
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.sequence import Sequence, sample_seed

EOS = 2


def new_sequence(max_tokens: int = 10, **params: Any) -> Sequence:
    token_ids = [7, 8]
    return Sequence(
        seq_id=0,
        request_id="r",
        index=0,
        prompt_token_ids=(7, 8),
        params=SamplingParams(**params),
        seeds=(1,),
        tenant="",
        priority=0,
        arrival=0,
        order=(0, 0),
        max_tokens=max_tokens,
        eos_token_ids=(EOS, 3),
        token_ids=token_ids,
        table=BlockTable(token_ids, b""),
    )


def test_tokens_are_known_in_order() -> None:
    sequence = new_sequence()
    assert not sequence.append(5) and not sequence.append(6)
    assert sequence.output_token_ids == [5, 6] and sequence.token_ids == [7, 8, 5, 6]
    assert sequence.finish_reason is None and sequence.task.seeds == (1,) and sequence.num_samples == 1


@pytest.mark.parametrize("token", [EOS, 3])
def test_eos_ends_without_a_stop_reason(token: int) -> None:
    sequence = new_sequence(stop_token_ids=[token])
    assert sequence.append(token)
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", None)


def test_a_stop_token_is_the_stop_reason() -> None:
    sequence = new_sequence(stop_token_ids=[9])
    assert not sequence.append(5)
    assert sequence.append(9)
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", 9)


def test_eos_can_be_ignored_but_stop_tokens_are_not() -> None:
    sequence = new_sequence(ignore_eos=True, stop_token_ids=[3])
    assert not sequence.append(EOS)
    assert sequence.append(3)
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", 3)


def test_max_tokens_ends_with_length_but_a_stop_wins() -> None:
    sequence = new_sequence(max_tokens=2)
    assert not sequence.append(5) and sequence.append(5)
    assert (sequence.finish_reason, sequence.stop_reason) == ("length", None)
    sequence = new_sequence(max_tokens=1)
    assert sequence.append(EOS) and sequence.finish_reason == "stop"


def test_stops_are_suppressed_before_min_tokens() -> None:
    sequence = new_sequence(min_tokens=2, stop_token_ids=[9, EOS])
    assert sequence.task.suppressed_token_ids == (EOS, 3, 9)
    assert not sequence.append(5)
    assert sequence.task.suppressed_token_ids == (EOS, 3, 9)
    assert not sequence.append(9), "a stop token before min_tokens ends nothing"
    assert not any(sequence.task.suppressed_token_ids)
    assert sequence.append(9)


def test_the_last_token_needs_no_slot() -> None:
    assert new_sequence(max_tokens=3).max_cached_tokens == 4


def test_seeds_wrap_into_64_bits() -> None:
    assert sample_seed(5, 2) == 7
    assert sample_seed(2**63 - 1, 1) == -(2**63)
    assert sample_seed(-1, 1) == 0
