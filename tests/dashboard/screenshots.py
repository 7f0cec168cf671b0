"""Pictures of the dashboard for the documents, of a real service with its workers: `make screenshots`."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.dashboard.chromium import Theme, log_in, opened
from tests.support.ports import free_port

_PATIENCE = 120
_AGENTS = ("generation", "reflection", "ranking", "evolution", "proximity", "meta_review")


def main(folder: Path) -> None:
    """Start everything in a folder of its own, look at it, and end it."""
    state, port = Path(tempfile.mkdtemp(prefix="convener-")), free_port()
    environment = os.environ | {"CONVENER_STATE_DIRECTORY": str(state)}
    words = [sys.executable, "-m", "app.cli", "up", "--port", str(port), "--workers", "3"]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        # It is written once everything answers.
        for _ in range(_PATIENCE):
            if (state / "url").exists():
                break
            time.sleep(1)
        asyncio.run(_look(f"http://127.0.0.1:{port}", (state / "operator.key").read_text().strip(), folder))
    finally:
        process.terminate()
        process.wait(timeout=_PATIENCE)
        shutil.rmtree(state, ignore_errors=True)


async def _look(address: str, key: str, folder: Path) -> None:
    async with httpx.AsyncClient(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        await client.post("/goals", json={"id": "kepler", "objective": "Rediscover Kepler's third law"})
        await client.post("/queues/proximity/pause", json={"reason": "its clusters look odd"})
        tasks = [
            {"agent_type": agent, "goal_id": "kepler", "payload": {"topic": "orbits", "sleep_seconds": 4}}
            for agent in _AGENTS * 6
        ]
        answer = await client.post("/tasks/batch", json={"tasks": tasks})
        waiting = next(t["id"] for t, body in zip(answer.json()["tasks"], tasks, strict=True) if "prox" in str(body))
    folder.mkdir(parents=True, exist_ok=True)
    await asyncio.sleep(25)  # so that there is something to see
    async with opened(address) as page:
        await page.set_viewport_size({"width": 1280, "height": 860})
        await log_in(page, key)
        shots: list[tuple[str, Theme, str]] = [
            ("now-light", "light", ""),
            ("now-dark", "dark", ""),
            ("task", "light", f"/tasks/{waiting}"),
            ("configuration", "light", "/config"),
        ]
        for name, theme, path in shots:
            await page.emulate_media(color_scheme=theme)
            await page.goto(f"/dashboard{path}")
            await page.wait_for_timeout(1500)
            await page.screenshot(path=folder / f"dashboard-{name}.png")


if __name__ == "__main__":
    main(Path(re.sub(r"/$", "", sys.argv[1])))
