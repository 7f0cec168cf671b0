"""What a worker is told of its lease is what is stored."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.db.database import Database
from tests.support.service import Service
from tests.support.sql import execute

_MOMENTS = ("created_at", "leased_at", "expires_at", "deadline_at")
_STORED = "SELECT created_at, leased_at, lease_expires_at AS expires_at, deadline_at FROM tasks WHERE id = $1"
_FAR_MOMENTS = [datetime(1970, 1, 1, 0, 0, 0, 1, UTC), datetime(2105, 12, 31, 23, 59, 59, 999_999, UTC)]


async def _stored(database: Database, lease: Any) -> list[datetime]:
    async with (await database.pool()).acquire() as connection:
        row = await connection.fetchrow(_STORED, UUID(lease["task_id"]))
    assert row is not None
    return list(row)


def _told(lease: Any) -> list[datetime]:
    return [datetime.fromisoformat(lease[name]) for name in _MOMENTS]


@pytest.mark.parametrize("created_at", _FAR_MOMENTS)
async def test_its_moments_are_told_to_the_microsecond(
    service: Service, database: Database, created_at: datetime
) -> None:
    worker = await service.worker()
    await service.submitted(timeout_seconds=1.234567)
    await execute(database, "UPDATE tasks SET created_at = $1", created_at)
    request_id = str(uuid4())
    lease = await worker.lease(request_id=request_id)
    assert _told(lease) == await _stored(database, lease)
    assert _told(lease)[0] == created_at
    assert _told(lease)[3] - _told(lease)[1] == timedelta(seconds=lease["timeout_seconds"])
    repeated = await worker.lease(request_id=request_id)
    assert _told(repeated) == await _stored(database, lease)
    assert _told(repeated)[2] > _told(lease)[2]
