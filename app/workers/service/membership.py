"""Registration of workers as members of the pool of an engine, which starts them without asking anybody."""

import json
from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.text import plural
from app.workers.errors import PoolFull
from app.workers.provisioners.engine import POOL_LABEL
from app.workers.rules.engines import admitted
from app.workers.store import engines
from app.workers.store.workers import Registration

# A member that finds its pool full asks again after so long: a size changes within seconds.
_RETRY_SECONDS = 3
# A turn of the pool, which looks what the engine has started, comes sooner.
_UNSEEN_RETRY_SECONDS = 1
_NO_POOL_RETRY_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolName:
    """Kind of the engine, and the name of the pool there."""

    kind: str
    name: str


def pool_of(registration: Registration) -> PoolName | None:
    """The pool that a registration names by its label; None of one that names none."""
    kind, slash, name = str(json.loads(registration.labels).get(POOL_LABEL, "")).partition("/")
    return PoolName(kind=kind, name=name) if slash and kind and name else None


async def admit(connection: AsyncConnection, registration: Registration, pool: PoolName) -> Registration:
    """Return the registration as a member of its pool; the caller holds the pool. Raises PoolFull.

    Those that the engine is removing are not admitted, and none beyond the size: a worker that has left in order would
    come back, as its engine starts it anew. Nor is one that no turn has seen yet: an engine that is made smaller while
    it still starts members may remove just the newest, which must hold nothing.
    """
    membership = await engines.membership(connection, pool.kind, pool.name, registration.name)
    if membership is None:
        raise PoolFull(
            f"nobody keeps the pool {pool.kind}/{pool.name}: run `convener loops` with "
            f"CONVENER_PROVISIONER={pool.kind}",
            retry_after_seconds=_NO_POOL_RETRY_SECONDS,
        )
    if membership.is_dismissed:
        raise PoolFull(
            f"{registration.name} is being removed from the pool {pool.kind}/{pool.name}",
            retry_after_seconds=_RETRY_SECONDS,
        )
    if membership.staying >= admitted(membership.size, membership.block_size):
        raise PoolFull(
            f"the pool {pool.kind}/{pool.name} is to have {plural(membership.size, 'worker')}, and so many are there",
            retry_after_seconds=_RETRY_SECONDS,
        )
    if not membership.is_awaited:
        raise PoolFull(
            f"{registration.name} was not seen in the pool {pool.kind}/{pool.name} yet",
            retry_after_seconds=_UNSEEN_RETRY_SECONDS,
        )
    return replace(registration, provisioner=pool.kind, host=pool.name, member_created_at=membership.created_at)
