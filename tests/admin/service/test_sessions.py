"""Sessions of browsers: they end with the secret that they were opened with, and everywhere."""

import asyncio
import time
from typing import Any

import pytest
from sqlalchemy import text

from app.admin.service import keyring as recognition
from app.admin.service import sessions
from app.admin.service.access import rotate_key
from app.admin.service.keyring import Keyring
from app.admin.store import sessions as store
from app.db.database import Database
from tests.admin.service.keys import is_refused, make_key, rotate, set_clock
from tests.support.sql import execute, until_blocked, value


async def _opened(database: Database, key: str) -> str:
    async with database.transaction() as connection:
        return await sessions.open_session(connection, *key.split("_", 2)[1:])


async def test_a_session_that_has_ended_is_refused_within_a_second_where_no_news_came(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await _opened(database, (await make_key(database))[1])
    await keyring.recognise(session)
    await execute(database, "DELETE FROM sessions")
    later = time.monotonic() + recognition._TRUST_SECONDS + 0.1
    set_clock(monkeypatch, later)
    await keyring.check()
    assert await is_refused(keyring, session)


async def test_a_session_that_a_former_secret_opens_ends_with_that_secret(database: Database) -> None:
    key_id, first = await make_key(database)
    second = await rotate(database, key_id, 3600)
    former, current = await _opened(database, first), await _opened(database, second)
    await execute(database, "UPDATE keys SET former_expires_at = now()")
    await execute(database, "UPDATE sessions SET expires_at = expires_at - interval '3600 s'")
    assert await is_refused(Keyring(database), former)
    assert not await is_refused(Keyring(database), current)


@pytest.mark.parametrize("was_former", [False, True])
async def test_a_session_of_the_secret_before_the_former_one_has_ended(database: Database, was_former: bool) -> None:
    key_id, first = await make_key(database)
    early = await _opened(database, first)
    second = await rotate(database, key_id, 3600)
    oldest = await _opened(database, first) if was_former else early
    former = await _opened(database, second)
    await rotate(database, key_id, 3600)
    assert await is_refused(Keyring(database), oldest)
    assert not await is_refused(Keyring(database), former)


async def test_a_rotation_that_waited_for_a_session_to_be_opened_ends_that_too(database: Database) -> None:
    key_id, first = await make_key(database)
    async with database.transaction() as late:
        await late.execute(text("SELECT now()"))
        session = await _opened(database, first)
        await rotate_key(late, key_id, overlap_seconds=0, expires_in_seconds=None, by="me")
    assert await is_refused(Keyring(database), session)


@pytest.mark.parametrize("is_link", [False, True])
async def test_a_rotation_and_a_session_that_is_being_opened_do_not_wait_in_a_circle(
    database: Database, monkeypatch: pytest.MonkeyPatch, is_link: bool
) -> None:
    key_id, first = await make_key(database)
    await _opened(database, first)
    await execute(database, "UPDATE sessions SET expires_at = now()")
    async with database.transaction() as connection:
        link = await sessions.create_link(connection, key_id) if is_link else ""
    second = await rotate(database, key_id, 3600)
    insert, rotations = store.insert, []

    async def insert_beside_a_rotation(*values: Any, **others: Any) -> None:
        rotations.append(asyncio.create_task(rotate(database, key_id, 3600)))
        await until_blocked(database)
        await insert(*values, **others)

    monkeypatch.setattr(store, "insert", insert_beside_a_rotation)
    async with database.transaction() as connection:
        if is_link:
            session = await sessions.open_by_link(connection, link)
        else:
            session = await sessions.open_session(connection, *second.split("_", 2)[1:])
    await rotations[0]
    assert await is_refused(Keyring(database), session) == is_link


async def test_a_session_is_good_also_where_the_clock_was_set_back_since_the_rotation(database: Database) -> None:
    key_id, _ = await make_key(database)
    second = await rotate(database, key_id, 0)
    await execute(database, "UPDATE keys SET rotated_at = now() + interval '1 h', former_expires_at = now()")
    assert not await is_refused(Keyring(database), await _opened(database, second))


async def test_a_secret_that_was_taken_from_a_key_a_moment_ago_opens_nothing(database: Database) -> None:
    key_id, first = await make_key(database)
    await rotate(database, key_id, 0)
    # Another process may still believe it.
    assert await is_refused(Keyring(database), await _opened(database, first))


async def test_what_a_link_of_before_a_rotation_opens_ends_with_the_former_secret(database: Database) -> None:
    key_id, _ = await make_key(database)
    async with database.transaction() as connection:
        link = await sessions.create_link(connection, key_id)
    await rotate(database, key_id, 0)
    async with database.transaction() as connection:
        session = await sessions.open_by_link(connection, link)
    assert await value(database, "SELECT count(*) FROM sessions") == 1
    assert await is_refused(Keyring(database), session)
