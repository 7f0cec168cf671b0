"""Keys that expire, are rotated, or enrol a number of workers."""

import asyncio
import time

import pytest

from app.admin.service import keyring as recognition
from app.admin.service.access import create_key, use_to_register
from app.admin.service.keyring import Keyring
from app.admin.store.keys import NewKey
from app.db.database import Database
from app.kernel.access import Role
from app.kernel.errors import KeyNotFound, Unauthenticated
from tests.admin.service.keys import is_refused, make_key, register_worker, revoke, rotate, set_clock
from tests.support.sql import execute, value


async def test_a_key_expires(database: Database, keyring: Keyring) -> None:
    async with database.transaction() as connection:
        key = NewKey(role=Role.READER, label="x", expires_in_seconds=3600)
        created = await create_key(connection, key)
    await keyring.recognise(created.text)
    await execute(database, "UPDATE keys SET expires_at = now() WHERE id = $1", created.id)
    fresh = Keyring(database)
    with pytest.raises(Unauthenticated, match="has expired"):
        await fresh.recognise(created.text)
    with pytest.raises(Unauthenticated, match="unknown or revoked"):
        await fresh.recognise(created.text + "x")


async def test_no_key_is_remembered_beyond_its_end(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.transaction() as connection:
        created = await create_key(connection, NewKey(role=Role.READER, label="x", expires_in_seconds=10))
    await keyring.recognise(created.text)
    await execute(database, "UPDATE keys SET expires_at = now() WHERE id = $1", created.id)
    later = time.monotonic() + 10.1
    set_clock(monkeypatch, later)
    await keyring.check()
    assert await is_refused(keyring, created.text)


async def test_after_a_rotation_both_secrets_are_good_for_a_while(database: Database, keyring: Keyring) -> None:
    key_id, first = await make_key(database)
    second = await rotate(database, key_id, 3600)
    assert second.split("_")[1] == key_id
    for text in (first, second):
        assert (await keyring.recognise(text)).key_id == key_id
    third = await rotate(database, key_id, 3600)
    assert await is_refused(keyring, first)
    for text in (second, third):
        await keyring.recognise(text)
    await execute(database, "UPDATE keys SET former_expires_at = now() WHERE id = $1", key_id)
    assert await is_refused(Keyring(database), second)
    fourth = await rotate(database, key_id, 0)
    assert await is_refused(keyring, third)
    await revoke(database, key_id)
    assert await is_refused(keyring, fourth)


async def test_what_is_revoked_or_expired_or_a_workers_is_not_rotated(database: Database) -> None:
    revoked, expired = [(await make_key(database))[0] for _ in range(2)]
    await revoke(database, revoked)
    await execute(database, "UPDATE keys SET expires_at = now() WHERE id = $1", expired)
    workers_own = (await register_worker(database)).key.split("_")[1]
    for key_id in (revoked, expired, workers_own, "unknown"):
        with pytest.raises(KeyNotFound):
            await rotate(database, key_id, 0)


async def test_the_use_of_a_key_is_noted_now_and_then(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, text = await make_key(database)
    await keyring.recognise(text)
    await keyring.check()
    assert await value(database, "SELECT last_used_at FROM keys WHERE id = $1", key_id) is None
    later = time.monotonic() + recognition._NOTE_SECONDS + 1
    set_clock(monkeypatch, later)
    await keyring.check()
    assert await value(database, "SELECT last_used_at FROM keys WHERE id = $1", key_id) is not None


async def _enrolment(database: Database, uses: int) -> tuple[str, str]:
    key = NewKey(role=Role.POOL, label="x", uses_left=uses, expires_in_seconds=900)
    async with database.transaction() as connection:
        created = await create_key(connection, key)
    return created.id, created.text


async def _use(database: Database, key_id: str) -> bool:
    try:
        async with database.transaction() as connection:
            assert await use_to_register(connection, key_id) is None
    except Unauthenticated:
        return False
    return True


async def test_an_enrolment_registers_as_often_as_it_says_however_many_try_at_once(
    database: Database, keyring: Keyring
) -> None:
    key_id, text = await _enrolment(database, 3)
    await keyring.recognise(text)
    assert sum(await asyncio.gather(*(_use(database, key_id) for _ in range(10)))) == 3
    assert await is_refused(Keyring(database), text)


@pytest.mark.parametrize("change", ["expires_at = now()", "revoked_at = now()"])
async def test_an_enrolment_that_is_over_registers_nobody(database: Database, change: str) -> None:
    key_id, _ = await _enrolment(database, 1)
    await execute(database, f"UPDATE keys SET {change} WHERE id = $1", key_id)
    assert not await _use(database, key_id)
