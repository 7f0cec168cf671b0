"""What processes know of the configuration: cheap while it stands, of the moment when it changes."""

import asyncio
import json
from dataclasses import replace

import pytest

from app.admin.rules.config import ConfigAction, as_json
from app.admin.service import config as service
from app.admin.service.config import ChangeRequest, CurrentConfig
from app.admin.store import audit as audit_store
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from tests.support.sql import until


async def _widen(database: Database, version: int, most: int) -> None:
    async with database.transaction() as connection:
        base = await service.base(connection, Mode.PRODUCTION, version)
        wide = replace(base.document, worker_pool=replace(base.document.worker_pool, max_workers=most))
        order = ChangeRequest(expected_version=version, by="me", reason="test")
        await service.change(connection, Mode.PRODUCTION, order, ConfigAction.SET, wide)


async def test_it_is_read_once_for_all_who_ask(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    config, reads = CurrentConfig(database, Mode.PRODUCTION), 0
    original = service.current

    async def counted(*arguments: object) -> object:
        nonlocal reads
        reads += 1
        return await original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(service, "current", counted)
    found = await asyncio.gather(*(config.read() for _ in range(50)))
    assert len({id(one) for one in found}) == 1
    assert reads == 1


async def test_a_change_is_known_at_once_here_and_soon_elsewhere(database: Database, replica: Database) -> None:
    here, there = CurrentConfig(database, Mode.PRODUCTION), CurrentConfig(replica, Mode.DEVELOPMENT)
    for config in (here, there):
        assert (await config.read()).document.worker_pool.max_workers == 1000
    await _widen(database, 1, 900)
    assert (await here.read()).document.worker_pool.max_workers == 900

    async def known() -> bool:
        return (await there.read()).version == 2

    await until(known)


async def test_whoever_hears_nothing_finds_out_in_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = Database(database.url)
    monkeypatch.setattr(service, "_TRUST_SECONDS", 0.2)
    config = CurrentConfig(deaf, Mode.PRODUCTION)
    assert (await config.read()).version == 1
    await _widen(database, 1, 900)

    async def known() -> bool:
        return (await config.read()).version == 2

    await until(known)
    await deaf.close()


async def test_what_is_announced_while_it_is_being_read_is_read_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, original = CurrentConfig(database, Mode.PRODUCTION), service.current

    async def overtaken(connection: object, initial: Mode) -> object:
        found = await original(connection, initial)  # type: ignore[arg-type]
        monkeypatch.setattr(service, "current", original)
        await _widen(database, found.version, 900)
        return found

    await config.read()
    await _widen(database, 1, 800)
    monkeypatch.setattr(service, "current", overtaken)
    assert (await config.read()).version == 2
    assert (await config.read()).version == 3


async def test_weights_are_effective_ones(database: Database) -> None:
    config = CurrentConfig(database, Mode.PRODUCTION)
    weights = (await config.read()).weights
    assert set(weights) == set(AgentType)
    assert sum(weights.values()) == pytest.approx(1)


async def test_every_change_is_audited_in_its_own_transaction(database: Database) -> None:
    await _widen(database, 1, 900)
    order = ChangeRequest(expected_version=2, by="you", reason="never mind")
    async with database.engine.connect() as given_up:
        await service.switch(given_up, Mode.PRODUCTION, order, Mode.DEVELOPMENT)
        await given_up.rollback()
    async with database.transaction() as connection:
        entries = (await audit_store.page(connection, below=99, action=None, limit=9)).items
        version = await service.version(connection, 2)
    deed = entries[0]
    assert [entry.action for entry in entries] == ["config.set", "config.initial"]
    assert (deed.by, deed.reason, json.loads(deed.before)["version"]) == ("me", "test", 1)
    assert json.loads(deed.after) == {"version": 2, "mode": "production", **as_json(version.document)}
