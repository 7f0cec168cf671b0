"""The pool as pods of a Deployment, kept by `convener loops` that are killed: every pod is found, no busy one goes."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.db.database import Database
from app.kernel.access import Role
from app.workers.provisioners.engine import POOL_LABEL, pool_label
from tests.support import sql
from tests.support.busy_pods import BusyPods
from tests.support.kubernetes_api import DEPLOYMENT, NAMESPACE, Cluster, Fault
from tests.support.pools import bounds
from tests.support.sql import execute, value
from tests.system.conftest import Api, until

pytestmark = pytest.mark.slow
_MOST, _LEAST, _TASKS = 8, 3, 40


class _Nodes:
    """What runs in the pods: a container each with a minimal worker, which is started anew when it ends."""

    def __init__(self, api: Api, cluster: Cluster) -> None:
        self.cluster = cluster
        self.busy = BusyPods(cluster)
        self.leaving: set[str] = set()
        self.names: set[str] = set()
        # Pods whose tasks end; before, each holds the one that it has.
        self.finishing: set[str] = set()
        self.finish_all = False
        self._client = httpx.AsyncClient(base_url=api.url, trust_env=False, timeout=30)
        self._pool_key = api.bearer(Role.POOL)
        self._containers: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Start a container in each pod that is ready, until cancelled."""
        try:
            while True:
                for name in self.cluster.ready():
                    if name not in self._containers:
                        self._containers[name] = asyncio.create_task(self._container(name))
                for container in self._containers.values():
                    if container.done():
                        container.result()
                await asyncio.sleep(0.02)
        finally:
            for container in self._containers.values():
                container.cancel()
            await asyncio.gather(*self._containers.values(), return_exceptions=True)
            await self._client.aclose()

    async def _container(self, name: str) -> None:
        while name not in self.cluster.removed:
            me = {"name": name, "host": "node-1", "pid": 1, "memory_gb": 1, "cpu_cores": 1}
            me |= {"capabilities": ["generation"], "labels": {POOL_LABEL: pool_label("kubernetes", DEPLOYMENT)}}
            answer = await self._client.post("/workers", json=me, headers=self._pool_key)
            if answer.status_code == 201:
                self.names.add(name)
                await self._serve(name, answer.json())
                self.names.discard(name)
            else:
                assert answer.json()["code"] == "pool_full", answer.text
                await asyncio.sleep(0.3)

    async def _serve(self, name: str, worker: dict[str, Any]) -> None:
        """Work until told to leave, or until the pod is removed."""
        path, own = f"/workers/{worker['worker_id']}", {"Authorization": f"Bearer {worker['key']}"}

        async def is_to_leave(**report: Any) -> bool:
            answer = await self._client.post(f"{path}/heartbeat", json=report, headers=own)
            assert answer.status_code == 200, answer.text
            if answer.json()["directives"]:
                self.leaving.add(name)
            return bool(answer.json()["directives"])

        while not await is_to_leave(state="ready") and name not in self.cluster.removed:
            ask = {"request_id": str(uuid4()), "wait_seconds": 0.5, "acknowledge": True}
            answer = await self._client.post("/lease", json=ask, headers=own)
            if answer.status_code == 200:
                lease = answer.json()
                self.busy.begin(name)
                held = {"task_id": lease["task_id"], "token": lease["token"]}
                while not self.finish_all and name not in self.finishing:
                    await is_to_leave(state="busy", lease=held)
                    await asyncio.sleep(0.2)
                ending = {"token": lease["token"], "result": {"pod": name}}
                done = await self._client.post(f"/leases/{lease['task_id']}/complete", json=ending, headers=own)
                assert done.status_code == 200, done.text
                self.busy.end(name)
        await self._client.post(f"{path}/goodbye", json={"reason": "drained"}, headers=own)
        self.leaving.discard(name)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    await cluster.start()
    yield cluster
    await cluster.close()


@pytest.fixture
async def nodes(api: Api, cluster: Cluster) -> AsyncIterator[_Nodes]:
    nodes = _Nodes(api, cluster)
    running = asyncio.create_task(nodes.run())
    yield nodes
    running.cancel()
    await asyncio.wait([running])
    if not running.cancelled():
        running.result()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@contextmanager
def _loops(database_url: str, cluster: Cluster, place: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`convener loops` with a kubeconfig of the cluster; killed at the end, and with the block's leave before."""
    user, context = {"token": "first"}, {"cluster": "c", "user": "u", "namespace": NAMESPACE}
    document = {
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": context}],
        "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
        "users": [{"name": "u", "user": user}],
    }
    kubeconfig = place / "kubeconfig"
    kubeconfig.write_text(json.dumps(document))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVENER_")} | {
        "CONVENER_DATABASE_URL": database_url,
        "CONVENER_PROVISIONER": "kubernetes",
        "CONVENER_KUBECONFIG": str(kubeconfig),
        "CONVENER_POOL_SIZE": "0",
        "CONVENER_STATE_DIRECTORY": str(place / "state"),
    }
    with (place / "loops.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "loops"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield child
        assert child.poll() is None, (place / "loops.log").read_text()
    finally:
        child.kill()
        child.wait()


async def test_loops_that_are_killed_find_every_pod_and_remove_no_busy_one(
    api: Api, database_url: str, database: Database, cluster: Cluster, nodes: _Nodes, tmp_path: Path
) -> None:
    async def are_completed() -> bool:
        return bool(await value(database, "SELECT count(*) FROM task_history WHERE state = 'completed'") == _TASKS)

    async def is_kept() -> bool:
        return bool(await value(database, "SELECT count(*) FROM hosts"))

    await bounds(database, 0, _MOST)
    cluster.room = 3
    with _loops(database_url, cluster, tmp_path):
        await sql.until(is_kept)
        # A change is decided on at once.
        await bounds(database, _MOST, _MOST)
        # In the midst of growth: three of eight pods work, the others have no room yet.
        await until(lambda: len(nodes.names) == 3 and len(cluster.active()) == _MOST, what="three workers of eight")
    pods = set(cluster.pods)
    cluster.room = None
    await until(lambda: len(cluster.ready()) == _MOST, what="eight pods")
    async with httpx.AsyncClient(base_url=api.url, headers=api.bearer(Role.ADMIN), trust_env=False) as client:
        tasks = [{"agent_type": "generation", "payload": {}, "goal_id": "pods"} for _ in range(_TASKS)]
        assert (await client.post("/tasks/batch", json={"tasks": tasks})).status_code == 201
        with _loops(database_url, cluster, tmp_path):
            await until(lambda: len(nodes.busy.names) == _MOST, what="work in every pod")
            assert set(cluster.pods) == pods, "a pod was not found again, or is one too many"
            await bounds(database, _LEAST, _LEAST)
            await until(lambda: len(nodes.leaving) == _MOST - _LEAST, what="drained workers")
            # In the midst of a removal: two of five have finished, have their cost, and the size is not set yet.
            cluster.faults = [Fault("PATCH", "/scale$", 503, times=100)]
            gone = set(sorted(nodes.leaving)[:2])
            nodes.finishing |= gone
            await until(lambda: cluster.faults[0].times < 100, what="an attempt to set the size")
        cluster.faults = []
        assert set(cluster.pods) == pods
        # What the killed process was asking for counts as over after half a minute, by itself.
        await execute(database, "UPDATE hosts SET scaling_until = now()")
        with _loops(database_url, cluster, tmp_path):
            await until(lambda: len(cluster.active()) < _MOST, what="a removal")
            await until(lambda: set(cluster.pods) == pods - gone, what="the end of those that had finished")
            assert len(nodes.busy.names) == len(nodes.leaving) + _LEAST == _MOST - len(gone)
            nodes.finish_all = True
            await until(lambda: len(cluster.pods) == _LEAST, what="the size it was to have")
            await sql.until(are_completed)
            assert len(nodes.names) == _LEAST
    assert nodes.busy.removed == []
    assert set(cluster.pods) < pods
    # Each was completed once, by the first who got it.
    assert await value(database, "SELECT count(*) FROM task_attempts") == 0
    assert await value(database, "SELECT count(DISTINCT id) FROM task_history WHERE state = 'completed'") == _TASKS
