"""The Dockerfile fits the repository: what it copies is there, what it runs exists, and what it is told to be it is."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from app.cli.commands import build
from app.db.database import Database
from app.health.api import probes
from app.loops.schedule import Job
from app.settings import Settings
from tests.docker.images import DOCKERFILE, REPOSITORY, copied, effective, environment, exec_form, stages
from tests.support.runner import running
from tests.support.sql import until

TARGETS = ("api", "loops", "worker")
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def allowed() -> set[str]:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in lines, "the list must begin with nothing"
    return {line.removeprefix("!") for line in lines if line.startswith("!")}


@contextmanager
def answering(status: int) -> Iterator[int]:
    """The port of a server that answers /livez with `status` and everything else with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, *_: Any, **__: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def health_check(port: int) -> int:
    command = effective("api", "HEALTHCHECK").partition("CMD ")[2]
    program, *arguments = [word.replace("8765", str(port)) for word in exec_form(command)]
    assert program == "python"
    return subprocess.run([sys.executable, *arguments], capture_output=True, timeout=60).returncode


def test_the_linter_has_nothing_to_say() -> None:
    program = shutil.which("hadolint", path=str(REPOSITORY / ".venv" / "bin")) or shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not made for this system")
    verdict = subprocess.run([program, DOCKERFILE], capture_output=True, text=True)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_every_source_exists_and_reaches_the_build() -> None:
    missing = [source for source in copied() if not (REPOSITORY / source).exists()]
    assert not missing
    assert copied() == allowed()


def test_all_that_the_package_is_built_of_is_copied() -> None:
    needed = {*PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], "pyproject.toml"}
    needed |= {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert needed <= copied()


def test_every_base_is_a_stage_above_or_an_image_that_is_pinned() -> None:
    above: set[str] = set()
    assert "ARG PYTHON_IMAGE\n" in DOCKERFILE.read_text(), "without a default, which would not be pinned"
    for stage in stages().values():
        assert stage.base in above or stage.base == "${PYTHON_IMAGE}", stage.base
        above.add(stage.name)
    sources = re.findall(r"--from=(\S+)", DOCKERFILE.read_text())
    assert set(sources) <= above


def test_the_lock_is_held_and_the_bundled_postgresql_is_one_of_its_packages() -> None:
    assert "--require-hashes -r requirements/run.txt" in " ".join(stages()["build"].arguments("RUN"))
    unwanted = re.findall(r"pip uninstall --yes (\S+)", " ".join(stages()["build-small"].arguments("RUN")))
    assert unwanted
    locked = (REPOSITORY / "requirements" / "run.txt").read_text()
    assert all(f"\n{name}==" in locked for name in unwanted)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_without_privileges_and_can_be_stopped(target: str) -> None:
    assert int(effective(target, "USER").partition(":")[0]) > 0
    assert effective(target, "STOPSIGNAL") == "SIGTERM"


def test_entrypoints_are_programs_of_this_project_and_no_shell_stands_before_them() -> None:
    entrypoints = {target: exec_form(effective(target, "ENTRYPOINT")) for target in TARGETS}
    assert entrypoints == {"api": ["convener", "api"], "loops": ["convener", "loops"], "worker": ["convener-worker"]}
    assert {words[0] for words in entrypoints.values()} <= set(PROJECT["project"]["scripts"])
    command: Any = get_command(build())
    known = command.list_commands(command.make_context("convener", [], resilient_parsing=True))
    assert {"api", "loops"} <= set(known)


@pytest.mark.parametrize("target", TARGETS)
def test_variables_are_settings_with_values_that_can_be_used(target: str) -> None:
    ours = {name: value for name, value in environment(target).items() if name.startswith("CONVENER_")}
    assert {name.removeprefix("CONVENER_").lower() for name in ours} <= set(Settings.model_fields)
    settings = Settings.from_environment(ours)
    assert settings.host == ("0.0.0.0" if target == "api" else "127.0.0.1")
    assert settings.pool_size == 0 or target != "loops"


def test_the_health_check_asks_the_port_that_is_served_for_a_path_that_exists() -> None:
    port = str(Settings().port)
    assert effective("api", "EXPOSE") == port
    assert f"'127.0.0.1', {port}," in effective("api", "HEALTHCHECK")
    assert "/livez" in {getattr(route, "path", None) for route in probes.router.routes}


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (404, False), (503, False)])
def test_the_health_check_believes_200_only(status: int, healthy: bool) -> None:
    with answering(status) as port:
        assert (health_check(port) == 0) is healthy


async def test_the_loops_are_healthy_while_their_duties_keep_pace(database: Database, tmp_path: Path) -> None:
    """The check of the image, with the file elsewhere, before the loops run, while they do, and when they hang."""
    file = tmp_path / "loops.alive"
    command = effective("loops", "HEALTHCHECK").partition("CMD ")[2]
    words = [word.replace(environment("loops")["CONVENER_LIVENESS_FILE"], str(file)) for word in exec_form(command)]

    async def is_healthy() -> bool:
        check = await asyncio.create_subprocess_exec(sys.executable, *words[1:], stderr=asyncio.subprocess.DEVNULL)
        return await check.wait() == 0

    assert not await is_healthy()
    async with running(database, Job(name="idle", seconds=1, run=lambda _: asyncio.sleep(0)), liveness_file=file):
        await until(is_healthy)
    os.utime(file, (time.time() - 20,) * 2)
    assert not await is_healthy()


def test_nobody_who_answers_is_not_healthy() -> None:
    with answering(200) as port:
        pass
    assert health_check(port) != 0
