"""Random lives of a pool: whatever happens it stays between its bounds, and every decision can be made again."""

import random

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.scaling.rules import record as records
from app.scaling.store import decisions
from app.workers.service import pool
from tests.support.factories import leased, submitted
from tests.support.pools import arrive, bounds, decided, drain, keep_up, living
from tests.support.sql import execute, fetch, value


class _Life:
    """Random life of a small pool; after every step the bounds are looked at."""

    least, most = 2, 7

    def __init__(self, database: Database, seed: int) -> None:
        self.database = database
        self.random = random.Random(seed)
        self.deaths = 0

    async def step(self) -> None:
        steps = [self.submit, self.work, self.work, self.kill, self.come, self.drain, self.keep, self.decide]
        await self.random.choice(steps)()
        assert await living(self.database) <= self.most

    async def submit(self) -> None:
        await submitted(self.database, self.random.choice([1, 5, 40]), agent_type=self.random.choice(list(AgentType)))

    async def work(self) -> None:
        """Somebody idle leases a task, and maybe completes it."""
        rows = await fetch(self.database, "SELECT id FROM workers w WHERE state = 'ready' ORDER BY slot LIMIT 3")
        pending = await fetch(self.database, "SELECT agent_type, priority FROM tasks WHERE state = 'pending' LIMIT 1")
        busy = {row["worker_id"] for row in await fetch(self.database, "SELECT worker_id FROM tasks")}
        for row in rows:
            if row["id"] not in busy and pending:
                await leased(self.database, row["id"], agent_type=AgentType(pending[0]["agent_type"]))
                return
        await execute(self.database, "DELETE FROM tasks WHERE worker_id IS NOT NULL")

    async def kill(self) -> None:
        rows = await fetch(self.database, "SELECT id FROM workers WHERE state IN ('starting', 'ready') ORDER BY id")
        if rows and self.random.random() < 0.5:
            await pool.report_exit(self.database, self.random.choice(rows)["id"], "killed")

    async def come(self) -> None:
        await arrive(self.database, cpu_percent=90.0)
        await execute(self.database, "UPDATE workers SET state = 'stopped', ended_at = now() WHERE state = 'draining'")

    async def drain(self) -> None:
        """Somebody tells a worker to go, which the pool did not want."""
        rows = await fetch(self.database, "SELECT id FROM workers WHERE state = 'ready' ORDER BY slot LIMIT 1")
        await drain(self.database, [row["id"] for row in rows])

    async def keep(self) -> None:
        await keep_up(self.database)

    async def decide(self) -> None:
        decision = await decided(self.database, seconds=self.random.choice([5.0, 30.0, 300.0]))
        assert self.least <= decision["target_workers"] <= self.most
        staying = await value(
            self.database,
            "SELECT count(*) FROM workers WHERE state IN ('starting', 'ready') AND directive IS NULL",
        )
        owed = await value(self.database, "SELECT sum(size) FROM hosts") - staying
        assert owed >= 0
        # Those who are on their way out hold their places.
        assert staying + owed >= self.least or await living(self.database) + owed == self.most


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_the_pool_stays_between_its_bounds(database: Database, seed: int) -> None:
    life = _Life(database, seed)
    await bounds(database, life.least, life.most)
    await keep_up(database, 3)
    for _ in range(60):
        await life.step()
    async with database.transaction() as connection:
        stored = await decisions.onward(connection, above=0, limit=100)
    assert len(stored) > 3
    assert all(records.replay(one.roster, one.inputs) == one.output for one in stored)
