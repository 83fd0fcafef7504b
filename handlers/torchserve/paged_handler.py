"""The file that torch-model-archiver puts into an archive: all else comes from the installed package.

TorchServe wants exactly one class defined in the handler's own module, so a mere import would not do.
"""

from paged_backend.handlers.torchserve.handler import PagedBackendHandler as _PagedBackendHandler


class PagedHandler(_PagedBackendHandler):
    """The handler that TorchServe creates, once per worker."""
