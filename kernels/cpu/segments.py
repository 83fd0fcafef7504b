"""The parts of a recorded step: between two collectives lies one C++ program."""

from __future__ import annotations

from dataclasses import dataclass, field

from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.interface import Collective


@dataclass(frozen=True, slots=True)
class Buffer:
    """Rows that do not exist yet: what a recorded operation will give.

    Attributes:
        segment: whose program it belongs to.
        number: of the program's buffer.
        width: numbers in a row.
        is_selected: whether there is a row for each row of the logits, and not for each token.
    """

    segment: Segment
    number: int
    width: int
    is_selected: bool


@dataclass(slots=True, eq=False)
class Segment:
    """Operations up to a collective, or to the step's end; compared by identity.

    Attributes:
        owner: who records it.
        is_selected: whether its inputs are rows of the logits. To its program all of its rows are tokens then, and no
            operation in it may look at the step's inputs.
        sources: for each input of the program, what it is: a collective's result, or a buffer of an earlier segment.
        results: what others need of it, in the order of the program's outputs.
        operation, operand, outcome: the collective at its end; the last segment has none.
        done_with: buffers that nobody needs after it.
    """

    owner: object
    program: _cpu.Program
    is_selected: bool = False
    sources: list[Buffer] = field(default_factory=list)
    results: list[Buffer] = field(default_factory=list)
    operation: Collective | None = None
    operand: Buffer | None = None
    outcome: Buffer | None = None
    done_with: list[Buffer] = field(default_factory=list)
    _given: dict[Buffer, Buffer] = field(default_factory=dict)

    def given(self, source: Buffer) -> Buffer:
        """An earlier segment's buffer in this one's program; the same one each time."""
        if source not in self._given:
            number = self.program.input(source.width)
            self._given[source] = Buffer(self, number, source.width, source.is_selected)
            self.sources.append(source)
        return self._given[source]

    def need(self, buffer: Buffer) -> None:
        """Has the program give one of its buffers; what came into it is there already."""
        if buffer not in self.results and buffer is not self._entrance:
            self.results.append(buffer)

    def enter(self, width: int) -> Buffer:
        """The result of the collective before, as the first input."""
        entrance = Buffer(self, self.program.input(width), width, self.is_selected)
        self.sources.append(entrance)
        self._given[entrance] = entrance
        return entrance

    @property
    def _entrance(self) -> Buffer | None:
        return self.sources[0] if self.sources and self.sources[0].segment is self else None


def mark_last_uses(segments: list[Segment], result: Buffer) -> None:
    """Fills `done_with`; the step's result is needed to the end."""
    last: dict[Buffer, Segment] = {}
    for segment in segments:
        used = [*segment.sources, *segment.results]
        if segment.operand is not None:
            used.append(segment.operand)
        last.update(dict.fromkeys(used, segment))
    last.pop(result, None)
    for buffer, segment in last.items():
        segment.done_with.append(buffer)
