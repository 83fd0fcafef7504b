"""A user's own BentoML service over ours: what README shows, and what the tests drive."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlparse

import anyio
import bentoml
import httpx

from paged_backend.handlers.bento.service import PagedLLM


@bentoml.service(name="storyteller", traffic={"timeout": 3600})
class Storyteller:
    """Tells stories, at once or word by word."""

    llm = bentoml.depends(PagedLLM)

    @bentoml.api  # type: ignore[untyped-decorator]
    async def tell(self, about: str, max_tokens: int = 8) -> str:
        """A whole story."""
        answer = await self.llm.generate(prompt=about, max_tokens=max_tokens, temperature=0.0)
        text: str = answer.outputs[0].text
        return text

    @bentoml.api  # type: ignore[untyped-decorator]
    async def tell_slowly(self, about: str, n: int = 1, max_tokens: int = 8) -> AsyncGenerator[str, None]:
        """A story as it comes. Whoever leaves takes the engine's request along."""
        request_id = uuid.uuid4().hex
        try:
            async for chunk in self.llm.generate_stream(
                prompt=about,
                n=n,
                max_tokens=max_tokens,
                temperature=0.0,
                ignore_eos=True,
                request_id=request_id,
            ):
                yield chunk
        finally:
            with anyio.CancelScope(shield=True):
                await self.llm.abort(request_id=request_id)

    @bentoml.api  # type: ignore[untyped-decorator]
    async def engine_metrics(self) -> str:
        """The dependency's /metrics, which no public port shows."""
        service: Any = PagedLLM
        address = urlparse(service.url)
        transport = httpx.AsyncHTTPTransport(uds=address.path) if address.scheme == "file" else None
        base_url = "http://engine" if transport else service.url
        async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
            return (await client.get("/metrics")).text
