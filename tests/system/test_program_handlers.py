"""`convener up` with handlers that are programs."""

from pathlib import Path

import pytest

from tests.system.conftest import Up, about_up
from tests.system.supervising import all_completed, ask, submit

pytestmark = [pytest.mark.slow, about_up]
_RANK = """#!/bin/sh
cat >&2
echo "{\\"speed\\": \\"$1\\"}"
"""


async def test_up_runs_programs_beside_a_module(tmp_path: Path) -> None:
    # Handlers run as another user, who must be able to read them.
    tmp_path.chmod(0o755)
    code = tmp_path / "code"
    code.mkdir(mode=0o755)
    (code / "rank").write_text(_RANK)
    (code / "rank").chmod(0o755)
    (code / "agents.py").write_text('HANDLERS = {"generation": lambda task: {"ideas": 1}}\n')
    machine = Up(tmp_path / "state", directory=code)
    programs = [f"--handler={agent}=command:./rank '{agent} fast'" for agent in ("ranking", "evolution")]
    await machine.start("--workers", "1", "--handlers", "agents", *programs)
    try:
        ids = [(await submit(machine, 1, 0, agent_type=agent))[0] for agent in ("generation", "ranking", "evolution")]
        await all_completed(machine, ids)
        results = [(await ask(machine, f"/tasks/{task_id}"))["result"] for task_id in ids]
        assert results == [{"ideas": 1}, {"speed": "ranking fast"}, {"speed": "evolution fast"}]
        # A slow machine starts more of them for the same tasks.
        workers = (await ask(machine, "/workers"))["items"]
        assert {tuple(sorted(worker["capabilities"])) for worker in workers} == {("evolution", "generation", "ranking")}
    finally:
        machine.stop()
