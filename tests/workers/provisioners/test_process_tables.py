"""Whose process a handle names: that of this machine, of a twin with the same name, or of this one before it began."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest

from app.workers.provisioners import local, process_tables
from app.workers.provisioners.local import LocalProvisioner
from app.workers.provisioners.process_tables import Origin, ProcessTable, own_table, seconds_since_start

_OURS = ProcessTable(machine="machine", table="table")


async def _not_told(worker_id: UUID, reason: str, error: str | None) -> None:
    raise AssertionError(reason)


@pytest.fixture
def plane(tmp_path: Path) -> LocalProvisioner:
    return LocalProvisioner(
        host="here", owner="ours", arguments=[], environment=os.environ, secrets={}, logs=tmp_path, on_exit=_not_told
    )


@pytest.mark.parametrize(
    ("marks", "origin"),
    [
        ({"machine": "machine", "table": "table"}, Origin.HERE),
        ({"table": "table"}, Origin.HERE),
        ({}, Origin.HERE),
        ({"machine": "machine", "table": "other boot"}, Origin.RESTARTED),
        ({"machine": "other", "table": "other boot"}, Origin.ELSEWHERE),
        ({"table": "other boot"}, Origin.ELSEWHERE),
    ],
)
def test_the_marks_of_a_handle_tell_its_origin(marks: dict[str, Any], origin: Origin) -> None:
    assert _OURS.origin({"pid": 1, "created": 0.0, **marks}) is origin


def test_where_nothing_is_known_of_this_machine_the_marked_are_of_others() -> None:
    nothing = ProcessTable(machine=None, table=None)
    assert nothing.marks() == {}
    assert nothing.origin({"pid": 1, **_OURS.marks()}) is Origin.ELSEWHERE
    assert nothing.origin({"pid": 1}) is Origin.HERE


def _identity(monkeypatch: pytest.MonkeyPatch, *, boot: str, namespace: str, machine: str = "m") -> ProcessTable:
    texts = {"/etc/machine-id": machine, "/proc/sys/kernel/random/boot_id": boot}
    monkeypatch.setattr(process_tables, "_text", lambda path: texts.get(path, ""))
    monkeypatch.setattr(process_tables, "_namespace", lambda: namespace)
    monkeypatch.setattr(process_tables, "_network_card", lambda: "")
    return own_table.__wrapped__()


def test_a_boot_and_a_namespace_have_a_table_each_and_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    first = _identity(monkeypatch, boot="b1", namespace="1")
    assert _identity(monkeypatch, boot="b1", namespace="1") == first
    for boot, namespace in (("b2", "1"), ("b1", "2")):
        other = _identity(monkeypatch, boot=boot, namespace=namespace)
        assert (other.machine, other.table == first.table) == (first.machine, False)
    # As in containers without a machine id: two on one kernel are no restart of each other.
    nameless = _identity(monkeypatch, boot="b1", namespace="2", machine="")
    assert (nameless.machine, nameless.origin(first.marks())) == (None, Origin.ELSEWHERE)
    assert _identity(monkeypatch, boot="", namespace="", machine="") == ProcessTable(machine=None, table=None)


def test_a_handle_of_the_former_boot_is_ours_once_its_worker_is_silent_for_longer(
    plane: LocalProvisioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then it may be one of a machine that was cloned from this one, and lives."""
    monkeypatch.setattr(local, "own_table", lambda: _OURS)
    monkeypatch.setattr(local, "seconds_since_start", lambda: 100.0)
    former = {"pid": os.getpid(), "created": 0.0, "machine": "machine", "table": "former boot"}
    assert plane.is_foreign(former, 0)
    assert plane.is_foreign(former, 99.0)
    assert not plane.is_foreign(former, 101.0)
    assert not plane.is_running(former)
    assert plane.is_foreign({**former, "machine": "other"}, 1e9)
    assert not plane.is_foreign({**former, "table": "table"}, 0)


def test_a_twin_that_lives_is_told_of_once(
    plane: LocalProvisioner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(local, "seconds_since_start", lambda: 100.0)
    for seconds in (None, 101.0):
        plane.tell_of_twin({"pid": 1}, seconds)
    assert caplog.messages == []
    for _ in range(2):
        plane.tell_of_twin({"pid": 1}, 3.0)
    assert caplog.messages == ["another machine keeps the pool of host here: set CONVENER_HOST_NAME on one of them"]


async def test_a_handle_of_another_machine_is_neither_watched_nor_ended(plane: LocalProvisioner) -> None:
    """Also where its pid and time of creation are those of a process of ours."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as child:
        created = psutil.Process(child.pid).create_time()
        handle = {"pid": child.pid, "created": created, "machine": "other", "table": "other"}
        worker_id = uuid4()
        plane.adopt(worker_id, handle)
        plane.stop(worker_id, handle, 0.0)
        await asyncio.sleep(0.05)
        assert child.poll() is None
        plane.stop(worker_id, {**handle, **own_table().marks()}, 5.0)
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(child.wait) == -signal.SIGTERM


def test_this_machine_is_known_and_has_begun() -> None:
    assert own_table().marks().keys() >= {"table"}
    assert seconds_since_start() > 0
