"""The service in this process on a real port, and the command line in a thread beside it."""

import asyncio
import json
import os
import shlex
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import httpx
import pytest
import uvicorn
from typer.main import get_command
from typer.testing import CliRunner

from app.admin.service.access import create_key
from app.admin.store.keys import NewKey
from app.cli.commands import build
from app.db.database import Database
from app.kernel.access import Role
from app.main import create_app
from app.settings import Settings
from app.terminal import connection
from tests.support.ports import free_port
from tests.support.service import KEY_ROLES

COMMAND = build()


def parse(command: str) -> None:
    """Let the command line itself parse `convener ...` to the last word, without running it. Raises what it raises."""
    program, *words = shlex.split(command)
    assert program == "convener"
    group: Any = get_command(COMMAND)
    context = group.make_context("convener", words)
    while hasattr(group, "resolve_command"):
        name, group, words = group.resolve_command(context, [*context._protected_args, *context.args])
        context = group.make_context(name, words, parent=context)


def words_of(line: str) -> list[str]:
    """The words after `convener` in a line of shell, up to an operator; none where another command fills some."""
    parser = shlex.shlex(line, posix=True, punctuation_chars="|;()<>&")
    parser.whitespace_split = True
    words = [] if "$(" in line else [*parser]
    own = words[words.index("convener") + 1 :] if "convener" in words else []
    return [*takewhile(lambda word: not set(word) <= set("|;()<>&"), own)]


Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout, which must be one JSON value and nothing else."""
        return json.loads(self.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """Runs `convener` as a user would whose environment holds just these variables."""

    environment: dict[str, str]

    def run(self, *arguments: str, stdin: str | None = None, **changes: str | None) -> Outcome:
        """Run it here; not inside a running event loop, because some commands start one."""
        ours = dict.fromkeys(name for name in os.environ if name.startswith("CONVENER_"))
        environment = {**ours, **self.environment, "COLUMNS": "80", **changes}
        # Options that are given before the command become variables.
        with patch.dict(os.environ):
            done = CliRunner().invoke(COMMAND, arguments, input=stdin, env=environment, prog_name="convener")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Outcome(code=done.exit_code, out=done.stdout, err=done.stderr)

    async def __call__(self, *arguments: str, stdin: str | None = None, **changes: str | None) -> Outcome:
        """Run it in a thread."""
        return await asyncio.to_thread(self.run, *arguments, stdin=stdin, **changes)


class _Server(uvicorn.Server):
    """Leaves the signals of the test run alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running API, and a key of each role."""

    url: str
    database_url: str
    keys: dict[Role, str]

    async def work(self, agent: str, *, error: str | None = None, output: Sequence[Json] = ()) -> None:
        """Register a worker that leases one task, waiting for it, and completes it, or fails it for good.

        Meanwhile it writes this output, piece by piece.
        """
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=40) as http:
            me = {"name": f"cli-{uuid4().hex[:6]}", "host": "test", "pid": 1, "memory_gb": 1, "cpu_cores": 1}
            key = {"Authorization": f"Bearer {self.keys[Role.POOL]}"}
            worker = (await http.post("/workers", json=me | {"capabilities": [agent]}, headers=key)).json()
            own, path = {"Authorization": f"Bearer {worker['key']}"}, f"/workers/{worker['worker_id']}"
            await http.post(f"{path}/heartbeat", json={"state": "ready"}, headers=own)
            wanted = {"request_id": str(uuid4()), "wait_seconds": 30, "acknowledge": True}
            answer = await http.post("/lease", json=wanted, headers=own)
            assert answer.status_code == 200, answer.text
            lease = answer.json()
            for piece in output:
                more = {"token": lease["token"], "pieces": [piece]}
                assert (await http.post(f"/leases/{lease['task_id']}/logs", json=more, headers=own)).is_success
            ending: Json = {"token": lease["token"]}
            if error is None:
                ending |= {"result": {"echo": lease["payload"]}}
            else:
                ending |= {"error": {"code": "test", "message": error, "retryable": False}}
            verb = "complete" if error is None else "fail"
            done = await http.post(f"/leases/{lease['task_id']}/{verb}", json=ending, headers=own)
            assert done.status_code == 200, done.text
            await http.post(f"{path}/goodbye", json={"reason": "done"}, headers=own)

    async def register(self, name: str, labels: Sequence[str] = (), **report: Json | str) -> Json:
        """A worker that does nothing; it is ready, unless its health report says otherwise."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as http:
            me: Json = {"name": name, "host": "test", "pid": 1, "memory_gb": 1, "cpu_cores": 1}
            me |= {"capabilities": ["ranking"], "labels": dict(label.split(":") for label in labels)}
            key = {"Authorization": f"Bearer {self.keys[Role.POOL]}"}
            worker: Json = (await http.post("/workers", json=me, headers=key)).json()
            own = {"Authorization": f"Bearer {worker['key']}"}
            await http.post(f"/workers/{worker['worker_id']}/heartbeat", json={"state": "ready"} | report, headers=own)
        return worker


@pytest.fixture(scope="module")
async def live_service(module_database_url: str) -> AsyncIterator[Service]:
    """One for the tests of a file, whichever of them run here and in whatever order.

    They keep apart by using goals and names of their own.
    """
    database = Database(module_database_url)
    async with database.transaction() as connection:
        keys = {role: (await create_key(connection, NewKey(role=role, label="test"))).text for role in KEY_ROLES}
    await database.close()
    config = uvicorn.Config(
        create_app(Settings(database_url=module_database_url)), port=0, log_config=None, access_log=False
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), serving.exception()
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Service(url=f"http://127.0.0.1:{port}", database_url=module_database_url, keys=keys)
    server.should_exit = True
    await serving


@pytest.fixture
def convener(live_service: Service, tmp_path: Path) -> CommandLine:
    """The command line with the operator's key."""
    variables = {"CONVENER_URL": live_service.url, "CONVENER_KEY": live_service.keys[Role.OPERATOR]}
    return CommandLine(environment=variables | {"CONVENER_STATE_DIRECTORY": str(tmp_path)})


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line of somebody who has set nothing up, whatever runs on this machine."""
    monkeypatch.setattr(connection, "DEFAULT_URL", f"http://127.0.0.1:{free_port()}")
    return CommandLine(environment={"CONVENER_STATE_DIRECTORY": str(tmp_path)})


@pytest.fixture
def goal() -> str:
    """A research goal of the test's own."""
    return f"goal-{uuid4().hex[:8]}"
