"""The one sample of a conversation's answer, read for the routes that tell it as events of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paged_backend.handlers.openai.chat_job import ChatJob, prepare_chat
from paged_backend.handlers.openai.engine_port import StreamPort
from paged_backend.handlers.openai.generation import ServingContext
from paged_backend.handlers.openai.parsing.events import Event, Message
from paged_backend.handlers.openai.protocol.chat import ChatRequest
from paged_backend.handlers.openai.protocol.conversation import renamed
from paged_backend.handlers.openai.streaming import UsageTally
from paged_backend.outputs import CompletionDelta, CompletionOutput, RequestDelta, RequestOutput


async def submit_conversation(
    context: ServingContext, chat: ChatRequest, names: Mapping[str, str], response_id: str
) -> tuple[ChatJob, Sequence[StreamPort]]:
    """Starts a chat that was made of another form's body.

    Args:
        names: that form's names of the chat's fields, for refusals.

    Raises:
        PagedBackendError: whatever refuses it; nothing is left running.
    """
    with renamed(names):
        job = await prepare_chat(context, chat)
        return job, job.submit(context, response_id)


class SpokenAnswer:
    """Reads an answer delta by delta, and counts its tokens.

    Attributes:
        tally: the tokens so far.
        finish_reason: the protocol's word for why it ended; None while it goes on.
        stop_reason: the stop string or token that ended it.
    """

    def __init__(self, job: ChatJob) -> None:
        assert job.params.n == 1, "these routes have one sample"
        self.tally = UsageTally([len(job.prompt)], receipts=job.request.return_receipt)
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self._parser = job.reader.parser()
        self._count = job.reader.reasoning_count()

    def read(self, delta: RequestDelta) -> list[Event]:
        """What a step's gain has made certain."""
        self.tally.add(0, delta)
        return [event for output in delta.outputs for event in self._read(output)]

    def read_whole(self, output: RequestOutput) -> Message:
        """A whole answer's message."""
        self.tally.add_output(0, output)
        return Message.of(self._read(output.outputs[0]))

    @property
    def has_calls(self) -> bool:
        """Whether it has called a tool so far, with all of its arguments."""
        return self._parser.num_calls > 0

    def _read(self, gain: CompletionDelta | CompletionOutput) -> Sequence[Event]:
        events = self._parser.push(gain.text)
        if self._count is not None:
            self.tally.num_reasoning_tokens = (self.tally.num_reasoning_tokens or 0) + self._count.add(gain.token_ids)
        if gain.finish_reason is not None:
            events = [*events, *self._parser.finish()]
            self.finish_reason = self._parser.finish_reason(gain.finish_reason)
            self.stop_reason = gain.stop_reason
        return events
