"""A long random walk over everything that happens to permits, beside a small model of what must be so."""

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.lanes import Priority
from app.kernel.states import WorkerState
from app.llm.errors import PermitOver, PermitRefused
from app.llm.rules.models import ModelLimits
from app.llm.rules.outcomes import CallReport, Outcome
from app.llm.rules.permits import PermitPolicy, RequestId
from app.llm.service import models, permits
from app.llm.service.grant import AcquireRequest
from app.llm.service.permits import PermitService
from app.llm.service.settle import Settlement
from app.llm.store.permits import Permit
from app.queue.rules.fair_queueing import FairQueue
from app.workers.service import workers
from tests.support.factories import holding
from tests.support.permit_callers import configure
from tests.support.sql import execute, fetch, value

_MODELS = ("m", "n")
_MOST_OF_N = 3


async def _at_work(database: Database) -> WorkerId:
    """A worker whose lease outlasts the walk."""
    worker_id, lease = await holding(database)
    await execute(
        database, "UPDATE tasks SET lease_expires_at = now() + interval '1 h' WHERE id = $1", UUID(str(lease.task_id))
    )
    return worker_id


@dataclass(slots=True)
class Walk:
    """The expected state: live permits, permits that are over, and calls counted."""

    database: Database
    service: PermitService
    chance: Random
    total_limit: int = 20
    live: dict[UUID, Permit] = field(default_factory=dict)
    ended: dict[UUID, Permit] = field(default_factory=dict)
    settled: dict[UUID, Settlement] = field(default_factory=dict)
    workers: list[Any] = field(default_factory=list)
    tokens: int = 0

    async def acquire(self) -> None:
        """Ask; a permit is given only where there is room."""
        worker_id = self.chance.choice([None, *self.workers])
        request = AcquireRequest(
            id=RequestId(self.chance.choice("ab"), uuid4()),
            model=self.chance.choice(_MODELS),
            agent_type=self.chance.choice(list(AgentType)) if worker_id is None else None,
            priority=self.chance.choice(list(Priority)) if worker_id is None else None,
            tokens=self.chance.randrange(2000),
            worker_id=worker_id,
        )
        of_model = Counter(permit.request.model for permit in self.live.values())[request.model]
        of_worker = Counter(permit.request.worker_id for permit in self.live.values())[worker_id]
        has_room = len(self.live) < self.total_limit and (request.model == "m" or of_model < _MOST_OF_N)
        has_share = worker_id is None or of_worker < min(PermitPolicy().max_per_worker, max(1, self.total_limit - 1))
        try:
            acquired = await self.service.acquire(request)
        except PermitRefused:
            return
        assert has_room
        assert has_share
        assert acquired.in_use == of_model + 1
        self.live[acquired.permit.id] = acquired.permit
        assert (await self.service.acquire(request)).permit.token == acquired.permit.token

    async def settle(self) -> None:
        """End a call, also late; repeat it; try to change it."""
        if (permit := self._any(self.live, self.ended)) is None:
            return
        tokens = self.chance.randrange(3000)
        report = CallReport(
            outcome=self.chance.choice(list(Outcome)), prompt_tokens=tokens, latency_seconds=self.chance.random()
        )
        settlement = Settlement(
            permit_id=permit.id,
            token=permit.token,
            worker_id=permit.request.worker_id,
            report=report,
            digest=repr(report).encode(),
        )
        answer = await self.service.settle(settlement)
        assert answer.late == (permit.id in self.ended)
        self.tokens += tokens
        self.settled[permit.id] = settlement
        self.live.pop(permit.id, None)
        self.ended.pop(permit.id, None)

    async def repeat(self) -> None:
        """Settle once more: with the same body nothing happens, with another it is refused."""
        if not self.settled:
            return
        settlement = self.chance.choice(list(self.settled.values()))
        await self.service.settle(settlement)
        with pytest.raises(PermitOver):
            await self.service.settle(replace(settlement, digest=b"other"))

    async def release(self) -> None:
        """Give back; what is over stays over."""
        if (permit := self._any(self.live)) is None:
            return
        for _ in range(2):
            async with self.database.transaction() as connection:
                await permits.release(connection, permit.id, permit.token, permit.request.worker_id)
        del self.live[permit.id]

    async def renew(self) -> None:
        """Only what lives can be renewed."""
        if (permit := self._any(self.live, self.ended)) is None:
            return
        async with self.database.transaction() as connection:
            if permit.id in self.live:
                await permits.renew(connection, permit.id, permit.token, PermitPolicy(), permit.request.worker_id)
                return
            with pytest.raises(PermitOver):
                await permits.renew(connection, permit.id, permit.token, PermitPolicy(), permit.request.worker_id)

    async def crash(self) -> None:
        """The time of a permit passes without anybody who settles it."""
        if (permit := self._any(self.live)) is not None:
            await execute(
                self.database, "UPDATE llm_permits SET expires_at = now() - interval '1 s' WHERE id = $1", permit.id
            )
            self.ended[permit.id] = self.live.pop(permit.id)
            async with self.database.transaction() as connection:
                assert (await permits.sweep(connection))["expired"] == 1

    async def lose(self) -> None:
        """A worker dies, another comes."""
        worker_id = self.workers.pop(0)
        async with self.database.transaction() as connection:
            await workers.record_exit(connection, worker_id, WorkerState.LOST, "killed")
        self.ended |= {key: permit for key, permit in self.live.items() if permit.request.worker_id == worker_id}
        self.live = {key: permit for key, permit in self.live.items() if permit.request.worker_id != worker_id}
        self.workers.append(await _at_work(self.database))

    async def reconfigure(self) -> None:
        """People change their mind."""
        self.total_limit = self.chance.choice([1, 4, 9, 20])
        await configure(self.database, self.total_limit)

    async def wait(self) -> None:
        """Time passes for rates, cool-downs and breakers."""
        await execute(
            self.database,
            "UPDATE llm_models SET open_until = open_until - interval '40 s', cooldown_until = NULL, callers = '{}',"
            " tokens_tat = tokens_tat - interval '40 s', requests_tat = requests_tat - interval '40 s'",
        )

    async def check(self) -> None:
        """The database says the same."""
        rows = await fetch(self.database, "SELECT id, model, is_probe FROM llm_permits WHERE ended_at IS NULL")
        assert {row["id"] for row in rows} == set(self.live)
        probing = await fetch(self.database, "SELECT model FROM llm_models WHERE open_until IS NOT NULL")
        probes = Counter(row["model"] for row in rows if row["is_probe"])
        assert all(probes[row["model"]] <= 1 for row in probing)

    def _any(self, *parts: dict[UUID, Permit]) -> Permit | None:
        permits = [permit for part in parts for permit in part.values()]
        return self.chance.choice(permits) if permits else None


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_rows_and_rules_agree(own_database: Database, seed: int) -> None:
    # One of its own: other tests make deadlocks on purpose, and the server counts them for each database.
    database = own_database
    service, chance = PermitService(database, FairQueue()), Random(seed)
    walk = Walk(database, service, chance, workers=[await _at_work(database) for _ in range(2)])
    limits = {
        "m": ModelLimits(requests_per_window=600, tokens_per_window=200_000, fallback_models=["n"]),
        "n": ModelLimits(max_concurrency=_MOST_OF_N, fallback_models=[]),
    }
    async with database.transaction() as connection:
        for name, limit in limits.items():
            await models.set_limits(connection, name, 0, limit, by="test")
    await execute(database, "UPDATE llm_models SET concurrency = 50, ramping = false")
    steps = [walk.acquire] * 8 + [walk.settle] * 4 + [walk.release, walk.renew, walk.crash, walk.wait, walk.repeat]
    for number in range(250):
        step = walk.lose if number % 40 == 39 else walk.reconfigure if number % 25 == 24 else chance.choice(steps)
        await step()
        if number % 10 == 9:
            await walk.check()
    await service.stop()
    assert len(walk.settled) > 20
    counted = "SELECT sum(calls)::int AS calls, sum(prompt_tokens)::int AS tokens FROM llm_minutes"
    (sums,) = await fetch(database, counted)
    assert (sums["calls"], sums["tokens"]) == (len(walk.settled), walk.tokens)
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert await value(database, deadlocks) == 0
