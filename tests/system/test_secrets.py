"""Secrets of `convener up` as another program of the same user looks for them: in every process that it has."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.system.conftest import Up, about_up
from tests.system.supervising import all_completed, ask, submit

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="by the means of Linux")]

_PASSWORD = "hidden-in-the-environment"
# Prints what could be read of each process, without the rights that root has beyond those of its files.
_LOOK = """
import json, os, sys
seen = {}
for pid in json.loads(sys.argv[1]):
    seen[pid] = {}
    for name in ("environ", "cmdline", "maps", "auxv"):
        try:
            seen[pid][name] = open(f"/proc/{pid}/{name}", "rb").read().decode(errors="replace")
        except OSError:
            pass
    try:
        seen[pid]["fd"] = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        pass
    try:
        open(f"/proc/{pid}/mem", "rb").close()
        seen[pid]["mem"] = True
    except OSError:
        pass
print(json.dumps(seen))
"""


def _look(pids: list[int]) -> dict[int, dict[str, str]]:
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if powerless and shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    command = [*powerless, sys.executable, "-c", _LOOK, json.dumps(pids)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return {int(pid): parts for pid, parts in json.loads(done.stdout).items()}


@about_up
async def test_no_process_shows_a_secret_to_another_of_its_user(tmp_path: Path) -> None:
    up = Up(
        tmp_path / "state",
        CONVENER_WEBHOOK_URL="",
        CONVENER_WEBHOOK_SECRET=_PASSWORD * 2,
        CONVENER_LLM_KEY=_PASSWORD,
    )
    await up.start("--workers", "1")
    try:
        await all_completed(up, await submit(up, 2, 0.1))
        assert up.child is not None
        secrets = [path.read_text().strip() for path in up.state.glob("*.key")]
        secrets += [_PASSWORD, urlsplit(up.database_url).password or "none"]
        assert len(secrets) == 6
        processes = {found.pid: " ".join(found.cmdline()) for found in up.processes()}
        kinds = ("app.main", "app.background", "worker_agent", "postgres -D")
        assert all(any(kind in command for command in processes.values()) for kind in kinds)
        everybody = {pid: Path(f"/proc/{pid}/environ").read_bytes() for pid in processes} if os.geteuid() == 0 else {}
        seen = _look([*processes, up.child.pid])
        for pid, parts in seen.items():
            shown = json.dumps(parts) + everybody.get(pid, b"").decode(errors="replace")
            assert not [secret for secret in secrets if secret in shown], processes.get(pid, "up")
            is_ours = re.search(r"-m (app|worker_agent)\b", parts["cmdline"].replace("\0", " "))
            assert not is_ours or set(parts) == {"cmdline"}, (parts["cmdline"], sorted(parts))
    finally:
        assert up.stop() == 0


@about_up
async def test_what_up_leaves_can_be_read_by_its_owner_only(tmp_path: Path) -> None:
    state = tmp_path / "state"
    up = Up(state, has_cluster=False)
    (state / "logs" / "workers").mkdir(parents=True)
    state.chmod(0o755)
    for name in ("operator.key", "logs/api.log", "logs/workers/old.log"):
        (state / name).touch()
        (state / name).chmod(0o644)
    await up.start("--workers", "1")
    try:
        await all_completed(up, await submit(up, 1, 0.1))
        own = [state, *(path for path in state.rglob("*") if "data" not in path.parts and not path.is_socket())]
        assert {str(path): oct(path.stat().st_mode) for path in own if path.stat().st_mode & 0o077} == {}
    finally:
        assert up.stop() == 0


async def test_a_restarted_program_gets_its_secrets_again(up: Up) -> None:
    await up.start("--workers", "1")
    for module in ("app.main", "app.background"):
        (await up.running(module)).kill()
    await ask(up, "/tasks", limit="1")  # until it answers again
    await all_completed(up, await submit(up, 2, 0.1))
    assert psutil.pid_exists((await up.running("app.main")).pid)
