"""The engines of one deployment: they start, drain and stop together."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from paged_backend.errors import ConfigError, ModelLoadError
from paged_backend.handlers.openai.served_models import ServedModel, ServedModels

if TYPE_CHECKING:
    from paged_backend.config import EngineConfig
    from paged_backend.engine.client import EngineClient
    from paged_backend.engine.stats import EngineStats


class EngineGroup:
    """One engine per model, in the deployment's order. For any thread.

    Attributes:
        models: the engines by the names of their models.
    """

    def __init__(self, clients: Sequence[EngineClient]) -> None:
        self._clients = tuple(clients)
        self.models = ServedModels([ServedModel(client, client.config.model.served_model_name) for client in clients])

    @classmethod
    def start(cls, configs: Sequence[EngineConfig]) -> EngineGroup:
        """Loads the models one after another; blocks, and imports torch and transformers. If one cannot be loaded,
        those before it are stopped again: nothing is half served.

        Raises:
            ConfigError, ModelLoadError: with what to change; of several models, it says which.
        """
        from paged_backend.engine.client import EngineClient

        clients: list[EngineClient] = []
        try:
            for config in configs:
                clients.append(EngineClient.start(config))  # noqa: PERF401  those that came so far must be known
        except BaseException as error:
            for client in clients:
                client.shutdown()
            if len(configs) > 1 and isinstance(error, (ConfigError, ModelLoadError)):
                name = configs[len(clients)].model.served_model_name[0]
                raise type(error)(f"The model {name!r}: {error}") from error
            raise
        return cls(clients)

    def check_health(self, stall_timeout_s: float | None = None) -> None:
        """Raises EngineUnavailableError when an engine is dead, draining or stuck; of several, it says whose."""
        self.models.check_health(stall_timeout_s)

    def stats(self) -> dict[str, EngineStats]:
        """What each engine is doing, by its model's name."""
        return {client.config.model.served_model_name[0]: client.stats() for client in self._clients}

    def abort(self, request_id: str, *, tenant: str | None = None) -> None:
        """Ends a tenant's request, whichever engine has it; one that none has is no error."""
        for client in self._clients:
            client.abort(request_id, tenant=tenant)

    def drain(self, timeout_s: float) -> bool:
        """Lets no request in any more, and waits for what runs; True if all of it ended within timeout_s seconds."""
        with ThreadPoolExecutor(len(self._clients)) as pool:
            return all(list(pool.map(lambda client: client.drain(timeout_s), self._clients)))

    def shutdown(self) -> None:
        """Ends what is left with EngineUnavailableError and frees the models: all of them, also where one fails to.
        Safe to call twice."""
        with ExitStack() as stack:
            for client in reversed(self._clients):
                stack.callback(client.shutdown)
