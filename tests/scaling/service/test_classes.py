"""Classes of workers beside the usual pool: a need goes to the class that can serve it, and to no other."""

from typing import Any

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.resources import Resources
from app.scaling.rules import record as records
from app.scaling.store import decisions
from app.workers.rules.classes import WorkerClass
from app.workers.service import engine_pool
from app.workers.service.engine_pool import EnginePolicy
from tests.support.engine import NumberEngine, register_member
from tests.support.factories import submitted
from tests.support.pools import bounds, decided
from tests.support.sql import execute, fetch

_GPU = WorkerClass(agents=frozenset([AgentType.GENERATION]), offer=Resources(cores=1, memory_gb=1, gpus=1))
_REQUEST = '{"gpus": 1}'


class Cluster:
    """Two pools of an engine: the usual one, and one of workers with a GPU that serve a single agent type."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.usual, self.gpu = NumberEngine(), NumberEngine()
        self.gpu.name, self.gpu.serves, self.gpu.max_size = "gpus", _GPU, 5
        self.gpu.prefix = "g"

    async def turn(self) -> None:
        """Both engines get their sizes, and workers register in all members."""
        for engine in (self.usual, self.gpu):
            await engine_pool.keep(self.database, engine, EnginePolicy(usual_size=0, rest_seconds=0.0))
            await engine_pool.keep(self.database, engine, EnginePolicy(usual_size=0, rest_seconds=0.0))
            rows = await fetch(self.database, "SELECT name FROM workers WHERE ended_at IS NULL")
            offer: dict[str, Any] = {"gpus": 1, "capabilities": [AgentType.GENERATION]} if engine.serves else {}
            for member in engine.members:
                if member.name not in {row["name"] for row in rows}:
                    await register_member(self.database, member.name, pool=engine.name, **offer)
            await engine_pool.keep(self.database, engine, EnginePolicy(usual_size=0, rest_seconds=0.0))

    async def decided(self) -> dict[str, Any]:
        await self.turn()
        decision = await decided(self.database)
        await self.turn()
        return decision

    def sizes(self) -> tuple[int, int]:
        return self.usual.requested, self.gpu.requested


async def test_tasks_with_a_gpu_grow_the_class_that_offers_one_and_others_the_usual_pool(database: Database) -> None:
    await bounds(database, 2, 100)
    cluster = Cluster(database)
    await cluster.decided()
    assert cluster.sizes() == (2, 0)
    await submitted(database, 30, resources=_REQUEST)
    decision = await cluster.decided()
    assert cluster.sizes() == (2, 1)
    assert decision["classes"]["gpus"]["need"] > 1
    assert (decision["current_workers"], decision["target_workers"]) == (2, 3)
    assert "30 tasks" in next(reason for reason in decision["reasons"] if reason.startswith("gpus: "))
    await submitted(database, 400, agent_type=AgentType.RANKING)
    await execute(database, "UPDATE workers SET cpu_percent = 90, cpu_cores = 1")
    await cluster.decided()
    usual, gpus = cluster.sizes()
    assert usual > 2
    assert gpus <= 2
    async with database.transaction() as connection:
        kept = await decisions.latest(connection)
    assert kept is not None
    assert records.replay(kept.roster, kept.inputs) == kept.output


async def test_what_no_class_offers_grows_none(database: Database) -> None:
    await bounds(database, 2, 100)
    cluster = Cluster(database)
    await cluster.decided()
    await submitted(database, 30, resources=_REQUEST, agent_type=AgentType.RANKING)
    await submitted(database, 30, resources='{"gpus": 2}')
    decision = await cluster.decided()
    assert cluster.sizes() == (2, 0)
    said = "30 tasks of ranking do not count: no worker offers what they ask for, such as 1 GPU"
    assert said in decision["reasons"]


async def test_a_class_whose_workers_idle_goes_and_the_usual_pool_stays(database: Database) -> None:
    await bounds(database, 2, 100)
    cluster = Cluster(database)
    await cluster.decided()
    await submitted(database, 3, resources=_REQUEST)
    await cluster.decided()
    assert cluster.sizes() == (2, 1)
    await execute(database, "DELETE FROM tasks")
    for _ in range(80):
        await decided(database)
    await cluster.turn()
    leaving = await fetch(database, "SELECT host FROM workers WHERE directive = 'drain'")
    assert [row["host"] for row in leaving] == ["gpus"]


async def test_a_class_keeps_to_its_limit(database: Database) -> None:
    await bounds(database, 2, 100)
    cluster = Cluster(database)
    await cluster.decided()
    await submitted(database, 300, resources=_REQUEST)
    for _ in range(6):
        await execute(database, "UPDATE workers SET cpu_percent = 90, cpu_cores = 1")
        await cluster.decided()
    assert cluster.sizes() == (2, 5)


async def test_a_class_knows_how_long_its_own_workers_take_to_start(database: Database) -> None:
    """Those of the usual pool are there at once, and these are five minutes in the queue of a cluster."""
    await bounds(database, 2, 100)
    cluster = Cluster(database)
    await cluster.decided()
    await submitted(database, 3, resources=_REQUEST)
    await cluster.decided()
    await execute(database, "UPDATE workers SET requested_at = requested_at - interval '300 s' WHERE host = 'gpus'")
    await decided(database)
    await execute(database, "DELETE FROM tasks")
    for _ in range(20):
        decision = await decided(database)
    assert decision["classes"]["gpus"]["target_workers"] == 1, decision["classes"]
    async with database.transaction() as connection:
        kept = await decisions.latest(connection)
    assert kept is not None
    inputs = records.inputs_of(kept.roster, kept.inputs)
    assert inputs.classes[0].snapshot.start_seconds >= 300 > inputs.snapshot.start_seconds
    assert records.replay(kept.roster, kept.inputs) == kept.output
