"""A real small model on this machine, behind the real argo-proxy and the worker's gateway; `make test-llm` runs it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from examples.local_model.parts import MODEL, PORT_VARIABLE
from tests.support.ports import free_port
from worker_agent.language_model import LanguageModel
from worker_agent.llm.proxy import ModelProxy
from worker_agent.llm.settings import GatewaySettings
from worker_agent.wire import Lease

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the local model is not installed: `make test-llm`"),
]


@pytest.fixture(scope="module")
async def model_url() -> AsyncIterator[str]:
    """The model, served."""
    port = free_port()
    environment = {**os.environ, PORT_VARIABLE: str(port)}
    child = subprocess.Popen([sys.executable, "-m", "examples.local_model"], env=environment)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            for _ in range(600):
                assert child.poll() is None, "the model's server has ended"
                try:
                    if (await client.get(f"{url}/models")).is_success:
                        break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
        yield url
    finally:
        child.terminate()
        child.wait(10)


@pytest.fixture
def model(model_url: str) -> Iterator[LanguageModel]:
    """The model as a handler sees it; permits come from a control plane that grants everything."""
    from tests.worker_agent.llm.loopback import serving
    from tests.worker_agent.llm.provider import Permits

    permits = Permits()
    with serving(permits.respond) as plane:
        gateway = ModelProxy(GatewaySettings(base_url=model_url, models=(MODEL,)), plane.url, lambda: "the-worker")
        gateway.start()
        access = gateway.open_access(Lease(task_id="t", token=1, agent_type="generation", timeout_seconds=300))
        yield LanguageModel(access.environment["OPENAI_BASE_URL"], access.environment["OPENAI_API_KEY"])
        gateway.close_access(access)
        gateway.stop()
    assert set(permits.outcomes) == {"success"}


async def test_it_writes_in_the_shape_that_a_schema_asks_for(model: LanguageModel) -> None:
    schema = {"type": "array", "items": {"enum": ["a^1", "a^2", "a^3"]}, "minItems": 4, "maxItems": 4}

    answer = await asyncio.to_thread(model.ask, "Write four laws.", schema=schema, max_tokens=100)

    assert len(answer.json()) == 4
    assert set(answer.json()) <= {"a^1", "a^2", "a^3"}
    assert answer.completion_tokens > 0


async def test_it_writes_text(model: LanguageModel) -> None:
    answer = await asyncio.to_thread(model.ask, "Say something about planets.", max_tokens=20)

    assert answer.text.strip()
    assert answer.degraded is None


async def test_a_research_goal_is_pursued_to_its_end_without_a_network(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVENER_")}
    command = [sys.executable, "-m", "app.cli", "demo", "--llm", "--rounds", "1", "--state", str(tmp_path / "state")]

    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=400, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "generation: " in done.stdout
    assert "(0 without an answer)" in done.stdout


def test_the_parts_are_where_they_are_looked_for() -> None:
    from examples.local_model.parts import weights

    assert weights().suffix == ".gguf"
