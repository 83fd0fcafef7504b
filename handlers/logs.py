"""What a server's processes write to their logs, and in which form: as the host has it, or as lines of JSON."""

from __future__ import annotations

import logging
import sys
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from paged_backend.handlers.openai.access_log import FIELDS_ATTRIBUTE

_OURS = "paged_backend"
_HOSTS = ("bentoml", "uvicorn.error", "uvicorn.access")
"""BentoML's loggers, which have handlers of their own; those of our parts of the host are among them."""

_FOR_TEXT = ("levelname_bracketed", "component", "trace_msg")
"""What BentoML adds to records for its lines of text."""


class JsonLines(JsonFormatter):
    """A record as one line of JSON: timestamp, level, logger, message, and what else is known of it (request_id, ...).

    A request's own line has its fields apart, as numbers where they are, and no text that repeats them.
    """

    def __init__(self) -> None:
        names = {"levelname": "level", "name": "logger"}
        left_out = (*RESERVED_ATTRS, *_FOR_TEXT)
        super().__init__(["levelname", "name", "message"], rename_fields=names, reserved_attrs=left_out, timestamp=True)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """The record's fields, on their way into the line."""
        if log_data.get("request_id", "") is None:  # BentoML gives every record one
            del log_data["request_id"]
        fields = log_data.pop(FIELDS_ATTRIBUTE, None)
        if fields is not None:
            log_data["message"] = "request"
            log_data.update(fields)
        return super().process_log_record(log_data)


def configure_logging(log_format: str, log_level: str) -> None:
    """Sets up the logs of this process, which belongs to a host.

    Args:
        log_format: "text" leaves lines to the host's own handlers; "json" writes ours to the standard output as JSON,
            and BentoML's too.
        log_level: what ours leave out is below it. The access log has a switch of its own.
    """
    ours = logging.getLogger(_OURS)
    ours.setLevel(log_level.upper())
    if log_format == "text":
        return
    formatter = JsonLines()
    for name in _HOSTS:
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(formatter)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    ours.handlers[:] = [handler]
    ours.propagate = False
