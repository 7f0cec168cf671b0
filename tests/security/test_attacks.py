"""While heavy and hostile requests come in, others are served, and afterwards the process is as it was."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest

from app.db.database import Database
from app.kernel.access import Role
from benchmarks.attacks import ATTACKS, Target, fill
from tests.support.service import registration
from tests.system.conftest import Api, api_process

pytestmark = pytest.mark.slow
_MAX_GROWTH = 200 << 20
# What 8 clients send at once, and what they leave unread.
_CHOSEN = [
    "pages of 500 failed tasks",
    "1,500 steps of utilisation",
    "checks of the audit log",
    "batches of 1,000 tasks of 9 KB",
    "512 guesses of keys in a request",
    "512 items of many unknown fields",
    "chunks with long extensions",
    "compressed bodies",
    "pipelined requests",
    "pages that are not read",
    "streams that are not read",
]


@pytest.fixture
async def api(own_database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with api_process(own_database.url, tmp_path) as api:
        yield api
    assert "Traceback" not in (tmp_path / "api.log").read_text()


async def test_others_are_served_meanwhile(api: Api, own_database: Database) -> None:
    decision = await fill(own_database.url)
    async with httpx.AsyncClient(
        base_url=api.url, headers=api.bearer(Role.ADMIN), trust_env=False, timeout=60
    ) as client:
        checkpoint = json.loads((await client.post("/checkpoints", json={"reason": "attacks"})).text)["id"]
        worker = (await client.post("/workers", json=registration(), headers=api.bearer(Role.POOL))).json()
        target = Target(
            port=api.port,
            key=api.keys[Role.ADMIN],
            worker_key=worker["key"],
            decision_id=decision,
            checkpoint_id=checkpoint,
            seconds=1.0,
        )
        memory = psutil.Process(api.pid).memory_info().rss
        for name in _CHOSEN:
            attack = asyncio.ensure_future(ATTACKS[name](target))
            served = 0
            while not attack.done():
                assert (await client.get("/livez")).status_code == 200, name
                served += 1
                await asyncio.sleep(0.05)
            await attack
            assert served > 1, name
        assert psutil.Process(api.pid).memory_info().rss < memory + _MAX_GROWTH
