"""What a permit for a call of a language model costs: alone, and with sixty-four callers for twenty permits."""

import argparse
import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from uuid import uuid4

from app.kernel.agents import AgentType
from benchmarks.http_client import Answer, Connection, connect
from benchmarks.machine import Machine
from benchmarks.percentiles import percentile
from benchmarks.surroundings import Surroundings, surroundings

_AGENTS = itertools.cycle(AgentType)
_REFUSED = 429
# Until the limit of the model has grown to that of the configuration.
_WARM_UP_SECONDS = 6.0


@dataclass(slots=True)
class Times:
    """Seconds that requests took, and what became of them."""

    acquired: list[float] = field(default_factory=list)
    settled: list[float] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)

    def __str__(self) -> str:
        acquire, settle = (_milliseconds(values) for values in (self.acquired, self.settled))
        return (
            f"acquire p50 {acquire[0]:.1f} ms, p99 {acquire[1]:.1f} ms; settle p50 {settle[0]:.1f}, p99 {settle[1]:.1f}"
        )


class Caller:
    """Asks, calls, settles, and again."""

    def __init__(self, connection: Connection, times: Times) -> None:
        self._connection = connection
        self._agent = next(_AGENTS).value
        self.times = times

    async def call(self, seconds: float) -> None:
        """One call that takes so long; a refusal is followed as it says."""
        wanted = {"request_id": str(uuid4()), "model": "m", "agent_type": self._agent, "estimated_tokens": 1000}
        while True:
            answer = await self._timed("/llm/permits", wanted, self.times.acquired)
            self.times.answers[answer.status] += 1
            if answer.status != _REFUSED:
                break
            await asyncio.sleep(Answer(200, answer.body).json()["retry_after"])
        permit = answer.json()
        await asyncio.sleep(seconds)
        told = {"token": permit["token"], "outcome": "success", "prompt_tokens": 900, "latency_ms": seconds * 1000}
        (await self._timed(f"/llm/permits/{permit['permit_id']}/settle", told, self.times.settled)).json()

    async def _timed(self, path: str, body: object, into: list[float]) -> Answer:
        started = time.perf_counter()
        answer = await self._connection.post(path, body)
        into.append(time.perf_counter() - started)
        return answer


async def alone(where: Surroundings, calls: int) -> Times:
    """One caller, nobody else."""
    caller = Caller(await connect(where.port, where.key), Times())
    for _ in range(calls):
        await caller.call(0.0)
    return caller.times


async def crowded(where: Surroundings, callers: int, call_seconds: float, seconds: float) -> tuple[Times, float]:
    """So many callers; also the processor time of the API for each call, in milliseconds."""
    crowd = [Caller(await connect(where.port, where.key), Times()) for _ in range(callers)]
    end = time.monotonic() + _WARM_UP_SECONDS + seconds

    async def work(caller: Caller) -> None:
        while time.monotonic() < end:
            await caller.call(call_seconds)

    working = [asyncio.create_task(work(caller)) for caller in crowd]
    await asyncio.sleep(_WARM_UP_SECONDS)
    times = Times()
    for caller in crowd:
        caller.times = times
    before = where.api.cpu_times()
    await asyncio.sleep(seconds)
    after, done = where.api.cpu_times(), len(times.settled)
    result = Times(list(times.acquired), list(times.settled), Counter(times.answers))
    await asyncio.gather(*working)
    spent = after.user + after.system - before.user - before.system
    return result, 1000 * spent / max(1, done)


def _milliseconds(values: list[float]) -> tuple[float, float]:
    return 1000 * percentile(values, 0.5), 1000 * percentile(values, 0.99)


async def _measure(callers: int, call_seconds: float, seconds: float) -> None:
    print(Machine.now())
    async with surroundings() as where:
        print(f"alone: {await alone(where, 300)}")
        times, spent = await crowded(where, callers, call_seconds, seconds)
        limit = 20
        rate = len(times.settled) / seconds
        print(f"{callers} callers, calls of {call_seconds:g} s, {limit} at once: {times}")
        print(f"  {rate:.1f} calls a second, {100 * rate * call_seconds / limit:.0f} % of what the permits allow;")
        print(
            f"  {times.answers[_REFUSED] / seconds:.0f} refusals a second; {spent:.1f} ms of the API's processor a call"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--call-seconds", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    asyncio.run(_measure(given.callers, given.call_seconds, given.seconds))


if __name__ == "__main__":
    main()
