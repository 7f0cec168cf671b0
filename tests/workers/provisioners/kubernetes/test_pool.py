"""The pool as pods: grown, shrunk under load without ever removing a pod that holds a task, and found again."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio

from app.db import hot_path
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.lanes import Lane, Priority
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.leases import LeaseService
from app.queue.store import claims
from app.queue.store.claims import ClaimRequest
from app.workers.errors import PoolFull
from app.workers.provisioners.kubernetes.deployment import KubernetesDeployment
from app.workers.rules.workers import Directive
from app.workers.service import engine_pool, pool, workers
from app.workers.service.engine_pool import EnginePolicy
from app.workers.store import directives
from app.workers.store.directives import WorkerSelector
from tests.support.busy_pods import BusyPods
from tests.support.engine import register_member
from tests.support.factories import completion, submitted
from tests.support.kubernetes_api import DEPLOYMENT, Cluster, Fault
from tests.support.sql import execute, fetch, until, value
from tests.workers.provisioners.kubernetes.conftest import deployment

POLICY = EnginePolicy(usual_size=0, rest_seconds=0.1)
# A CI takes a minute for them on two cores; 200 need two and a half.
_REMOVALS = int(os.environ.get("CONVENER_TEST_REMOVALS", "60"))
_LANE = Lane(agent_type=AgentType.GENERATION, priority=Priority.MEDIUM)


class Nodes:
    """Workers in the pods that run: they register, lease, work and leave, as daemons do."""

    def __init__(self, database: Database, cluster: Cluster) -> None:
        self.database = database
        self.cluster = cluster
        self.busy = BusyPods(cluster)
        self.finished = 0
        self.works = False
        # A look that is cancelled would end with an error of the driver's pool instead.
        self.is_over = False
        self._daemons: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[WorkerId] = set()
        # Fewer than the connections that a database has for tests.
        self._at_once = asyncio.Semaphore(4)
        self._leases = LeaseService(database, LeasePolicy(), FairQueue())

    async def run(self) -> None:
        """Start a daemon in each pod that is ready, and end those of pods that are gone, until it is over."""
        try:
            while not self.is_over:
                for name in self.cluster.ready():
                    if name not in self._daemons:
                        self._daemons[name] = asyncio.create_task(self._daemon(name))
                # One look for all: so many heartbeats would keep the database from anything else.
                rows = await fetch(
                    self.database, "SELECT id FROM workers WHERE directive IS NOT NULL AND ended_at IS NULL"
                )
                self._leaving = {row["id"] for row in rows}
                for name in self._daemons.keys() - self.cluster.pods.keys():
                    self._daemons.pop(name).cancel()
                for daemon in self._daemons.values():
                    if daemon.done():
                        daemon.result()
                await asyncio.sleep(0.02)
        finally:
            for daemon in self._daemons.values():
                daemon.cancel()
            await asyncio.gather(*self._daemons.values(), return_exceptions=True)

    async def _daemon(self, name: str) -> None:
        # A container whose process has ended is started again by the kubelet.
        while name in self.cluster.pods:
            try:
                async with self._at_once:
                    identity = await register_member(self.database, name, kind="kubernetes", pool=DEPLOYMENT)
            except PoolFull:
                await asyncio.sleep(0.05)
                continue
            while identity.worker_id not in self._leaving:
                await self._work(name, identity.worker_id)
                await asyncio.sleep(random.uniform(0.05, 0.3))
            async with self._at_once, self.database.transaction() as connection:
                await workers.say_goodbye(connection, identity.worker_id, "drained")

    async def _work(self, name: str, worker_id: WorkerId) -> None:
        if not self.works:
            return
        ask = ClaimRequest(worker_id=worker_id, request_id=uuid4(), lane=_LANE, acknowledge=True)
        async with self._at_once:
            lease = (await hot_path.run(self.database, lambda c: claims.claim(c, [ask], LeasePolicy())))[0].lease
        if lease is None:
            return
        self.busy.begin(name)
        try:
            await asyncio.sleep(random.uniform(0.0, 0.3))
            async with self._at_once:
                await self._leases.complete(completion(worker_id, lease))
            self.finished += 1
        finally:
            self.busy.end(name)


@pytest_asyncio.fixture
async def nodes(database: Database, cluster: Cluster) -> AsyncIterator[Nodes]:
    nodes = Nodes(database, cluster)
    running = asyncio.create_task(nodes.run())
    yield nodes
    nodes.is_over = True
    await running


async def keep(database: Database, engine: KubernetesDeployment) -> dict[str, object]:
    return await engine_pool.keep(database, engine, POLICY)


async def resized(database: Database, cluster: Cluster, engine: KubernetesDeployment, size: int) -> None:
    """Let the pool grow to a size, and wait until so many workers are ready."""
    await keep(database, engine)
    await execute(database, "UPDATE hosts SET size = $1", size)

    async def are_ready() -> bool:
        await keep(database, engine)
        return bool(await ready_workers(database) == size)

    await until(are_ready)


async def ready_workers(database: Database) -> int:
    return int(await value(database, "SELECT count(*) FROM workers WHERE state = 'ready' AND directive IS NULL"))


async def shrink(database: Database, by: int) -> None:
    """As the scaling loop does: some workers leave, whether or not they are at work, and the size is smaller."""
    rows = await fetch(database, "SELECT id FROM workers WHERE state = 'ready' AND directive IS NULL")
    async with database.transaction() as connection:
        ids = random.sample([row["id"] for row in rows], min(by, len(rows)))
        await directives.direct(connection, WorkerSelector(ids=ids), Directive.DRAIN, "smaller")
        await connection.exec_driver_sql(f"UPDATE hosts SET size = {len(rows) - len(ids)}")


@pytest.mark.slow
@pytest.mark.usefixtures("follower")
async def test_no_busy_pod_goes_in_many_removals_under_load(
    database: Database, cluster: Cluster, engine: KubernetesDeployment, nodes: Nodes
) -> None:
    """Workers lease all the time, pods lose their readiness, versions change, and answers are lost."""
    await resized(database, cluster, engine, 24)
    await submitted(database, 3000)
    nodes.works = True
    removals = turns = 0
    while removals < _REMOVALS:
        turns += 1
        if await ready_workers(database) < 6:
            await execute(database, "UPDATE hosts SET size = 24")
        else:
            await shrink(database, random.randint(1, 2))
        names = cluster.ready()
        flapping = random.choice(names) if names else None
        if flapping is not None and turns % 5 == 0:
            cluster.set_ready(flapping, is_ready=False)
        if turns % 20 == 0:
            cluster.faults = [Fault("PATCH", "/scale$", 0, carries_out=True)]
        removed = (await keep(database, engine)).get("removed")
        removals += bool(removed)
        if flapping is not None and flapping in cluster.ready() + list(cluster.pods):
            cluster.set_ready(flapping, is_ready=True)
        await asyncio.sleep(0.01)
    assert nodes.busy.removed == []
    assert nodes.finished > _REMOVALS
    lost = await value(database, "SELECT count(*) FROM events WHERE kind = 'task.rescued'")
    assert lost == 0


@pytest.mark.usefixtures("follower")
async def test_from_none_to_250(
    database: Database, cluster: Cluster, engine: KubernetesDeployment, nodes: Nodes
) -> None:
    await resized(database, cluster, engine, 250)
    assert len(cluster.ready()) == 250
    assert cluster.removed == []


async def test_a_control_plane_that_was_killed_finds_every_pod(
    database: Database, cluster: Cluster, engine: KubernetesDeployment, nodes: Nodes
) -> None:
    """With all that it knew in memory, and in the midst of a removal."""
    await resized(database, cluster, engine, 12)
    names = set(cluster.ready())
    await shrink(database, 4)
    cluster.faults = [Fault("PATCH", "/pods/", 500, times=9)]
    turn = asyncio.create_task(keep(database, engine))

    async def has_begun() -> bool:
        return bool(await value(database, "SELECT cardinality(dismissed) > 0 FROM hosts"))

    await until(has_begun)
    turn.cancel()
    await asyncio.wait([turn])
    # Nobody has said that it is over; its time is, as that of any process that was killed.
    await execute(database, "UPDATE hosts SET scaling_until = now()")
    cluster.faults = []
    again = deployment(cluster)

    async def are_gone() -> bool:
        await keep(database, again)
        return len(cluster.pods) == 8

    await until(are_gone)
    assert set(cluster.ready()) < names
    assert await ready_workers(database) == 8
    await again.close()


async def test_an_image_that_cannot_be_pulled_is_the_reason(
    database: Database, cluster: Cluster, engine: KubernetesDeployment
) -> None:
    cluster.image_is_missing = True
    await keep(database, engine)
    await execute(database, "UPDATE hosts SET size = 4")

    async def is_told() -> bool:
        await keep(database, engine)
        async with database.transaction() as connection:
            recovery = (await pool.status(connection)).recovery
        return recovery.reason == (
            f"4 members of {DEPLOYMENT} cannot start: "
            "the image registry.example/convener:gone cannot be pulled (ImagePullBackOff)"
        )

    await until(is_told)
    assert await value(database, "SELECT count(*) FROM workers") == 0


async def test_no_room_is_the_reason_and_the_others_work(
    database: Database, cluster: Cluster, engine: KubernetesDeployment, nodes: Nodes
) -> None:
    cluster.room = 3
    await keep(database, engine)
    await execute(database, "UPDATE hosts SET size = 5")

    async def is_told() -> bool:
        await keep(database, engine)
        waits = await value(database, "SELECT member_waits ->> 0 FROM hosts")
        return await ready_workers(database) == 3 and "no room: 0/1 nodes are available" in str(waits)

    await until(is_told)
    # The two that found no room go before any other.
    await execute(database, "UPDATE hosts SET size = 3")

    async def are_gone() -> bool:
        await keep(database, engine)
        return len(cluster.pods) == 3

    await until(are_gone)
    assert await ready_workers(database) == 3


async def test_an_evicted_pod_is_replaced_and_its_worker_gets_no_more(
    database: Database, cluster: Cluster, engine: KubernetesDeployment, nodes: Nodes
) -> None:
    await resized(database, cluster, engine, 3)
    evicted = cluster.ready()[0]
    cluster.evict(evicted)

    async def is_replaced() -> bool:
        await keep(database, engine)
        names = [row["name"] for row in await fetch(database, "SELECT name FROM workers WHERE state = 'ready'")]
        return len(names) == 3 and evicted not in names

    await until(is_replaced)
    assert cluster.removed == []
