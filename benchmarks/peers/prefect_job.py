"""Prefect's server, the same kind of service: flow runs made and taken through their states over HTTP, 32 at once."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time

import httpx
from timing import report

_AT_ONCE = 32


async def main(url, count, port, home):
    variables = {
        "PREFECT_API_DATABASE_CONNECTION_URL": url.replace("postgresql://", "postgresql+asyncpg://"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_HOME": home,
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, **variables}
    server = await asyncio.create_subprocess_exec(*command, "--no-ui", env=environment, stdout=subprocess.DEVNULL)
    try:
        limits = httpx.Limits(max_connections=_AT_ONCE)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/api", timeout=60, limits=limits) as client:
            await _until_ready(client, server)
            flow = (await client.post("/flows/", json={"name": "bench"})).raise_for_status().json()["id"]
            body = {"name": "bench", "flow_id": flow}
            deployment = (await client.post("/deployments/", json=body)).raise_for_status().json()["id"]

            async def create(_):
                path = f"/deployments/{deployment}/create_flow_run"
                return (await client.post(path, json={})).raise_for_status().json()["id"]

            async def take_through(run):
                for state in ("PENDING", "RUNNING", "COMPLETED"):
                    body = {"state": {"type": state}}
                    (await client.post(f"/flow_runs/{run}/set_state", json=body)).raise_for_status()

            runs, enqueue = await _timed(create, range(count))
            _, process = await _timed(take_through, runs)
            report(enqueue, process)
    finally:
        server.terminate()
        await server.wait()


async def _until_ready(client, server):
    while server.returncode is None:
        try:
            (await client.get("/health")).raise_for_status()
        except httpx.HTTPError:
            await asyncio.sleep(0.2)
        else:
            return
    raise SystemExit("the server of Prefect did not start")


async def _timed(call, items):
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(item):
        async with turns:
            return await call(item)

    start_time = time.perf_counter()
    answers = await asyncio.gather(*map(one, items))
    return answers, len(answers) / (time.perf_counter() - start_time)


with tempfile.TemporaryDirectory() as home:
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), home))
