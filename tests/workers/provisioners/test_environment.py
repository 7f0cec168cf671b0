"""The try whether handlers load as a worker of the pool loads them."""

import asyncio
from asyncio.subprocess import Process
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from app.workers.provisioners.environment import check_handlers


async def test_one_that_is_given_up_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop closed before its end was heard of, now and then, which the terminal showed as a traceback."""
    (tmp_path / "slow_agents.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.chdir(tmp_path)
    create, processes = asyncio.create_subprocess_exec, list[Process]()

    async def note(*arguments: Any, **options: Any) -> Process:
        processes.append(await create(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", note)
    settings = Settings(worker_handlers="slow_agents", state_directory=tmp_path)
    check = asyncio.create_task(check_handlers(settings))
    async with asyncio.timeout(30):
        while not processes:
            await asyncio.sleep(0.01)
    check.cancel()
    await asyncio.gather(check, return_exceptions=True)
    assert processes[0].returncode is not None
