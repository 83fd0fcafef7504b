"""/v1/models: the names that requests may use."""

from __future__ import annotations

from paged_backend.handlers.openai.generation import ServingContext
from paged_backend.handlers.openai.protocol.replies import Model, ModelList
from paged_backend.handlers.openai.served_models import ServedModel
from paged_backend.handlers.openai.wire import HttpResponse, json_response


async def list_models(context: ServingContext, _: None) -> HttpResponse:
    """All names."""
    data = [_model(context, model, name) for model in context.models.all for name in model.names]
    reply: ModelList = {"object": "list", "data": data}
    return json_response(reply)


async def show_model(context: ServingContext, name: str) -> HttpResponse:
    """One of them.

    Raises:
        NotFoundError: there is none of that name.
    """
    return json_response(_model(context, context.models.named(name), name))


def _model(context: ServingContext, model: ServedModel, name: str) -> Model:
    return {
        "id": name,
        "object": "model",
        "created": context.created,
        "owned_by": "paged-backend",
        "root": model.names[0],
        "parent": None,
        "max_model_len": model.engine.max_model_len,
    }
