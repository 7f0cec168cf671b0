"""However many workers hand in large results or checkpoints at once, no statement holds all of them."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.ids import TaskId, WorkerId
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.leases import LeaseService
from app.queue.store.completions import Completion, Renewal

_TEXT = "x" * (2 << 20)


def _completion() -> Completion:
    return Completion(TaskId(uuid4()), 1, WorkerId(uuid4()), _TEXT, b"", None)


def _renewal() -> Renewal:
    return Renewal(task_id=TaskId(uuid4()), token=1, worker_id=WorkerId(uuid4()), checkpoint=_TEXT)


@pytest.mark.parametrize(
    ("statement", "calls", "make"),
    [
        ("_complete", "_completions", _completion),
        ("_complete_and_unblock", "_last_tries", _completion),
        ("_renew", "_renewals", _renewal),
    ],
)
async def test_a_statement_has_32_mebibytes_at_most(
    database: Database, monkeypatch: pytest.MonkeyPatch, statement: str, calls: str, make: Any
) -> None:
    sizes: list[int] = []

    async def note(_: LeaseService, batch: Sequence[Any]) -> list[None]:
        sizes.append(len(batch))
        return [None] * len(batch)

    monkeypatch.setattr(LeaseService, statement, note)
    service = LeaseService(database, LeasePolicy(), FairQueue())
    await asyncio.gather(*getattr(service, calls).enqueue([make() for _ in range(40)]))
    assert sizes == [16, 16, 8]
