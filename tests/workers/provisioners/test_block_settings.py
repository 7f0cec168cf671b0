"""The engine of blocks as the settings describe it: what a job is told."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from app.workers.provisioners.block_settings import UnusableBlocks, block_engine, check_blocks
from app.workers.provisioners.scheduler import JobRequest
from app.workers.provisioners.slurm import Slurm


async def script(monkeypatch: pytest.MonkeyPatch, place: Path, **settings: Any) -> str:
    """The script of the job of the first block."""
    requests: list[JobRequest] = []

    async def submit(self: Slurm, request: JobRequest) -> str:
        requests.append(request)
        return "1"

    async def jobs(self: Slurm) -> list[Any]:
        return []

    monkeypatch.setattr(Slurm, "submit", submit)
    monkeypatch.setattr(Slurm, "jobs", jobs)
    every = {"provisioner": "slurm", "host_name": "lab", "state_directory": place, **settings}
    engine = block_engine(Settings.model_validate(every), None, {})  # type: ignore[arg-type]
    await engine.scale(await engine.state(fresh=True), 1, [])
    return requests[0].script


async def test_handlers_see_the_keys_of_no_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    words = shlex.split(await script(monkeypatch, tmp_path, block_directory=shared))
    assert words[words.index("--hide") :] == ["--hide", str(shared / "lab")]


async def test_workers_run_programs_as_handlers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    handler = "ranking=command:./rank '--fast x'"
    words = shlex.split(await script(monkeypatch, tmp_path, worker_handlers="agents", worker_handler=(handler,)))
    place = words.index("--handlers")
    assert words[place : place + 4] == ["--handlers", "agents", "--handler", handler]


async def test_workers_keep_the_gpus_that_the_setting_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise tasks that ask for one wait for ever beside a block that has some."""
    assert " -- --gpus 2 --labels " in await script(monkeypatch, tmp_path, worker_gpus=2)
    assert "--gpus" not in await script(monkeypatch, tmp_path)


@pytest.mark.parametrize("url", ["control:8765", "ftp://control", "https://", "https://user:word@control:8765", " "])
def test_an_address_for_nodes_that_is_none_is_refused_at_the_start(url: str) -> None:
    """Each job would end with it at once, and its log lies where the job ran."""
    with pytest.raises(UnusableBlocks, match=r"^CONVENER_BLOCK_URL: .* is not an address like https://host:8765"):
        check_blocks(Settings.model_validate({"provisioner": "slurm", "block_url": url}))
    check_blocks(Settings.model_validate({"provisioner": "slurm", "block_url": "http://control:8765"}))
