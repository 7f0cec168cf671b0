"""Six situations of a bad night, made with real processes: page, `why` and `doctor` name the cause and the mend."""

import asyncio
import html
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import psutil
import pytest

from tests.support.command_line import parse
from tests.support.processes import process
from tests.system.conftest import Up
from tests.worker_agent.llm.loopback import serving
from tests.worker_agent.llm.provider import refuses

pytestmark = pytest.mark.slow
_HASTE: dict[str, Any] = {
    "CONVENER_HEARTBEAT_INTERVAL_SECONDS": "1",
    "CONVENER_LOST_AFTER_SECONDS": "3",
    "CONVENER_LEASE_SECONDS": "4",
}
_PATIENCE = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is broken, and the words by which each of the three names the cause and the mend.

    `page` is looked for on the first page and on that of the task together, `commands` of `why` can be run as they are.
    """

    agent: str
    page: Sequence[str]
    why: Sequence[str]
    doctor: Sequence[str]


_SITUATIONS = {
    "nobody serves it": Situation(
        agent="evolution",
        page=("1 task of evolution waits, and no live worker can run it", "convener worker --handlers MODULE"),
        why=("nobody serves evolution", "convener worker --handlers MODULE"),
        doctor=("1 task of evolution waits, and no live worker can run it", "convener worker --handlers MODULE"),
    ),
    "the key has expired": Situation(
        agent="generation",
        page=("gpt-4.1 refuses the key", "renew it where CONVENER_LLM_KEY_FILE", "Try it again at once"),
        why=("gpt-4.1 is unavailable: key expired", "renew the key", "convener llm reset gpt-4.1"),
        doctor=("refuses the key: it has expired", "renew the key", "convener llm reset gpt-4.1"),
    ),
    "a transaction holds locks": Situation(
        agent="meta_review",
        page=("(psql at night) of the database has held locks", "end its transaction", "pg_terminate_backend"),
        why=("(psql at night) of the database holds locks on tasks", "pg_terminate_backend"),
        doctor=("(psql at night) of the database has held locks", "pg_terminate_backend"),
    ),
    "a host is dead": Situation(
        agent="proximity",
        page=("elsewhere has not reported for", "start the loops of elsewhere again"),
        why=("nobody serves proximity", "elsewhere-1 on elsewhere, ended at", "start the loops of elsewhere again"),
        doctor=("elsewhere has not reported for", "start the loops of elsewhere again"),
    ),
    "a queue is paused": Situation(
        agent="reflection",
        page=("reflection is paused, and 1 task of it waits: a look at its prompts", "end the pause", "Resume"),
        why=("the queue of reflection is paused since", "a look at its prompts", "convener queues resume reflection"),
        doctor=("reflection is paused, and 1 of its tasks waits", "convener queues resume reflection"),
    ),
    "a task kills its handler": Situation(
        agent="ranking",
        page=("1 task has failed for good", "the last of ranking: the handler was ended by SIGKILL", "Requeue"),
        why=("failed for good at attempt 2 of 2: the handler was ended by SIGKILL", "dead-letters requeue"),
        doctor=("failed for good within an hour", "the handler was ended by SIGKILL", "convener dead-letters requeue"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """A service in which all of it is broken, and the task of each situation."""

    up: Up
    client: httpx.AsyncClient
    tasks: dict[str, str]

    async def command(self, *words: str) -> str:
        """What `convener` prints, in lines of any length."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVENER_")}
        environment |= {"CONVENER_STATE_DIRECTORY": str(self.up.state), "COLUMNS": "1000"}
        command = [sys.executable, "-m", "app.cli", *words]
        child = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, _ = await child.communicate()
        return out.decode()

    async def page(self, path: str) -> str:
        """The words of a page."""
        answer = await self.client.get(f"/dashboard{path}")
        assert answer.status_code == 200, answer.text
        return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


@asynccontextmanager
async def _night(base: Path) -> AsyncIterator[Night]:
    key = base / "llm.key"
    key.write_text("expired")
    async with AsyncExitStack() as stack:
        gateway = stack.enter_context(serving(refuses(401)))
        up = Up(
            base / "state",
            CONVENER_LLM_URL=f"{gateway.url}/v1",
            CONVENER_LLM_MODELS="gpt-4.1",
            CONVENER_LLM_KEY_FILE=str(key),
            CONVENER_POOL_SIZE="2",
            CONVENER_WORKER_HANDLERS="tests.system.broken",
            **_HASTE,
        )
        stack.callback(_end, up)
        await up.start()
        client = httpx.AsyncClient(base_url=up.url, headers=up.bearer("operator"), trust_env=False, timeout=30)
        client = await stack.enter_async_context(client)
        elsewhere = {
            "CONVENER_DATABASE_URL": up.database_url,
            "CONVENER_STATE_DIRECTORY": str(base / "elsewhere"),
            "CONVENER_HOST_NAME": "elsewhere",
            "CONVENER_POOL_SIZE": "1",
            "CONVENER_PORT": str(up.port),
            "CONVENER_WORKER_HANDLERS": "tests.system.broken_elsewhere",
        }
        loops = stack.enter_context(process("app.background", elsewhere | _HASTE, base / "elsewhere.log"))
        night = Night(up=up, client=client, tasks={})
        await _break(night, loops.pid, stack)
        await _log_in(night)
        yield night


def _end(up: Up) -> None:
    if up.child is not None and up.child.poll() is None:
        up.stop()
    for left in up.processes():
        left.kill()


async def _break(night: Night, loops: int, stack: AsyncExitStack) -> None:
    client = night.client
    worker = await _worker_elsewhere(night)
    bodies: dict[str, dict[str, Any]] = {
        "a host is dead": {"payload": {"sleep_seconds": 300}},
        "the key has expired": {"payload": {"question": "Why?"}},
        "a task kills its handler": {"payload": {"die": True}, "retry": {"max_attempts": 2, "delays_seconds": [0.1]}},
    }
    for agent in ("reflection", "meta_review"):
        (await client.post(f"/queues/{agent}/pause", json={"reason": "a look at its prompts"})).raise_for_status()
    for name, situation in _SITUATIONS.items():
        answer = await client.post("/tasks", json={"agent_type": situation.agent, **bodies.get(name, {})})
        assert answer.is_success, answer.text
        night.tasks[name] = answer.json()["id"]
    session = await asyncpg.connect(night.up.database_url, server_settings={"application_name": "psql at night"})
    stack.push_async_callback(session.close)
    await session.execute("BEGIN")
    await session.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", UUID(night.tasks["a transaction holds locks"]))
    typist = asyncio.create_task(_type(session))
    stack.callback(typist.cancel)
    (await client.post("/queues/meta_review/resume")).raise_for_status()
    await _until_state(night, "a host is dead", "executing")
    _kill(loops, worker["pid"])
    await _until_state(night, "a task kills its handler", "failed")


async def _type(session: asyncpg.Connection) -> None:
    """A statement now and then, since the server ends sessions that say nothing within a transaction for a minute."""
    while True:
        await session.execute("SELECT 1")
        await asyncio.sleep(5)


async def _worker_elsewhere(night: Night) -> dict[str, Any]:
    async with asyncio.timeout(_PATIENCE):
        while True:
            workers = (await night.client.get("/workers")).json()["items"]
            if found := [w for w in workers if w["host"] == "elsewhere" and w["state"] == "ready"]:
                worker: dict[str, Any] = found[0]
                return worker
            await asyncio.sleep(0.2)


async def _until_state(night: Night, name: str, state: str) -> None:
    async with asyncio.timeout(_PATIENCE):
        while (await night.client.get(f"/tasks/{night.tasks[name]}")).json()["state"] != state:
            await asyncio.sleep(0.2)


def _kill(*pids: int) -> None:
    """kill -9 of everything on that host, at once."""
    processes = [psutil.Process(pid) for pid in pids]
    for victim in [child for parent in processes for child in parent.children(recursive=True)] + processes:
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGKILL)


async def _log_in(night: Night) -> None:
    form = (await night.client.get("/dashboard/login")).text
    word = re.search(r'name="csrf" value="([^"]+)"', form)
    assert word is not None
    key = night.up.bearer("operator")["Authorization"].removeprefix("Bearer ")
    answer = await night.client.post("/dashboard/login", data={"csrf": word[1], "key": key})
    assert answer.status_code == 303, answer.text


def _missing(words: Sequence[str], text: str) -> list[str]:
    return [word for word in words if word not in text]


async def test_page_why_and_doctor_name_the_cause_and_the_mend_of_six_situations(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    async with _night(tmp_path) as night:
        missing: dict[str, list[str]] = {}
        # Heartbeats have to be missed, and alerts come with the next look, before they can be told of.
        for _ in range(_PATIENCE // 3):
            missing = await _look(night)
            if not missing:
                break
            await asyncio.sleep(2)
        assert not missing, json.dumps(missing, indent=2)
        await _check_commands(night)


async def _look(night: Night) -> dict[str, list[str]]:
    """The words that are missing, by situation, of the first of the three that does not say all.

    The one comes last that is a program for each situation.
    """
    for who, listen in (("page", _pages), ("doctor", _doctor), ("why", _why)):
        told = await listen(night)
        missing = {f"{who}: {name}": _missing(getattr(_SITUATIONS[name], who), told[name]) for name in _SITUATIONS}
        if any(missing.values()):
            return {place: words for place, words in missing.items() if words}
    return {}


async def _pages(night: Night) -> dict[str, str]:
    first = await night.page("")
    return {name: first + await night.page(f"/tasks/{night.tasks[name]}") for name in _SITUATIONS}


async def _doctor(night: Night) -> dict[str, str]:
    checks = json.loads(await night.command("doctor", "-o", "json"))["checks"]
    return dict.fromkeys(_SITUATIONS, " ".join(f"{check['detail']} {check['remedy']}" for check in checks))


async def _why(night: Night) -> dict[str, str]:
    return {name: await night.command("why", night.tasks[name]) for name in _SITUATIONS}


async def _check_commands(night: Night) -> None:
    """The command line takes every command that is advised."""
    for task in night.tasks.values():
        why = (await night.client.get(f"/tasks/{task}/why")).json()
        # Every few seconds a task tries the model again.
        assert why["cause"]["mends"] or why["cause"]["code"] in ("waking", "next", "running"), why
        for mend in why["cause"]["mends"]:
            if mend["command"]:
                parse(mend["command"])
    for check in json.loads(await night.command("doctor", "-o", "json"))["checks"]:
        assert check["status"] == "ok" or check["remedy"], check
        for command in check["commands"]:
            parse(command)
