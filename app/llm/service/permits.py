"""Permits of language-model calls: acquired, renewed, settled, released, and swept once they have expired.

Requests that arrive in the same moment are granted or settled in one transaction, so that sixty callers do not queue up
for one lock.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.batching import Coalescer
from app.db.database import Database
from app.llm.errors import LeaseRequired, PermitNotFound, PermitOver
from app.llm.rules.concurrency import ConcurrencyPolicy
from app.llm.rules.permits import Ending, PermitPolicy, answer_key, holder_of
from app.llm.service.grant import AcquiredPermit, AcquireRequest, AcquireResult, grant_all
from app.llm.service.settle import Settlement, SettlementResult, SettleOutcome, permit_error, refund, settle_all
from app.llm.store import cache, gate, permits
from app.llm.store import models as model_store
from app.llm.store.cache import CachedAnswer
from app.queue.rules.fair_queueing import FairQueue
from app.queue.store import parking

_MAX_PRUNED = 5000


class PermitService:
    """Acquires and settles permits, in batches."""

    def __init__(
        self,
        database: Database,
        fairness: FairQueue,
        policy: PermitPolicy | None = None,
    ) -> None:
        self.policy = policy or PermitPolicy()
        self._concurrency_policy = ConcurrencyPolicy()
        self._database = database
        self._fairness = fairness
        # Keyed by request: a repetition goes into a later batch, where it sees the permit of the first attempt.
        self._acquire_batches: Coalescer[AcquireRequest, AcquireResult] = Coalescer(
            self._acquire, lambda request: request.id
        )
        self._settle_batches: Coalescer[Settlement, SettleOutcome] = Coalescer(
            self._settle, lambda settlement: settlement.permit_id
        )

    async def acquire(self, request: AcquireRequest) -> AcquiredPermit:
        """Grant a permit. Raises PermitRefused, ModelNotAllowed, LeaseRequired and LeaseMismatch for a worker, and
        PermitOver for a repeated request whose permit is over.
        """
        result = await self._acquire_batches(request)
        if not isinstance(result, AcquiredPermit):
            raise result
        return result

    async def settle(self, settlement: Settlement) -> SettlementResult:
        """End a permit with the report on its call. Raises PermitNotFound, PermitOver, CacheKeyMismatch."""
        result = await self._settle_batches(settlement)
        if not isinstance(result, SettlementResult):
            raise result
        return result

    async def stop(self) -> None:
        """Finish the requests that have arrived."""
        await self._acquire_batches.close()
        await self._settle_batches.close()

    async def _acquire(self, requests: Sequence[AcquireRequest]) -> list[AcquireResult]:
        # Permits are shared by the same weights as leases.
        weights = self._fairness.weights
        async with self._database.transaction() as connection:
            return await grant_all(connection, requests, weights, self.policy, self._concurrency_policy)

    async def _settle(self, settlements: Sequence[Settlement]) -> list[SettleOutcome]:
        async with self._database.transaction() as connection:
            return await settle_all(connection, settlements, self._concurrency_policy)


async def renew(
    connection: AsyncConnection,
    permit_id: UUID,
    token: str,
    policy: PermitPolicy,
    worker_id: UUID | None = None,
    namespace: str | None = None,
) -> datetime:
    """Renew a permit; return its new expiry. Raises PermitNotFound, PermitOver.

    A worker, whose id is given, renews for as long as it holds the task that the call is for. With a namespace there
    are no permits but its own.
    """
    expires_at = await permits.renew(connection, permit_id, token, worker_id, policy, namespace)
    if expires_at is not None:
        return expires_at
    permit = await permits.read(connection, permit_id, namespace)
    if permit is None:
        raise PermitNotFound
    # A row that is not ended and was not renewed has expired, and the sweep has not come yet; or its task is over.
    raise permit_error(permit, token, worker_id) or PermitOver(reason=Ending.EXPIRED)


async def release(
    connection: AsyncConnection,
    permit_id: UUID,
    token: str,
    worker_id: UUID | None = None,
    namespace: str | None = None,
) -> None:
    """End an unused permit and refund its charge. Safe to repeat. Raises PermitNotFound, PermitOver."""
    names = await permits.model_names(connection, [permit_id])
    models = await model_store.lock(connection, names.values()) if names else {}
    permit = (await permits.lock(connection, names, namespace)).get(permit_id)
    if permit is None:
        raise PermitNotFound
    # Released before, and the answer was lost: nothing is refunded twice.
    if permit.token == token and permit.ending is Ending.RELEASED:
        return
    if (error := permit_error(permit, token, worker_id)) is not None:
        raise error
    at = (await gate.read_load(connection)).at
    await permits.end(connection, at, [(permit.id, Ending.RELEASED, None)])
    if (model := models.get(permit.request.model)) is not None:
        meters, worker_tats = refund(model, permit.request, at)
        await model_store.write_meters(connection, model.name, meters, worker_tats)


async def cached_answer(
    connection: AsyncConnection,
    model: str,
    question: bytes,
    *,
    key_id: str,
    worker_id: UUID | None,
    goal_id: str | None,
) -> CachedAnswer | None:
    """The cached answer of a model to a question, in the goal of the task that the worker holds, or else in `goal_id`.

    Raises LeaseRequired for a worker without a task.
    """
    if worker_id is not None:
        task = await gate.task_of(connection, worker_id)
        if task is None:
            raise LeaseRequired
        goal_id = task.goal_id
    key = answer_key(model, question, goal_id=goal_id, holder=holder_of(key_id, worker_id))
    return (await cache.read(connection, [key])).get(key)


async def sweep(connection: AsyncConnection) -> dict[str, Any]:
    """End expired permits, and delete old permits, reservations and answers; return the number of each.

    It is `behind` where there may be more old permits.
    """
    expired_count, pruned_count = await permits.expire(connection), await permits.prune(connection, _MAX_PRUNED)
    return {
        "expired": expired_count,
        "permits": pruned_count,
        "claims": await gate.prune(connection),
        "answers": await cache.prune(connection),
        "parked": await parking.prune(connection),
        "behind": pruned_count == _MAX_PRUNED,
    }
