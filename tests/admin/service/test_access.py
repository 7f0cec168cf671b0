"""Keys: recognised, remembered for a few seconds, and revoked everywhere."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from app.admin.service import keyring as recognition
from app.admin.service.access import create_key, issue_key, revoke_key, rotate_key, use_to_register
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
from tests.support.factories import registration
from tests.support.service import KEY_ROLES
from tests.support.sql import execute, fetch, until, value


async def _key(database: Database, role: Role = Role.SUPERVISOR) -> tuple[str, str]:
    async with database.transaction() as connection:
        created = await create_key(connection, NewKey(role=role, label="for a test"))
        return created.id, created.text


async def _revoke(database: Database, key_id: str) -> None:
    async with database.transaction() as connection:
        await revoke_key(connection, key_id, "me")


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
    await until(refused, within=recognition._TRUST_SECONDS / 2)


async def test_a_revoked_key_is_forgotten_in_a_while_where_no_news_came(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, text = await _key(database)
    await keyring.recognise(text)
    await execute(database, "UPDATE keys SET revoked_at = now() WHERE id = $1", key_id)
    assert (await keyring.recognise(text)).key_id == key_id
    later = time.monotonic() + recognition._TRUST_SECONDS + 0.1
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
    monkeypatch.setattr(recognition, "_MAX_REMEMBERED", 3)
    for _ in range(8):
        await keyring.recognise((await _key(database))[1])
        assert len(keyring._entries) <= 3


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


async def _register(database: Database, **fields: Any) -> workers.WorkerIdentity:
    async with database.transaction() as connection:
        return await workers.register(connection, registration(**fields), None)


async def _is_refused(keyring: Keyring, text: str, kind: type[Exception] = Unauthenticated) -> bool:
    try:
        await keyring.recognise(text)
    except kind:
        return True
    return False


async def test_the_key_of_a_worker_ends_with_it_and_says_why(database: Database, keyring: Keyring) -> None:
    worker = await _register(database)
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
    texts = [(await _register(database)).key for _ in range(20)]
    await asyncio.gather(*map(keyring.recognise, texts))
    count = len(lookups)
    begin = time.monotonic()
    for turn in range(1, 30):
        later = begin + turn * recognition._CHECK_SECONDS * 2
        monkeypatch.setattr(time, "monotonic", lambda later=later: later)
        await keyring.check()
        await asyncio.gather(*map(keyring.recognise, texts))
    assert len(lookups) == count
    # Without checks nobody is believed for longer than a second.
    monkeypatch.setattr(time, "monotonic", lambda: later + 1.1)
    await asyncio.gather(*map(keyring.recognise, texts))
    assert set.union(*lookups[count:]) == {text.split("_")[1] for text in texts}


async def test_a_check_forgets_what_was_revoked_behind_our_back(database: Database, keyring: Keyring) -> None:
    (one, text), (_, other) = await _key(database), await _key(database)
    for key in (text, other):
        await keyring.recognise(key)
    await execute(database, "UPDATE keys SET revoked_at = now() WHERE id = $1", one)
    await keyring.check()
    assert await _is_refused(keyring, text)
    assert not await _is_refused(keyring, other)


async def test_changes_are_heard_while_nobody_asks(database: Database, keyring: Keyring) -> None:
    worker = await _register(database)
    await keyring.recognise(worker.key)
    following = asyncio.create_task(keyring.follow())
    async with database.transaction() as connection:
        await workers.say_goodbye(connection, worker.worker_id, "done")

    async def gone() -> bool:
        return await _is_refused(keyring, worker.key, WorkerGone)

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
    monkeypatch.setattr(time, "monotonic", lambda: later)
    await keyring.check()
    assert await _is_refused(keyring, created.text)


async def _rotate(database: Database, key_id: str, overlap: float) -> str:
    async with database.transaction() as connection:
        rotated = await rotate_key(connection, key_id, overlap_seconds=overlap, expires_in_seconds=None, by="me")
    return rotated.text


async def test_after_a_rotation_both_secrets_are_good_for_a_while(database: Database, keyring: Keyring) -> None:
    key_id, first = await _key(database)
    second = await _rotate(database, key_id, 3600)
    assert second.split("_")[1] == key_id
    for text in (first, second):
        assert (await keyring.recognise(text)).key_id == key_id
    third = await _rotate(database, key_id, 3600)
    assert await _is_refused(keyring, first)
    for text in (second, third):
        await keyring.recognise(text)
    await execute(database, "UPDATE keys SET former_expires_at = now() WHERE id = $1", key_id)
    assert await _is_refused(Keyring(database), second)
    fourth = await _rotate(database, key_id, 0)
    assert await _is_refused(keyring, third)
    await _revoke(database, key_id)
    assert await _is_refused(keyring, fourth)


async def test_what_is_revoked_or_expired_or_a_workers_is_not_rotated(database: Database) -> None:
    revoked, expired = [(await _key(database))[0] for _ in range(2)]
    await _revoke(database, revoked)
    await execute(database, "UPDATE keys SET expires_at = now() WHERE id = $1", expired)
    workers_own = (await _register(database)).key.split("_")[1]
    for key_id in (revoked, expired, workers_own, "unknown"):
        with pytest.raises(KeyNotFound):
            await _rotate(database, key_id, 0)


async def test_the_use_of_a_key_is_noted_now_and_then(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, text = await _key(database)
    await keyring.recognise(text)
    await keyring.check()
    assert await value(database, "SELECT last_used_at FROM keys WHERE id = $1", key_id) is None
    later = time.monotonic() + recognition._NOTE_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
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
    assert await _is_refused(Keyring(database), text)


@pytest.mark.parametrize("change", ["expires_at = now()", "revoked_at = now()"])
async def test_an_enrolment_that_is_over_registers_nobody(database: Database, change: str) -> None:
    key_id, _ = await _enrolment(database, 1)
    await execute(database, f"UPDATE keys SET {change} WHERE id = $1", key_id)
    assert not await _use(database, key_id)


async def test_what_people_do_with_keys_is_in_the_audit_log(database: Database) -> None:
    async with database.transaction() as connection:
        created = await issue_key(connection, NewKey(role=Role.READER, label="x"), "me")
    secret = created.text.split("_", 2)[2]
    rotated = await _rotate(database, created.id, 60)
    for _ in range(2):
        await _revoke(database, created.id)
    rows = await fetch(database, "SELECT action, by, after::text FROM audit ORDER BY seq")
    assert [row["action"] for row in rows] == ["key.create", "key.rotate", "key.revoke"]
    assert {row["by"] for row in rows} == {"me"}
    for text in (secret, rotated.split("_", 2)[2]):
        assert text not in "".join(row["after"] for row in rows)
