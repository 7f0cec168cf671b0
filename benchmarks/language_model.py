"""Overhead of a call of a language model through the worker's gateway with permits, over a direct call."""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx

from benchmarks.machine import Machine
from benchmarks.percentiles import percentile
from benchmarks.testbed import start_testbed
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
    """A provider that answers at once, so that the time of a call is that of the way to it."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(_ANSWER)}\r\n\r\n"
    try:
        while True:
            request_head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(request_head.partition("content-length: ")[2].partition("\r\n")[0]))
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
    latencies = []
    for number in range(calls + _WARM_UP):
        start_time = time.perf_counter()
        (await post()).raise_for_status()
        if number >= _WARM_UP:
            latencies.append(time.perf_counter() - start_time)
    return latencies


async def _measure(calls: int) -> None:
    print(Machine.now())
    async with (
        start_testbed() as testbed,
        _provider() as provider_url,
        httpx.AsyncClient(trust_env=False, timeout=30) as client,
    ):
        settings = GatewaySettings(base_url=provider_url, models=(_MODEL,))
        gateway = ModelProxy(settings, f"http://127.0.0.1:{testbed.port}", lambda: testbed.key)
        gateway.start()
        access = gateway.open_access(
            Lease(task_id="00000000-0000-0000-0000-000000000001", token=1, agent_type="ranking")
        )
        key = {"authorization": f"Bearer {access.environment['OPENAI_API_KEY']}"}
        direct = await _times(lambda: client.post(f"{provider_url}/chat/completions", json=_BODY), calls)
        url = f"{gateway.url}/chat/completions"
        through_gateway = await _times(lambda: client.post(url, json=_BODY, headers=key), calls)
        await asyncio.to_thread(gateway.stop)
    for name, latencies in (("direct", direct), ("through the gateway", through_gateway)):
        p50, p99 = (1000 * percentile(latencies, share) for share in (0.5, 0.99))
        print(f"{name:<20} p50 {p50:6.2f} ms   p99 {p99:6.2f} ms")
    overhead = 1000 * (percentile(through_gateway, 0.5) - percentile(direct, 0.5))
    print(f"added to the median of a call: {overhead:.1f} ms (aim: below 100)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    asyncio.run(_measure(parser.parse_args().calls))


if __name__ == "__main__":
    main()
