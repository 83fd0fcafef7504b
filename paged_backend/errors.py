"""One tree of exceptions: what a caller can get wrong, and what can happen to a request.

Our own bugs are asserted, never raised from here. Every message names the field and the remedy.
"""

from __future__ import annotations


class PagedBackendError(Exception):
    """Root of everything that this package raises on purpose."""


class ConfigError(PagedBackendError, ValueError):
    """A deployment or engine option is unknown, out of range, or contradicts another one."""


class ModelLoadError(PagedBackendError):
    """The model folder, its configuration or its weights cannot be used."""


class KernelError(PagedBackendError, ValueError):
    """A kernel was given a shape, dtype, stride or device that it does not take."""


class InvalidRequestError(PagedBackendError, ValueError):
    """A request has a wrong value (HTTP 400).

    Attributes:
        param: the request field at fault, as the client wrote it (`temperature`, `messages.0.role`), or None.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class NotFoundError(PagedBackendError):
    """What the request names does not exist (HTTP 404)."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class AdmissionError(PagedBackendError):
    """There is more to do than the engine takes on; the same request may be accepted later (HTTP 429).

    Attributes:
        retry_after_s: seconds after which a retry is likely to be admitted.
        reason: the bound that it met: the name of an engine argument, or of a request's field.
        param: the request field at fault, or None.
    """

    def __init__(self, message: str, *, retry_after_s: float, reason: str, param: str | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason = reason
        self.param = param


class QueueFullError(AdmissionError):
    """The waiting queue is at one of its bounds."""


class DeadlineError(AdmissionError):
    """A request's time is too short beside all that there is to do, as far as can be told now."""


class EngineUnavailableError(PagedBackendError):
    """The engine is starting, draining, or dead (HTTP 503)."""


class RequestFailedError(PagedBackendError):
    """An accepted request was ended by a fault of ours (HTTP 500); others go on."""
