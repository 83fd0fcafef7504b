"""The events of a streamed response of /v1/responses, in OpenAI's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from paged_backend.handlers.openai.errors import stream_error_body
from paged_backend.handlers.openai.parsing.events import (
    CallArguments,
    CallBegin,
    CallBroken,
    CallEnd,
    Content,
    Event,
    Reasoning,
)
from paged_backend.handlers.openai.protocol.replies import TokenLogprob
from paged_backend.handlers.openai.protocol.responses import ItemStatus, OutputItem
from paged_backend.handlers.openai.responses_items import (
    ResponseFrame,
    item_id,
    item_status,
    output_call,
    output_message,
    output_reasoning,
    output_text,
)
from paged_backend.handlers.openai.spoken import SpokenAnswer
from paged_backend.handlers.openai.text_logprobs import TextLogprobs
from paged_backend.handlers.openai.wire import named_event
from paged_backend.outputs import RequestDelta


class _OpenText:
    """A message that is being said."""

    delta_kind, done_kind = "response.output_text.delta", "response.output_text.done"
    has_parts = True

    def __init__(self, item_id: str) -> None:
        self.id = item_id
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> Sequence[TokenLogprob]:
        """Takes more text, with its tokens'; returns them."""
        self.texts.append(text)
        self.logprobs += logprobs
        return logprobs

    def part(self, *, begun: bool) -> Any:
        return output_text("".join(self.texts), self.logprobs) if begun else output_text("", [])

    def done(self) -> dict[str, Any]:
        return {"text": "".join(self.texts), "logprobs": self.logprobs}

    def whole(self, status: ItemStatus, *, begun: bool) -> OutputItem:
        return output_message(self.id, status, [self.part(begun=True)] if begun else [])


class _OpenReasoning:
    """Reasoning that goes on."""

    delta_kind, done_kind = "response.reasoning_text.delta", "response.reasoning_text.done"
    has_parts = True

    def __init__(self, item_id: str) -> None:
        self.id = item_id
        self.texts: list[str] = []

    def part(self, *, begun: bool) -> Any:
        return {"type": "reasoning_text", "text": "".join(self.texts) if begun else ""}

    def done(self) -> dict[str, Any]:
        return {"text": "".join(self.texts)}

    def whole(self, status: ItemStatus, *, begun: bool) -> OutputItem:
        return output_reasoning(self.id, status, ["".join(self.texts)] if begun else [])


class _OpenCall:
    """A call whose arguments are coming."""

    delta_kind, done_kind = "response.function_call_arguments.delta", "response.function_call_arguments.done"
    has_parts = False

    def __init__(self, item_id: str, call_id: str, name: str) -> None:
        self.id = item_id
        self.call_id = call_id
        self.name = name
        self.texts: list[str] = []

    def part(self, *, begun: bool) -> Any:
        raise AssertionError("a call has no parts")

    def done(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": "".join(self.texts)}

    def whole(self, status: ItemStatus, *, begun: bool) -> OutputItem:
        return output_call(self.id, status, self.call_id, self.name, "".join(self.texts))


_OpenItem = _OpenText | _OpenReasoning | _OpenCall
_Item = TypeVar("_Item", _OpenText, _OpenReasoning, _OpenCall)


class ResponseEvents:
    """Writes one response's events; keeps the items that have been told.

    Args:
        logprobs: reads those of the text.
    """

    def __init__(self, frame: ResponseFrame, answer: SpokenAnswer, logprobs: TextLogprobs) -> None:
        self._frame = frame
        self._answer = answer
        self._logprobs = logprobs
        self._unsaid: list[TokenLogprob] = []  # of tokens whose text was not told yet
        self._output: list[OutputItem] = []
        self._item: _OpenItem | None = None
        self._num_events = 0
        self._written: list[bytes] = []

    def frames(self, prompt_index: int, delta: RequestDelta) -> bytes:
        """What a step has brought, as events; the first begin with the response itself."""
        events = self._answer.read(delta)
        self._begin()
        for output in delta.outputs:
            self._unsaid += self._logprobs.of(output)
        for event in events:
            self._tell(event)
        return self._flush()

    def end(self) -> bytes:
        """The last item's end, and the whole response."""
        if self._item is None and not self._output:
            self._open(_OpenText(self._new_id("msg")))
        complete = self._answer.finish_reason not in ("length", "abort")
        # A call that is still open has not come to its end, whatever ended the output.
        self._close(item_status(complete and not isinstance(self._item, _OpenCall)))
        response = self._frame.ended(self._answer.finish_reason, self._output, self._answer.tally)
        self._write("response.completed" if complete else "response.incomplete", response=response)
        return self._flush()

    def failure(self, error: Exception) -> bytes:
        """The response that has failed, with what was there."""
        self._begin()
        self._close("incomplete")
        message = stream_error_body(error)["error"]["message"]
        self._write("response.failed", response=self._frame.failed(message, self._output))
        return self._flush()

    def _begin(self) -> None:
        if not self._num_events:
            for kind in ("response.created", "response.in_progress"):
                self._write(kind, response=self._frame.in_progress())

    def _tell(self, event: Event) -> None:
        match event:
            case Content(text):
                item = self._item
                if not isinstance(item, _OpenText):
                    item = self._open(_OpenText(self._new_id("msg")))
                self._write(item.delta_kind, **self._place(item), delta=text, logprobs=item.add(text, self._unsaid))
                self._unsaid = []
            case Reasoning(text):
                thought = self._item
                if not isinstance(thought, _OpenReasoning):
                    thought = self._open(_OpenReasoning(self._new_id("rs")))
                thought.texts.append(text)
                self._write(thought.delta_kind, **self._place(thought), delta=text)
            case CallBegin(_, call_id, name):
                self._open(_OpenCall(self._new_id("fc"), call_id, name))
            case CallArguments(_, text):
                call = self._item
                assert isinstance(call, _OpenCall), "arguments follow their call"
                call.texts.append(text)
                self._write(call.delta_kind, **self._place(call), delta=text)
            case CallEnd():
                self._close("completed")
            case CallBroken():
                self._close("incomplete")

    def _open(self, item: _Item) -> _Item:
        self._close("completed")
        self._item = item
        index = len(self._output)
        self._write("response.output_item.added", output_index=index, item=item.whole("in_progress", begun=False))
        if item.has_parts:
            self._write("response.content_part.added", **self._place(item), part=item.part(begun=False))
        return item

    def _close(self, status: ItemStatus) -> None:
        item, self._item = self._item, None
        if item is None:
            return
        if isinstance(item, _OpenText):
            item.logprobs += self._unsaid
            self._unsaid = []
        self._write(item.done_kind, **self._place(item), **item.done())
        if item.has_parts:
            self._write("response.content_part.done", **self._place(item), part=item.part(begun=True))
        whole = item.whole(status, begun=True)
        self._write("response.output_item.done", output_index=len(self._output), item=whole)
        self._output.append(whole)

    def _place(self, item: _OpenItem) -> dict[str, Any]:
        place = {"item_id": item.id, "output_index": len(self._output)}
        return {**place, "content_index": 0} if item.has_parts else place

    def _new_id(self, kind: str) -> str:
        return item_id(kind, self._frame.id, len(self._output) + (self._item is not None))

    def _write(self, kind: str, **fields: Any) -> None:
        self._written.append(named_event(kind, {"type": kind, "sequence_number": self._num_events, **fields}))
        self._num_events += 1

    def _flush(self) -> bytes:
        written = b"".join(self._written)
        self._written.clear()
        return written
