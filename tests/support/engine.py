"""An engine of numbers: members that exist as soon as they are asked for, and go when they are chosen."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from app.db.database import Database
from app.db.hot_path import run
from app.workers.provisioners.engine import POOL_LABEL, EngineUnavailable, pool_label
from app.workers.rules.blocks import BLOCK_LABEL
from app.workers.rules.classes import WorkerClass
from app.workers.rules.engines import EngineMember, EngineState, MemberState
from app.workers.service import workers
from app.workers.service.workers import WorkerIdentity
from app.workers.store import workers as worker_store
from tests.support.factories import beat, registration


class NumberEngine:
    """Members `m-1`, `m-2`, ...; `reason` is why new ones do not come, `outage` why nothing is answered.

    After it has given a `refusal` it rests.
    """

    kind = "numbers"
    name: str = "pool"
    max_size: int = 300
    admits_unseen = False
    serves: WorkerClass | None = None

    prefix: str = "m"

    def __init__(self, size: int = 0, block_size: int = 1) -> None:
        self.members: list[EngineMember] = []
        self.requested = size
        self.block_size = block_size
        self.reason: str | None = None
        self.outage: str | None = None
        self.refusal: str | None = None
        self.is_resting = False
        self.removed: list[str] = []
        self.calls = 0
        self.fresh_looks = 0
        self.held = asyncio.Event()
        self.held.set()
        self._made = 0
        self._fill()

    def _fill(self) -> None:
        while len(self.members) < self.requested:
            self._made += 1
            state = MemberState.READY if self.reason is None else MemberState.PENDING
            created_at = datetime.now(UTC) - timedelta(seconds=7)
            self.members.append(
                EngineMember(
                    name=f"{self.prefix}-{self._made}",
                    state=state,
                    created_at=created_at,
                    reason=self.reason,
                    is_failure=self.reason is not None,
                )
            )

    def leave(self, name: str) -> None:
        """As when a node is drained."""
        self.members = [replace(m, state=MemberState.LEAVING) if m.name == name else m for m in self.members]

    async def state(self, *, fresh: bool) -> EngineState:
        if self.outage:
            raise EngineUnavailable(self.outage)
        self.fresh_looks += fresh
        refusal = self.refusal if self.is_resting else None
        return EngineState(
            requested=self.requested, members=tuple(self.members), refusal=refusal, is_resting=self.is_resting
        )

    def choose(self, state: EngineState, removable: frozenset[str], surplus: int) -> Sequence[str]:
        return sorted(removable)[:surplus]

    async def scale(self, state: EngineState, size: int, victims: Sequence[str]) -> None:
        self.calls += 1
        await self.held.wait()
        if self.outage:
            raise EngineUnavailable(self.outage)
        if self.refusal and size > self.requested:
            self.is_resting = True
            raise EngineUnavailable(self.refusal)
        self.requested = size
        self.removed += victims
        self.members = [member for member in self.members if member.name not in victims]
        self._fill()

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


class PairEngine(NumberEngine):
    """Its members come and go in blocks of two: `pool-b1-0` and `pool-b1-1`, `pool-b2-0` and so on."""

    admits_unseen = True

    def __init__(self) -> None:
        super().__init__(block_size=2)

    def _fill(self) -> None:
        while len(self.members) < self.requested:
            self._made += 1
            self.members += [
                EngineMember(name=f"{self.name}-b{self._made}-{slot}", state=MemberState.READY, block=f"b{self._made}")
                for slot in range(2)
            ]

    def choose(self, state: EngineState, removable: frozenset[str], surplus: int) -> Sequence[str]:
        blocks = groupby(state.members, lambda member: member.block)
        pairs = [[member.name for member in members] for _, members in blocks]
        whole = [names for names in pairs if removable.issuperset(names)]
        return [name for names in whole[: surplus // 2] for name in names]


async def register_member(
    database: Database, name: str, *, kind: str = "numbers", pool: str = "pool", **offer: Any
) -> WorkerIdentity:
    """A member's worker that has registered and passed its first health report."""
    block = name.removeprefix(f"{pool}-").rpartition("-")[0]
    labels = json.dumps({POOL_LABEL: pool_label(kind, pool), BLOCK_LABEL: block})
    async with database.transaction() as connection:
        identity = await workers.register(connection, registration(name, labels=labels, **offer), None)
    await run(database, lambda c: worker_store.record_heartbeats(c, [beat(identity.worker_id)], 15.0))
    return identity
