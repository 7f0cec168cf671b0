"""Keys: recognised, remembered for a few seconds, and revoked everywhere."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from app.admin.service import access
from app.admin.service.access import Keyring, create_key, revoke_key
from app.admin.store import keys
from app.db import hot_path
from app.db.database import Database
from app.kernel.access import NAMESPACED_ROLES, Principal, Role
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable, KeyNotFound, Unauthenticated
from app.workers.service import workers
from tests.support.factories import registration
from tests.support.service import KEY_ROLES
from tests.support.sql import execute, until, value


async def _key(database: Database, role: Role = Role.SUPERVISOR) -> tuple[str, str]:
    async with database.transaction() as connection:
        return await create_key(connection, role, "for a test")


async def _revoke(database: Database, key_id: str) -> None:
    async with database.transaction() as connection:
        await revoke_key(connection, key_id)


Lookups = list[set[str]]


@pytest.fixture
def keyring(database: Database) -> Keyring:
    return Keyring(database)


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The ids that were looked up in the database, a set for each statement."""
    seen: list[set[str]] = []
    read = keys.read

    async def counted(connection: Any, key_ids: Sequence[str]) -> Any:
        seen.append(set(key_ids))
        return await read(connection, key_ids)

    monkeypatch.setattr(keys, "read", counted)
    return seen


@pytest.mark.parametrize("role", KEY_ROLES)
async def test_a_key_is_recognised(database: Database, keyring: Keyring, role: Role) -> None:
    key_id, text = await _key(database, role)
    namespace = "default" if role in NAMESPACED_ROLES else None
    assert await keyring.recognise(text) == Principal(key_id=key_id, role=role, namespace=namespace)


async def test_the_first_key_of_another_namespace_confines_those_of_default(
    database: Database, keyring: Keyring
) -> None:
    _, text = await _key(database, Role.SUPERVISOR)
    assert not (await keyring.recognise(text)).is_confined
    async with database.transaction() as connection:
        await create_key(connection, Role.READER, "for a test", namespace="lab-a")

    async def confined() -> bool:
        return (await keyring.recognise(text)).is_confined

    await until(confined)


async def test_a_workers_key_says_who_it_is_and_what_it_can_run(database: Database, keyring: Keyring) -> None:
    async with database.transaction() as connection:
        said = registration(capabilities=["ranking", "evolution"])
        registered = await workers.register(connection, said, None)
    principal = await keyring.recognise(registered.key)
    assert (principal.role, principal.worker_id) == (Role.WORKER, registered.worker_id)
    assert principal.capabilities == {AgentType.RANKING, AgentType.EVOLUTION}


async def test_the_secret_is_not_kept(database: Database) -> None:
    _, text = await _key(database)
    row = await value(database, "SELECT to_jsonb(keys)::text FROM keys")
    assert text.split("_", 2)[2] not in row


@pytest.mark.parametrize("wrong", ["", "x", "cvn_only", "cvn__x", "cvn_unknown_secret", "Bearer cvn_a_b"])
async def test_what_is_no_key_is_refused(keyring: Keyring, wrong: str) -> None:
    with pytest.raises(Unauthenticated):
        await keyring.recognise(wrong)


async def test_the_right_id_with_a_wrong_secret_is_refused(database: Database, keyring: Keyring) -> None:
    _, text = await _key(database)
    await keyring.recognise(text)
    with pytest.raises(Unauthenticated):
        await keyring.recognise(text[:-1] + ("x" if text[-1] != "x" else "y"))


async def test_a_key_is_looked_up_once_in_a_while(
    database: Database, keyring: Keyring, lookups: list[set[str]]
) -> None:
    key_id, text = await _key(database)
    for _ in range(5):
        await keyring.recognise(text)
    assert lookups == [{key_id}]


async def test_calls_at_once_share_one_look_up(database: Database, keyring: Keyring, lookups: Lookups) -> None:
    key_id, text = await _key(database)
    await asyncio.gather(*(keyring.recognise(text) for _ in range(20)))
    assert lookups == [{key_id}]


async def test_a_caller_that_gives_up_does_not_end_the_look_up_of_others(database: Database, keyring: Keyring) -> None:
    key_id, text = await _key(database)
    gone, patient = (asyncio.ensure_future(keyring.recognise(text)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await patient).key_id == key_id


async def test_a_revoked_key_is_refused_at_once_where_the_news_is_heard(
    database: Database, keyring: Keyring, replica: Database
) -> None:
    elsewhere = Keyring(replica)
    key_id, text = await _key(database)
    await keyring.recognise(text)
    await elsewhere.recognise(text)
    await _revoke(database, key_id)
    with pytest.raises(Unauthenticated):
        await keyring.recognise(text)
    heard = asyncio.Event()
    replica.announcer.subscribe(lambda topics: heard.set() if "keys" in topics else None)

    async def refused() -> bool:
        try:
            await elsewhere.recognise(text)
        except Unauthenticated:
            return True
        return False

    # Well before the memory of the other process would run out by itself.
    await until(refused, within=access._TRUST_SECONDS / 2)


async def test_a_revoked_key_is_forgotten_in_a_while_where_no_news_came(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, text = await _key(database)
    await keyring.recognise(text)
    await execute(database, "UPDATE keys SET revoked_at = now() WHERE id = $1", key_id)
    assert (await keyring.recognise(text)).key_id == key_id
    later = time.monotonic() + access._TRUST_SECONDS + 0.1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(Unauthenticated):
        await keyring.recognise(text)


async def test_revoking_twice_is_fine_and_an_unknown_key_is_told(database: Database) -> None:
    key_id, _ = await _key(database)
    await _revoke(database, key_id)
    first = await value(database, "SELECT revoked_at FROM keys")
    await _revoke(database, key_id)
    assert await value(database, "SELECT revoked_at FROM keys") == first
    with pytest.raises(KeyNotFound):
        await _revoke(database, "unknown")


async def test_the_memory_is_bounded(database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_MAX_REMEMBERED", 3)
    for _ in range(8):
        await keyring.recognise((await _key(database))[1])
        assert len(keyring._principals) <= 3


async def test_a_key_that_was_recognised_goes_on_while_the_database_is_away(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = [(await _key(database, Role.MONITOR))[1] for _ in range(2)]
    await keyring.recognise(key)

    async def fail(*_: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(hot_path, "run", fail)
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert (await keyring.recognise(key)).role is Role.MONITOR
    with pytest.raises(DatabaseUnavailable):
        await keyring.recognise(other)
