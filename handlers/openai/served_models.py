"""The models of one server by their names, each with its engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from paged_backend.errors import EngineUnavailableError, InvalidRequestError, NotFoundError
from paged_backend.handlers.openai.engine_port import EnginePort
from paged_backend.handlers.openai.live import LiveResponses


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model.

    Attributes:
        names: what requests may call it; the first is its own.
        live: the responses that it is making.
    """

    engine: EnginePort
    names: tuple[str, ...]
    live: LiveResponses = field(default_factory=LiveResponses, compare=False)


class ServedModels:
    """All models of a server. The first is meant where a request names none."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        assert models and all(model.names for model in models), "a service needs a model with a name"
        self._models = tuple(models)
        self._by_name = {name: model for model in models for name in model.names}
        assert len(self._by_name) == sum(len(model.names) for model in models), "a name means one model"

    @classmethod
    def one(cls, engine: EnginePort, names: tuple[str, ...]) -> ServedModels:
        """A single model."""
        return cls([ServedModel(engine, names)])

    @property
    def all(self) -> tuple[ServedModel, ...]:
        """Every model, in the order of the deployment."""
        return self._models

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a request may use."""
        return tuple(self._by_name)

    def find(self, name: object) -> ServedModel | None:
        """The model that a request names; the first one for None; None where there is none of that name."""
        if name is None:
            return self._models[0]
        return self._by_name.get(name) if isinstance(name, str) else None

    def named(self, name: str | None) -> ServedModel:
        """`find`, where there has to be one.

        Raises:
            NotFoundError: there is none of that name.
        """
        model = self.find(name)
        if model is None:
            raise unknown_model(str(name))
        return model

    def cancel(self, tenant: str | None, response_ids: Sequence[str], *, model: ServedModel | None = None) -> list[str]:
        """Ends those of the tenant's responses that are being made.

        Args:
            model: whose; None where any may have them.

        Returns:
            The ids of those that were.

        Raises:
            InvalidRequestError: several models have them, and none was named; nothing is ended.
        """
        models = self._models if model is None else (model,)
        holders = [one for one in models if any((tenant, response_id) in one.live for response_id in response_ids)]
        if len(holders) > 1:
            names = ", ".join(f"`{holder.names[0]}`" for holder in holders)
            raise InvalidRequestError(
                f"Several models have a response of that id: say in model which of {names}.", param="model"
            )
        return holders[0].live.cancel(tenant, response_ids) if holders else []

    def check_health(self, stall_timeout_s: float | None = None) -> None:
        """Raises EngineUnavailableError when any engine is dead, draining or stuck; of several, it says whose."""
        for model in self._models:
            try:
                model.engine.check_health(stall_timeout_s)
            except EngineUnavailableError as error:
                if len(self._models) == 1:
                    raise
                raise EngineUnavailableError(f"The model `{model.names[0]}`: {error}") from error

    def metrics_text(self) -> str:
        """The metrics of all engines, as one exposition."""
        return merge_expositions([model.engine.metrics_text() for model in self._models])


def unknown_model(name: str) -> NotFoundError:
    """What a request for a model that is not served is answered with."""
    return NotFoundError(f"The model `{name}` does not exist.", param="model")


def merge_expositions(texts: Sequence[str]) -> str:
    """One Prometheus exposition out of several whose samples' labels differ: each metric's head comes once, and all of
    its samples follow, as the format demands."""
    texts = [text for text in texts if text]
    if len(texts) == 1:
        return texts[0]
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        name = ""
        for line in text.splitlines(keepends=True):
            if line.startswith("#"):
                name = line.split(" ", 3)[2]
                head = heads.setdefault(name, [])
                if line not in head:
                    head.append(line)
            else:
                samples.setdefault(name, []).append(line)
    return "".join("".join([*heads.get(name, ()), *samples.get(name, ())]) for name in {**heads, **samples})
