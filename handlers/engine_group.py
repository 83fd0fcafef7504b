"""The engines of one deployment: they start, drain and stop together."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from paged_backend.errors import ConfigError, ModelLoadError
from paged_backend.handlers.openai.served_models import ServedModel, ServedModels

if TYPE_CHECKING:
    from paged_backend.config import EngineConfig
    from paged_backend.engine.client import EngineClient
    from paged_backend.engine.stats import EngineStats

logger = logging.getLogger(__name__)


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
            with contextlib.suppress(Exception):  # it is logged, and why a model cannot be loaded says more
                _shut_down(clients)
            if len(configs) > 1 and isinstance(error, (ConfigError, ModelLoadError)):
                name = configs[len(clients)].model.served_model_name[0]
                raise type(error)(f"The model {name!r}: {error}") from error
            raise
        return cls(clients)

    def check_health(self, stall_timeout_s: float | None = None) -> None:
        """Raises EngineUnavailableError when an engine is dead, draining or stuck; of several, it says whose."""
        self.models.check_health(stall_timeout_s)

    def give_up(self, reason: str) -> None:
        """Ends every request with EngineUnavailableError, whatever has become of the engines."""
        for client in self._clients:
            client.give_up(reason)

    def stats(self) -> dict[str, EngineStats]:
        """What each engine is doing, by its model's name."""
        return {_name(client): client.stats() for client in self._clients}

    def drain(self, timeout_s: float) -> bool:
        """Lets no request in any more, and waits for what runs; True if all of it ended within timeout_s seconds. An
        engine that fails to is logged, and has not."""

        def drain(client: EngineClient) -> bool:
            try:
                return client.drain(timeout_s)
            except Exception:
                logger.exception("The engine of %s could not be drained.", _name(client))
                return False

        with ThreadPoolExecutor(len(self._clients)) as pool:
            return all(list(pool.map(drain, self._clients)))

    def shutdown(self) -> None:
        """Ends what is left with EngineUnavailableError and frees the models: all of them, also where some fail to.
        Safe to call twice.

        Raises:
            Exception: what one failed with; of several, a RuntimeError that says whose. The log has each of them.
        """
        _shut_down(self._clients)


def _shut_down(clients: Sequence[EngineClient]) -> None:
    """Shuts all of them down; see `EngineGroup.shutdown`."""
    failures: list[tuple[str, Exception]] = []
    for client in clients:
        try:
            client.shutdown()
        except Exception as error:
            logger.exception("The engine of %s could not be shut down.", _name(client))
            failures.append((_name(client), error))
    if len(failures) == 1:
        raise failures[0][1]
    if failures:
        each = "; ".join(f"{name}: {error}" for name, error in failures)
        raise RuntimeError(f"{len(failures)} engines could not be shut down: {each}.") from failures[0][1]


def _name(client: EngineClient) -> str:
    return client.config.model.served_model_name[0]
