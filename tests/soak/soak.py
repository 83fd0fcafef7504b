"""A soak: the same requests alone and in a surrounding, compared to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from paged_backend.outputs import RequestOutput
from tests.soak.crowd import Crowd
from tests.soak.differences import difference
from tests.soak.provoked import Provoked
from tests.soak.requests import SoakRequest, random_request
from tests.soak.subjects import MAX_MODEL_LEN, Subject
from tests.soak.surroundings import Surrounding


@dataclass(frozen=True)
class Expected:
    """Requests, and what each of them gives alone.

    Attributes:
        seed: from which they were made.
        others: more requests, to be in their way.
    """

    subject: Subject
    seed: int
    requests: Sequence[SoakRequest]
    outputs: Sequence[RequestOutput]
    others: Sequence[SoakRequest]


def run_alone(subject: Subject, seed: int, count: int) -> Expected:
    """Makes requests, and runs each in an engine that has seen nothing: its prompt in one step, on one thread."""
    numbers = range(count + count // 3)
    requests = [random_request(seed, number, subject.tokenizer, subject.vocab_size) for number in numbers]
    watched, others = requests[:count], requests[count:]
    outputs = []
    for request in watched:
        core = subject.start(max_num_seqs=4, max_num_batched_tokens=MAX_MODEL_LEN)
        outputs += Crowd(core, subject.tokenizer, Random(seed), Provoked()).run([request])
        core.close()
    return Expected(subject, seed, watched, outputs, others)


def run_crowded(expected: Expected, surrounding: Surrounding, folder: Path) -> tuple[Provoked, list[str]]:
    """All requests in one surrounding: into an empty cache, into the same engine again, and, where it has a disk, into
    another engine that finds it.

    Args:
        folder: for the disk.

    Returns:
        What happened, and every difference in words.
    """
    provoked, found = Provoked(), []
    passes = [("cold", "warm"), ("restarted",)] if surrounding.tier == "disk" else [("cold", "warm")]
    for names in passes:
        core = surrounding.start(expected.subject, expected.seed, folder)
        rng = Random(f"{expected.seed}: {surrounding} {names}")
        crowd = Crowd(core, expected.subject.tokenizer, rng, provoked)
        for name in names:
            outputs = crowd.run(expected.requests, expected.others, host_last=surrounding.overlaps)
            for request, alone, here in zip(expected.requests, expected.outputs, outputs, strict=True):
                text = difference(request, alone, here)
                if text is not None:
                    found.append(f"{surrounding}, {name}, {text}")
            provoked.take_outputs(outputs)
        provoked.take_stats(core)
        core.close()
    return provoked, found
