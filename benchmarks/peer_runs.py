"""Other queues on the same PostgreSQL: installed as published, each apart, and run with jobs that do nothing."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from app.postgres.configuration import choose_port
from benchmarks.chart import Level
from benchmarks.figures import Figure
from benchmarks.progress import say
from benchmarks.testbed import Testbed

_CACHE = Path(".bench/peers")
_SCRIPTS = Path(__file__).parent / "peers"
_INSTALL_SECONDS, _RUN_SECONDS, _VACUUM_SECONDS = 600, 300, 60
_LAST_WORDS = 200
# Those that they need are newer than what some systems have, and it comes from the same registry.
_NODE = "node@22"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A queue: its packages with their versions, the script that runs it with so many jobs, and what it lacks here."""

    packages: Sequence[str]
    script: str
    jobs: int
    variant: str = ""
    needs_port: bool = False
    lacking: str = ""

    @property
    def is_node(self) -> bool:
        """Whether it runs on Node.js."""
        return self.script.endswith(".mjs")

    @property
    def place(self) -> Path:
        """Directory of its own packages; those of another version have another."""
        return _CACHE.absolute() / "_".join(self.packages).replace("/", "-")


_GRAPHILE = ("graphile-worker@0.18.0",)
PEERS: Mapping[str, Peer] = {
    "graphile-worker": Peer(packages=_GRAPHILE, script="graphile_worker.mjs", jobs=20_000, variant="single"),
    "graphile-worker-batched": Peer(packages=_GRAPHILE, script="graphile_worker.mjs", jobs=100_000),
    "pg-boss": Peer(packages=("pg-boss@12.38.0",), script="pg_boss.mjs", jobs=30_000),
    "pgqueuer": Peer(packages=("pgqueuer[asyncpg]==1.6.0",), script="pgqueuer_job.py", jobs=20_000),
    "procrastinate": Peer(
        packages=("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9"), script="procrastinate_job.py", jobs=2_000
    ),
    "awa-pg": Peer(packages=("awa-pg==0.6.9",), script="awa_job.py", jobs=50_000),
    "pgque": Peer(
        packages=("pgque-py==0.2.2",),
        script="pgque_job.py",
        jobs=50_000,
        lacking="its package holds the client only; the schema is in no registry that is reached here",
    ),
    "prefect": Peer(packages=("prefect==3.9.1",), script="prefect_job.py", jobs=100, needs_port=True),
}


async def measure(
    testbed: Testbed, names: Sequence[str], rounds: int, share: float
) -> tuple[list[Figure], list[Level]]:
    """Figures of these peers, and levels for the chart; with this share of their usual numbers of jobs."""
    figures: list[Figure] = []
    levels: list[Level] = []
    for name in names:
        peer = PEERS[name]
        try:
            if peer.lacking:
                raise Unavailable(peer.lacking)
            await _install(name, peer)
            results = [await _run(testbed, name, peer, max(50, int(peer.jobs * share))) for _ in range(rounds)]
        except Unavailable as error:
            figures.append(Figure(name=name, value=None, note=str(error)))
            continue
        processed = Figure.of(f"{name}: processed", [result["process"] for result in results], "jobs/s")
        figures += [Figure.of(f"{name}: enqueued", [result["enqueue"] for result in results], "jobs/s"), processed]
        levels.append(Level(name=name, value=processed.value or 0.0))
    return figures, levels


class Unavailable(Exception):
    """A peer cannot be measured here; the message says why."""


async def _install(name: str, peer: Peer) -> None:
    mark = peer.place / "complete"
    if mark.exists():
        return
    say(f"installing {name}")
    shutil.rmtree(peer.place, ignore_errors=True)
    peer.place.mkdir(parents=True)
    if peer.is_node:
        if shutil.which("npm") is None:
            raise Unavailable("there is no npm")
        await _call("npm", "install", "--no-audit", "--no-fund", "--prefix", str(peer.place), _NODE, *peer.packages)
        for script in _SCRIPTS.glob("*.mjs"):
            (peer.place / script.name).symlink_to(script)
    else:
        await _call(sys.executable, "-m", "venv", str(peer.place))
        await _call(str(peer.place / "bin" / "python"), "-m", "pip", "install", "--quiet", *peer.packages)
    mark.touch()


async def _run(testbed: Testbed, name: str, peer: Peer, jobs: int) -> dict[str, float]:
    say(f"{name}: {jobs:,} jobs")
    database = f"peer_{name.replace('-', '_')}"
    connection = await asyncpg.connect(testbed.peer_url("postgres"))
    try:
        await connection.execute(f"CREATE DATABASE {database}")
        arguments = [testbed.peer_url(database), str(jobs), peer.variant]
        if peer.needs_port:
            arguments[2] = str(choose_port(None))
        output = await _call(*_command(peer), *arguments, seconds=_RUN_SECONDS)
        result: dict[str, float] = json.loads(output.strip().splitlines()[-1])
        return result
    finally:
        await _drop(connection, database)
        await connection.close()


async def _drop(connection: "asyncpg.Connection[asyncpg.Record]", database: str) -> None:
    """Drop the database, once no vacuum is at work there, which this role may not end."""
    async with asyncio.timeout(_VACUUM_SECONDS):
        while True:
            try:
                await connection.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
            except asyncpg.InsufficientPrivilegeError:
                await asyncio.sleep(0.5)
            else:
                return


def _command(peer: Peer) -> list[str]:
    if peer.is_node:
        return [
            str(peer.place / "node_modules" / "node" / "bin" / "node"),
            "--preserve-symlinks-main",
            "--preserve-symlinks",
            str(peer.place / peer.script),
        ]
    return [str(peer.place / "bin" / "python"), str(_SCRIPTS / peer.script)]


async def _call(*command: str, seconds: float = _INSTALL_SECONDS) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ""},
        start_new_session=True,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        raise Unavailable(f"not finished after {seconds:g} s") from None
    finally:
        # Also of what it has started itself.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if process.returncode != 0:
        last_line = (errors or output).decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
        raise Unavailable(f"ended with {process.returncode}: {last_line[0][:_LAST_WORDS]}")
    return output.decode()
