"""Latency of permits for calls of a language model: for one caller, and for 64 callers of 20 permits."""

import argparse
import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from uuid import uuid4

import httpx

from app.kernel.agents import AgentType
from benchmarks.http_client import Answer, Connection, connect
from benchmarks.machine import Machine
from benchmarks.percentiles import percentile
from benchmarks.testbed import Testbed, start_testbed

_AGENTS = itertools.cycle(AgentType)
_REFUSED = 429
# Until the limit of the model has grown to that of the configuration.
_WARM_UP_SECONDS = 6.0


@dataclass(slots=True)
class Times:
    """Seconds that requests took, and the number of answers by status."""

    acquire_seconds: list[float] = field(default_factory=list)
    settle_seconds: list[float] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)

    def __str__(self) -> str:
        acquire, settle = (_milliseconds(values) for values in (self.acquire_seconds, self.settle_seconds))
        return (
            f"acquire p50 {acquire[0]:.1f} ms, p99 {acquire[1]:.1f} ms; settle p50 {settle[0]:.1f}, p99 {settle[1]:.1f}"
        )


class Caller:
    """A caller that acquires a permit, calls, and settles."""

    def __init__(self, connection: Connection, times: Times) -> None:
        self._connection = connection
        self._agent = next(_AGENTS).value
        self.times = times

    async def call(self, seconds: float) -> None:
        """Make one call of so many seconds; after a refusal wait as long as it says."""
        request = {"request_id": str(uuid4()), "model": "m", "agent_type": self._agent, "estimated_tokens": 1000}
        while True:
            answer = await self._post("/llm/permits", request, self.times.acquire_seconds)
            self.times.answers[answer.status] += 1
            if answer.status != _REFUSED:
                break
            await asyncio.sleep(Answer(200, answer.body).json()["retry_after"])
        permit = answer.json()
        await asyncio.sleep(seconds)
        settlement = {
            "token": permit["token"],
            "outcome": "success",
            "prompt_tokens": 900,
            "latency_ms": seconds * 1000,
        }
        (await self._post(f"/llm/permits/{permit['permit_id']}/settle", settlement, self.times.settle_seconds)).json()

    async def _post(self, path: str, body: object, into: list[float]) -> Answer:
        start_time = time.perf_counter()
        answer = await self._connection.post(path, body)
        into.append(time.perf_counter() - start_time)
        return answer


async def list_model(testbed: Testbed) -> None:
    """Let callers ask for the model."""
    headers = {"Authorization": f"Bearer {testbed.key}", "If-Match": '"0"'}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{testbed.port}", headers=headers) as client:
        (await client.put("/llm/models/m", json={})).raise_for_status()


async def alone(testbed: Testbed, calls: int) -> Times:
    """Measure a single caller."""
    caller = Caller(await connect(testbed.port, testbed.key), Times())
    for _ in range(calls):
        await caller.call(0.0)
    return caller.times


async def contended(testbed: Testbed, callers: int, call_seconds: float, seconds: float) -> tuple[Times, float]:
    """Measure many callers at once; return also the processor time of the API per call, in milliseconds."""
    crowd = [Caller(await connect(testbed.port, testbed.key), Times()) for _ in range(callers)]
    end = time.monotonic() + _WARM_UP_SECONDS + seconds

    async def work(caller: Caller) -> None:
        while time.monotonic() < end:
            await caller.call(call_seconds)

    working = [asyncio.create_task(work(caller)) for caller in crowd]
    await asyncio.sleep(_WARM_UP_SECONDS)
    times = Times()
    for caller in crowd:
        caller.times = times
    times_before = testbed.api.cpu_times()
    await asyncio.sleep(seconds)
    times_after, calls = testbed.api.cpu_times(), len(times.settle_seconds)
    result = Times(list(times.acquire_seconds), list(times.settle_seconds), Counter(times.answers))
    await asyncio.gather(*working)
    cpu = times_after.user + times_after.system - times_before.user - times_before.system
    return result, 1000 * cpu / max(1, calls)


def _milliseconds(values: list[float]) -> tuple[float, float]:
    return 1000 * percentile(values, 0.5), 1000 * percentile(values, 0.99)


async def _measure(callers: int, call_seconds: float, seconds: float) -> None:
    print(Machine.now())
    async with start_testbed() as testbed:
        await list_model(testbed)
        print(f"alone: {await alone(testbed, 300)}")
        times, cpu = await contended(testbed, callers, call_seconds, seconds)
        limit = 20
        rate = len(times.settle_seconds) / seconds
        print(f"{callers} callers, calls of {call_seconds:g} s, {limit} at once: {times}")
        print(f"  {rate:.1f} calls a second, {100 * rate * call_seconds / limit:.0f} % of what the permits allow;")
        print(
            f"  {times.answers[_REFUSED] / seconds:.0f} refusals a second; {cpu:.1f} ms of the API's processor a call"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--call-seconds", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    asyncio.run(_measure(options.callers, options.call_seconds, options.seconds))


if __name__ == "__main__":
    main()
