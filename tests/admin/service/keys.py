"""Keys that tests make."""

from types import SimpleNamespace
from typing import Any

import pytest

from app.admin.service import keyring as recognition
from app.admin.service.access import create_key, revoke_key, rotate_key
from app.admin.service.keyring import Keyring
from app.admin.store.keys import NewKey
from app.db.database import Database
from app.kernel.access import Role
from app.kernel.errors import Unauthenticated
from app.workers.service import workers
from app.workers.service.eviction import Evictor
from tests.support.factories import registration


async def make_key(database: Database, role: Role = Role.SUPERVISOR) -> tuple[str, str]:
    async with database.transaction() as connection:
        created = await create_key(connection, NewKey(role=role, label="for a test"))
        return created.id, created.text


def set_clock(monkeypatch: pytest.MonkeyPatch, moment: float) -> None:
    """Let keyrings, and nobody else, read this monotonic time: the driver's timeouts would end at such a jump."""
    monkeypatch.setattr(recognition, "time", SimpleNamespace(monotonic=lambda: moment))


async def revoke(database: Database, key_id: str) -> None:
    async with database.transaction() as connection:
        await revoke_key(connection, key_id, "me", evictor=Evictor())


async def register_worker(database: Database, **fields: Any) -> workers.WorkerIdentity:
    async with database.transaction() as connection:
        return await workers.register(connection, registration(**fields), None)


async def is_refused(keyring: Keyring, text: str, kind: type[Exception] = Unauthenticated) -> bool:
    try:
        await keyring.recognise(text)
    except kind:
        return True
    return False


async def rotate(database: Database, key_id: str, overlap: float) -> str:
    async with database.transaction() as connection:
        rotated = await rotate_key(connection, key_id, overlap_seconds=overlap, expires_in_seconds=None, by="me")
    return rotated.text
