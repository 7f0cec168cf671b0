"""The worker's own distribution: it runs tasks where nothing is installed but it and what it names, without `app`."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from importlib.metadata import distribution, requires
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from packaging.requirements import Requirement

from app.kernel.access import Role
from tests.system.conftest import Api

_ROOT = Path(__file__).parents[2]
_PROJECT = _ROOT / "clients" / "worker"


def _normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def _with_all_they_need(requirements: list[Requirement]) -> set[str]:
    """Names of the distributions, and of those that they need in turn, on this system."""
    names: set[str] = set()
    while requirements:
        wanted = requirements.pop()
        extras = wanted.extras or {""}
        if _normal(wanted.name) in names:
            continue
        names.add(_normal(wanted.name))
        more = [Requirement(line) for line in requires(wanted.name) or []]
        requirements += [r for r in more if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return names


@pytest.fixture(scope="module")
def alone() -> Iterator[Path]:
    """An environment with the built distribution, and of our packages only those that it needs."""
    # Outside of pytest's directories, which are closed to the user that handlers of root run as.
    directory = Path(tempfile.mkdtemp(prefix="convener-worker-"))
    directory.chmod(0o755)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    try:
        build = [
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "--wheel-dir",
            str(directory),
            str(_PROJECT),
        ]
        subprocess.run([*pip, *build], check=True)
        (wheel,) = directory.glob("convener_worker-*.whl")
        environment = directory / "environment"
        venv.create(environment, symlinks=True)
        python = str(environment / "bin" / "python")
        subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", str(wheel)], check=True)
        with zipfile.ZipFile(wheel) as files:
            (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = Parser().parsestr(files.read(name).decode())
        needed = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
        own = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
        for package in _with_all_they_need([r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]):
            _copy(package, own)
        yield environment
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _copy(package: str, to: Path) -> None:
    for file in distribution(package).files or []:
        if ".." not in file.parts and "__pycache__" not in file.parts:
            (to / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), to / file)


@pytest.mark.slow
async def test_a_worker_runs_a_task_with_nothing_but_what_it_needs(alone: Path, api: Api, tmp_path: Path) -> None:
    listed = subprocess.run(
        [alone / "bin" / "python", "-c", _LIST], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    names, has_app = json.loads(listed.stdout)
    few = {"anyio", "certifi", "h11", "httpcore", "httpx", "idna", "psutil", "typing-extensions"}
    assert {_normal(name) for name in names} <= {"convener-worker", *few}
    assert not has_app
    command = [str(alone / "bin" / "convener-worker"), "--url", api.url, "--handlers", "examples.echo", "--grace", "1"]
    environment = {"PATH": "/usr/bin:/bin", "CONVENER_KEY": api.keys[Role.POOL]}
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(command, env=environment, cwd="/", stdout=output, stderr=output)
    try:
        async with httpx.AsyncClient(base_url=api.url, trust_env=False) as client:
            task = {"id": str(uuid4()), "agent_type": "ranking", "payload": {"x": 1}}
            await client.post("/tasks", json=task, headers=api.bearer(Role.SUPERVISOR))
            async with asyncio.timeout(100):
                while (done := await _state(client, api, task["id"]))["state"] != "completed":
                    assert worker.poll() is None, log.read_text()
                    await asyncio.sleep(0.1)
        assert done["result"]
    finally:
        worker.terminate()
        worker.wait(20)


async def _state(client: httpx.AsyncClient, api: Api, task_id: object) -> dict[str, object]:
    state: dict[str, object] = (await client.get(f"/tasks/{task_id}", headers=api.bearer(Role.OPERATOR))).json()
    return state


_LIST = """
import importlib.metadata, importlib.util, json
names = [distribution.name for distribution in importlib.metadata.distributions()]
print(json.dumps([names, importlib.util.find_spec("app") is not None]))
"""


@pytest.mark.slow
def test_what_a_language_model_needs_is_named_where_it_is_missing(alone: Path) -> None:
    command = [str(alone / "bin" / "convener-worker"), "--url", "http://127.0.0.1:1", "--handlers", "examples.echo"]
    environment = {"CONVENER_KEY": "x", "CONVENER_LLM_URL": "http://127.0.0.1:1/v1", "CONVENER_LLM_MODELS": "m"}
    outcome = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    assert outcome.returncode == 2
    assert "starlette and uvicorn: install 'convener-worker[llm]'" in outcome.stderr


def test_the_lock_of_the_image_is_what_the_distribution_needs_as_the_service_has_it() -> None:
    project = tomllib.loads((_PROJECT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    locks = {name: (_ROOT / "requirements" / f"{name}.txt").read_text().splitlines() for name in ("run", "worker")}
    pinned = {_normal(line.partition("==")[0]) for line in locks["worker"] if line[0].isalpha()}
    assert pinned == _with_all_they_need([Requirement(line) for line in wanted])
    assert {line.rstrip(" \\") for line in locks["worker"]} <= {line.rstrip(" \\") for line in locks["run"]}


def test_both_distributions_ask_for_the_same_versions() -> None:
    service = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    worker = tomllib.loads((_PROJECT / "pyproject.toml").read_text())["project"]
    assert worker["version"] == service["version"]
    both = {Requirement(line).name: line for line in service["dependencies"]}
    assert all(both[Requirement(line).name] == line for line in worker["dependencies"])
