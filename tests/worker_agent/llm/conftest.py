"""A gateway in its thread, between a handler and a provider that misbehaves."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from tests.worker_agent.llm.loopback import Loopback, serving
from tests.worker_agent.llm.provider import Permits, Provider
from worker_agent.language import LanguageModel
from worker_agent.llm.serving import Access, Gateway
from worker_agent.llm.settings import GatewaySettings
from worker_agent.wire import Lease


@dataclass(slots=True, kw_only=True)
class Bench:
    """Everything around one gateway."""

    gateway: Gateway
    provider: Provider
    upstream: Loopback
    permits: Permits
    plane: Loopback
    opened: list[Access] = field(default_factory=list)

    def access(self, seconds: float = 60.0, trace: str | None = None) -> Access:
        """A task begins, with so much time."""
        lease = Lease(
            task_id="00000000-0000-0000-0000-000000000001",
            token=1,
            agent_type="generation",
            goal_id="kepler",
            timeout_seconds=seconds + 3.0,
            trace_context=trace,
        )
        self.opened.append(self.gateway.open(lease))
        return self.opened[-1]

    def model(self, seconds: float = 60.0) -> LanguageModel:
        """The language model as the handler of a new task sees it."""
        access = self.access(seconds)
        return LanguageModel(access.environment["OPENAI_BASE_URL"], access.environment["OPENAI_API_KEY"])


Start = Callable[..., Bench]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a gateway in front of a provider; options are those of GatewaySettings."""
    with ExitStack() as stack:

        def begin(provider: Provider, permits: Permits | None = None, **options: object) -> Bench:
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
            gateway = Gateway(settings, plane.url, lambda: "the-worker", draw=lambda: 0.01)
            gateway.start()
            stack.callback(gateway.stop)
            return Bench(gateway=gateway, provider=provider, upstream=upstream, permits=permits, plane=plane)

        yield begin
