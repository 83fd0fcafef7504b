"""A user's own BentoML service over ours, through `bentoml.depends`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serving.bento_host import BentoHost, metric_value, sse
from tests.serving.processes import wait_until

ROOT = Path(__file__).resolve().parents[2]


class TestDependents:
    @pytest.fixture(scope="class")
    @classmethod
    def app(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BentoHost]:
        folder = tmp_path_factory.mktemp("dependent")
        # Whoever depends on us is on the same machine: the key is asked for at the public port only.
        environment = {"PAGED_BACKEND_API_KEY": "secret"}
        target = "tests.serving.dependent_service:Storyteller"
        with BentoHost(folder, target=target, extra_environment=environment, working_dir=ROOT) as host:
            host.wait_ready()
            yield host

    @staticmethod
    def metric(app: BentoHost, name: str, **labels: str) -> float:
        return metric_value(app.post("/engine_metrics", {}).text, name, **labels)

    def test_whole_and_streamed(self, app: BentoHost) -> None:
        whole = app.post("/tell", {"about": "Once upon a time"})
        assert whole.status_code == 200, whole.text
        streamed = app.post("/tell_slowly", {"about": "Once upon a time"}).text
        *frames, done = sse(streamed)
        assert done == "[DONE]"
        assert "".join(part["text"] for frame in frames for part in frame["outputs"]) == whole.text

    def test_only_the_users_routes_are_public(self, app: BentoHost) -> None:
        assert app.status("/v1/models") == 404

    def test_a_long_stream_outlives_many_requests(self, app: BentoHost) -> None:
        """BentoML's client closes its session, streams included, after 100 requests, if it is let."""
        body = {"about": "Once", "n": 16, "max_tokens": 2000}
        with (
            ThreadPoolExecutor(8) as pool,
            httpx.stream("POST", f"{app.url}/tell_slowly", json=body, timeout=120) as response,
        ):
            lines = response.iter_lines()
            while '"token_ids"' not in next(lines):
                pass
            others = pool.map(
                lambda _: app.post("/tell", {"about": "b", "max_tokens": 1}).status_code,
                range(120),
            )
            assert set(others) == {200}
            frames = [next(lines) for _ in range(20)]
        assert any("token_ids" in frame for frame in frames) and not any("error" in frame for frame in frames)

    def test_leaving_travels_by_abort(self, app: BentoHost) -> None:
        body = {"about": "Once", "n": 48, "max_tokens": 480}
        with httpx.stream("POST", f"{app.url}/tell_slowly", json=body, timeout=60) as response:
            lines = response.iter_lines()
            while '"token_ids"' not in next(lines):
                pass
            assert self.metric(app, "vllm:num_requests_running") > 0
        wait_until(lambda: self.metric(app, "vllm:num_requests_running") == 0, timeout_s=2, what="an idle engine")
        assert self.metric(app, "vllm:request_success_total", finished_reason="abort") > 0
