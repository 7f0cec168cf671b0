"""Keys: recognised, remembered for a few seconds, and revoked everywhere."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from app.admin.service import keyring as recognition
from app.admin.service.access import create_key, issue_key
from app.admin.service.keyring import Keyring
from app.admin.store import keys
from app.admin.store.keys import NewKey
from app.db import hot_path
from app.db.database import Database
from app.kernel.access import NAMESPACED_ROLES, Principal, Role
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable, KeyNotFound, Unauthenticated, WorkerGone
from app.kernel.states import WorkerState
from app.workers.service import workers
from tests.admin.service.keys import is_refused, make_key, register_worker, revoke, rotate, set_clock
from tests.support.factories import registration
from tests.support.service import KEY_ROLES
from tests.support.sql import execute, fetch, until, value

Lookups = list[set[str]]


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
    key_id, text = await make_key(database, role)
    namespace = "default" if role in NAMESPACED_ROLES else None
    assert await keyring.recognise(text) == Principal(key_id=key_id, role=role, namespace=namespace)


async def test_the_first_key_of_another_namespace_confines_those_of_default(
    database: Database, keyring: Keyring
) -> None:
    _, text = await make_key(database, Role.SUPERVISOR)
    assert not (await keyring.recognise(text)).is_confined
    async with database.transaction() as connection:
        await create_key(connection, NewKey(role=Role.READER, label="for a test", namespace="lab-a"))

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
    _, text = await make_key(database)
    row = await value(database, "SELECT to_jsonb(keys)::text FROM keys")
    assert text.split("_", 2)[2] not in row


@pytest.mark.parametrize("wrong", ["", "x", "cvn_only", "cvn__x", "cvn_unknown_secret", "Bearer cvn_a_b"])
async def test_what_is_no_key_is_refused(keyring: Keyring, wrong: str) -> None:
    with pytest.raises(Unauthenticated):
        await keyring.recognise(wrong)


async def test_the_right_id_with_a_wrong_secret_is_refused(database: Database, keyring: Keyring) -> None:
    _, text = await make_key(database)
    await keyring.recognise(text)
    with pytest.raises(Unauthenticated):
        await keyring.recognise(text[:-1] + ("x" if text[-1] != "x" else "y"))


async def test_a_key_is_looked_up_once_in_a_while(
    database: Database, keyring: Keyring, lookups: list[set[str]]
) -> None:
    key_id, text = await make_key(database)
    for _ in range(5):
        await keyring.recognise(text)
    assert lookups == [{key_id}]


async def test_calls_at_once_share_one_look_up(database: Database, keyring: Keyring, lookups: Lookups) -> None:
    key_id, text = await make_key(database)
    await asyncio.gather(*(keyring.recognise(text) for _ in range(20)))
    assert lookups == [{key_id}]


async def test_a_caller_that_gives_up_does_not_end_the_look_up_of_others(database: Database, keyring: Keyring) -> None:
    key_id, text = await make_key(database)
    gone, patient = (asyncio.ensure_future(keyring.recognise(text)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await patient).key_id == key_id


async def test_a_revoked_key_is_refused_at_once_where_the_news_is_heard(
    database: Database, keyring: Keyring, replica: Database
) -> None:
    elsewhere = Keyring(replica)
    key_id, text = await make_key(database)
    await keyring.recognise(text)
    await elsewhere.recognise(text)
    await revoke(database, key_id)
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
    await until(refused, within=recognition._TRUST_SECONDS / 2)


async def test_a_revoked_key_is_forgotten_in_a_while_where_no_news_came(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, text = await make_key(database)
    await keyring.recognise(text)
    await execute(database, "UPDATE keys SET revoked_at = now() WHERE id = $1", key_id)
    assert (await keyring.recognise(text)).key_id == key_id
    later = time.monotonic() + recognition._TRUST_SECONDS + 0.1
    set_clock(monkeypatch, later)
    with pytest.raises(Unauthenticated):
        await keyring.recognise(text)


async def test_revoking_twice_is_fine_and_an_unknown_key_is_told(database: Database) -> None:
    key_id, _ = await make_key(database)
    await revoke(database, key_id)
    first = await value(database, "SELECT revoked_at FROM keys")
    await revoke(database, key_id)
    assert await value(database, "SELECT revoked_at FROM keys") == first
    with pytest.raises(KeyNotFound):
        await revoke(database, "unknown")


async def test_the_memory_is_bounded(database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognition, "_MAX_REMEMBERED", 3)
    for _ in range(8):
        await keyring.recognise((await make_key(database))[1])
        assert len(keyring._entries) <= 3


async def test_a_key_that_was_recognised_goes_on_while_the_database_is_away(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = [(await make_key(database, Role.MONITOR))[1] for _ in range(2)]
    await keyring.recognise(key)

    async def fail(*_: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(hot_path, "run", fail)
    later = time.monotonic() + 60
    set_clock(monkeypatch, later)
    assert (await keyring.recognise(key)).role is Role.MONITOR
    with pytest.raises(DatabaseUnavailable):
        await keyring.recognise(other)


async def test_the_key_of_a_worker_ends_with_it_and_says_why(database: Database, keyring: Keyring) -> None:
    worker = await register_worker(database)
    await keyring.recognise(worker.key)
    async with database.transaction() as connection:
        await workers.lose(connection, worker.worker_id, WorkerState.LOST, "silent for 16 s")
    await keyring.check()
    with pytest.raises(WorkerGone) as refused:
        await keyring.recognise(worker.key)
    assert refused.value.reason == "lost"
    assert "silent for 16 s" in refused.value.detail


async def test_keys_that_are_remembered_are_checked_together_and_not_looked_up_again(
    database: Database, keyring: Keyring, lookups: Lookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [(await register_worker(database)).key for _ in range(20)]
    await asyncio.gather(*map(keyring.recognise, texts))
    count = len(lookups)
    begin = time.monotonic()
    for turn in range(1, 30):
        later = begin + turn * recognition._CHECK_SECONDS * 2
        set_clock(monkeypatch, later)
        await keyring.check()
        await asyncio.gather(*map(keyring.recognise, texts))
    assert len(lookups) == count
    # Without checks nobody is believed for longer than a second.
    set_clock(monkeypatch, later + 1.1)
    await asyncio.gather(*map(keyring.recognise, texts))
    assert set.union(*lookups[count:]) == {text.split("_")[1] for text in texts}


async def test_a_check_forgets_what_was_revoked_behind_our_back(database: Database, keyring: Keyring) -> None:
    (one, text), (_, other) = await make_key(database), await make_key(database)
    for key in (text, other):
        await keyring.recognise(key)
    await execute(database, "UPDATE keys SET revoked_at = now() WHERE id = $1", one)
    await keyring.check()
    assert await is_refused(keyring, text)
    assert not await is_refused(keyring, other)


async def test_changes_are_heard_while_nobody_asks(database: Database, keyring: Keyring) -> None:
    worker = await register_worker(database)
    await keyring.recognise(worker.key)
    following = asyncio.create_task(keyring.follow())
    async with database.transaction() as connection:
        await workers.say_goodbye(connection, worker.worker_id, "done")

    async def gone() -> bool:
        return await is_refused(keyring, worker.key, WorkerGone)

    await until(gone)
    following.cancel()


async def test_an_outage_ends_the_trust_and_not_the_checks(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []

    async def fails() -> None:
        turns.append(1)
        raise DatabaseUnavailable if len(turns) % 2 else RuntimeError

    monkeypatch.setattr(keyring, "check", fails)
    following = asyncio.create_task(keyring.follow())

    async def several() -> bool:
        keyring._wake.set()
        return len(turns) > 4

    await until(several)
    following.cancel()


async def test_what_people_do_with_keys_is_in_the_audit_log(database: Database) -> None:
    async with database.transaction() as connection:
        created = await issue_key(connection, NewKey(role=Role.READER, label="x"), "me")
    secret = created.text.split("_", 2)[2]
    rotated = await rotate(database, created.id, 60)
    for _ in range(2):
        await revoke(database, created.id)
    rows = await fetch(database, "SELECT action, by, after::text FROM audit ORDER BY seq")
    assert [row["action"] for row in rows] == ["key.create", "key.rotate", "key.revoke"]
    assert {row["by"] for row in rows} == {"me"}
    for text in (secret, rotated.split("_", 2)[2]):
        assert text not in "".join(row["after"] for row in rows)
