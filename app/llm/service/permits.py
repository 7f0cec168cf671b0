"""What happens to permits of language-model calls: acquired, renewed, settled, released, expired, lost.

A turn at the gate serves all who ask in the same moment, and so does a settlement: their cost is shared, and sixty
callers do not queue up for one lock.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.batching import Coalescer
from app.db.database import Database
from app.llm.errors import PermitNotFound, PermitOver
from app.llm.rules.concurrency import PressurePolicy
from app.llm.rules.permits import Ending, PermitPolicy
from app.llm.service.grant import Acquired, Answer, Request, grant_all
from app.llm.service.settle import Settled, Settlement, over, returned, settle_all
from app.llm.store import cache, gate, permits
from app.llm.store import models as model_store
from app.queue.rules.fair_queueing import FairQueue


class PermitService:
    """Where permits are acquired and settled, many at a time."""

    def __init__(
        self,
        database: Database,
        fairness: FairQueue,
        policy: PermitPolicy | None = None,
        pressure: PressurePolicy | None = None,
    ) -> None:
        self.policy = policy or PermitPolicy()
        self._pressure = pressure or PressurePolicy()
        self._database = database
        self._fairness = fairness
        self._acquiring: Coalescer[Request, Answer] = Coalescer(self._acquire, lambda request: request.ask.id)
        self._settling: Coalescer[Settlement, Settled | PermitNotFound | PermitOver] = Coalescer(
            self._settle, lambda settlement: settlement.permit_id
        )

    async def acquire(self, request: Request) -> Acquired:
        """A permit, at once. Raises PermitRefused, and PermitOver for a request whose permit is over."""
        answer = await self._acquiring(request)
        if not isinstance(answer, Acquired):
            raise answer
        return answer

    async def settle(self, settlement: Settlement) -> Settled:
        """End a permit with what the call came to. Raises PermitNotFound, PermitOver."""
        answer = await self._settling(settlement)
        if not isinstance(answer, Settled):
            raise answer
        return answer

    async def stop(self) -> None:
        """Finish what has arrived."""
        await self._acquiring.close()
        await self._settling.close()

    async def _acquire(self, requests: Sequence[Request]) -> list[Answer]:
        # The weights by which leases are shared.
        weights = self._fairness.weights
        async with self._database.transaction() as connection:
            return await grant_all(connection, requests, weights, self.policy, self._pressure)

    async def _settle(self, settlements: Sequence[Settlement]) -> list[Settled | PermitNotFound | PermitOver]:
        async with self._database.transaction() as connection:
            return await settle_all(connection, settlements, self._pressure)


async def renew(connection: AsyncConnection, permit_id: UUID, token: str, policy: PermitPolicy) -> datetime:
    """Let a permit live on; returns until when. Raises PermitNotFound, PermitOver."""
    expires_at = await permits.renew(connection, permit_id, token, policy.ttl)
    if expires_at is not None:
        return expires_at
    permit = await permits.read(connection, permit_id)
    if permit is None:
        raise PermitNotFound
    # A live row that was not renewed has expired, and nobody has ended it yet.
    raise over(permit, token) or PermitOver(reason=Ending.EXPIRED)


async def release(connection: AsyncConnection, permit_id: UUID, token: str) -> None:
    """Give back a permit that was not used, with what it was charged. Safe to repeat.

    Raises PermitNotFound, PermitOver.
    """
    names = await permits.models_of(connection, [permit_id])
    models = await model_store.lock(connection, names.values()) if names else {}
    permit = (await permits.lock(connection, names)).get(permit_id)
    if permit is None:
        raise PermitNotFound
    if permit.token == token and permit.ending is Ending.RELEASED:
        return
    if (error := over(permit, token)) is not None:
        raise error
    at = (await gate.measure(connection)).at
    await permits.end(connection, at, [(permit.id, Ending.RELEASED, None)])
    await model_store.charge(connection, permit.ask.model, returned(models[permit.ask.model], permit.ask.tokens, at))


async def sweep(connection: AsyncConnection) -> dict[str, Any]:
    """End what has expired, and forget what is long over."""
    return {
        "models": await model_store.prune(connection),
        "expired": await permits.expire(connection),
        "permits": await permits.prune(connection),
        "claims": await gate.prune(connection),
        "answers": await cache.prune(connection),
    }
