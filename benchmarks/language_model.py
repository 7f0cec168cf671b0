"""What the way to a language model adds to a call: through the worker's gateway with permits, beside a direct call."""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx

from benchmarks.machine import Machine
from benchmarks.percentiles import percentile
from benchmarks.surroundings import surroundings
from worker_agent.llm.proxy import ModelProxy
from worker_agent.llm.settings import GatewaySettings
from worker_agent.wire import Lease

_MODEL = "m"
_CHOICE = {"index": 0, "message": {"role": "assistant", "content": "Because."}, "finish_reason": "stop"}
_USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
_ANSWER = json.dumps({"id": "1", "object": "chat.completion", "model": _MODEL, "choices": [_CHOICE], "usage": _USAGE})
_BODY = {"model": _MODEL, "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 16}
_WARM_UP = 20


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A provider that has its answer ready: what is left of a call's time is the way to it."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(_ANSWER)}\r\n\r\n"
    try:
        while True:
            asked = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(asked.partition("content-length: ")[2].partition("\r\n")[0]))
            writer.write((head + _ANSWER).encode())
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


@asynccontextmanager
async def _provider() -> AsyncIterator[str]:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def _times(post: Callable[[], Awaitable[httpx.Response]], calls: int) -> list[float]:
    taken = []
    for number in range(calls + _WARM_UP):
        started = time.perf_counter()
        (await post()).raise_for_status()
        if number >= _WARM_UP:
            taken.append(time.perf_counter() - started)
    return taken


async def _measure(calls: int) -> None:
    print(Machine.now())
    async with surroundings() as where, _provider() as url, httpx.AsyncClient(trust_env=False, timeout=30) as client:
        settings = GatewaySettings(base_url=url, models=(_MODEL,))
        gateway = ModelProxy(settings, f"http://127.0.0.1:{where.port}", lambda: where.key)
        gateway.start()
        access = gateway.open_access(
            Lease(task_id="00000000-0000-0000-0000-000000000001", token=1, agent_type="ranking")
        )
        key = {"authorization": f"Bearer {access.environment['OPENAI_API_KEY']}"}
        direct = await _times(lambda: client.post(f"{url}/chat/completions", json=_BODY), calls)
        led = await _times(lambda: client.post(f"{gateway.url}/chat/completions", json=_BODY, headers=key), calls)
        await asyncio.to_thread(gateway.stop)
    for name, taken in (("direct", direct), ("through the gateway", led)):
        print(f"{name:<20} p50 {1000 * percentile(taken, 0.5):6.2f} ms   p99 {1000 * percentile(taken, 0.99):6.2f} ms")
    added = 1000 * (percentile(led, 0.5) - percentile(direct, 0.5))
    print(f"added to the median of a call: {added:.1f} ms (aim: below 100)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    asyncio.run(_measure(parser.parse_args().calls))


if __name__ == "__main__":
    main()
