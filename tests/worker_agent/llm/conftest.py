"""A gateway in its thread, between a handler and a provider that misbehaves."""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.worker_agent.llm.loopback import Loopback, serving
from tests.worker_agent.llm.provider import Permits, Provider
from worker_agent.language_model import LanguageModel
from worker_agent.llm.proxy import ModelProxy, ProxyAccess
from worker_agent.llm.settings import GatewaySettings
from worker_agent.tracing.spans import Tracing
from worker_agent.wire import Lease


@dataclass(slots=True, kw_only=True)
class Bench:
    """Everything around one gateway."""

    gateway: ModelProxy
    provider: Provider
    upstream: Loopback
    permits: Permits
    plane: Loopback
    opened: list[ProxyAccess] = field(default_factory=list)

    def access(self, seconds: float = 60.0, trace: str | None = None) -> ProxyAccess:
        """A task begins, with so much time."""
        lease = Lease(
            task_id="00000000-0000-0000-0000-000000000001",
            token=1,
            agent_type="generation",
            goal_id="kepler",
            timeout_seconds=seconds + 3.0,
            trace_context=trace,
        )
        self.opened.append(self.gateway.open_access(lease))
        return self.opened[-1]

    def model(self, seconds: float = 60.0) -> LanguageModel:
        """The language model as the handler of a new task sees it."""
        access = self.access(seconds)
        return LanguageModel(access.environment["OPENAI_BASE_URL"], access.environment["OPENAI_API_KEY"])


Start = Callable[..., Bench]


def wait_until_settled(bench: Bench, count: int) -> None:
    """Wait until so many calls are settled, and nothing is held any longer."""
    end = time.monotonic() + 10
    while (len(bench.permits.settlements) < count or bench.permits.live) and time.monotonic() < end:
        time.sleep(0.01)
    assert len(bench.permits.settlements) == count
    assert not bench.permits.live


def raw(
    bench: Bench, body: dict[str, Any], secret: str | None = None, path: str = "/v1/chat/completions"
) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(bench.gateway.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    key = bench.access().environment["OPENAI_API_KEY"] if secret is None else secret
    headers = {"authorization": f"Bearer {key}"}
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, content


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a gateway in front of a provider; options are those of GatewaySettings."""
    with ExitStack() as stack:

        def begin(
            provider: Provider, permits: Permits | None = None, tracing: Tracing | None = None, **options: object
        ) -> Bench:
            permits = permits or Permits()
            upstream = stack.enter_context(serving(provider.respond))
            plane = stack.enter_context(serving(permits.respond))
            settings = GatewaySettings(
                **{
                    "base_url": f"{upstream.url}/v1",
                    "key": "the-gateway",
                    "models": ("gpt-4.1", "gpt-4.1-mini"),
                    **options,
                }  # type: ignore[arg-type]
            )
            gateway = ModelProxy(
                settings, plane.url, lambda: "the-worker", random_fraction=lambda: 0.01, tracing=tracing
            )
            gateway.start()
            stack.callback(gateway.stop)
            return Bench(gateway=gateway, provider=provider, upstream=upstream, permits=permits, plane=plane)

        yield begin
