"""Keeps the pool of an engine at its size: decides in a transaction, and asks the engine outside of it.

A turn reads what the engine has, dismisses the members that are to go (they cannot register any more, and their workers
hold nothing and get nothing), commits, and only then asks the engine for the size. A crash between any two of these
leaves what the next turn, of any process, finds: members that are dismissed and still there go then.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database
from app.kernel.ids import WorkerId
from app.workers.provisioners.engine import CALL_SECONDS, Engine, EngineChanged, EngineUnavailable
from app.workers.rules.engines import EnginePlan, EngineRequest, EngineState, plan_engine, plan_request
from app.workers.rules.hosts import MemberWait
from app.workers.rules.workers import Directive
from app.workers.store import directives, engines, hosts
from app.workers.store.directives import WorkerSelector
from app.workers.store.engines import ANY_MEMBER, PoolReport

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePolicy:
    """`usual_size` of a pool that is new, and seconds for which an engine is left alone after it removes members.

    By then it has done so, and none that was dismissed may be admitted again before.
    """

    usual_size: int
    rest_seconds: float = 2.0


# More than the calls of a turn may take: what one process has asked for is over when another decides.
_ALONE_SECONDS = CALL_SECONDS + 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """Outcome of a turn: what to ask the engine for, if anything; `needs_fresh`: its state was too old for that.

    `scaling_until` tells when the engine was last asked, by any process.
    """

    state: EngineState
    plan: EnginePlan
    scaling_until: datetime | None
    request: EngineRequest | None = None
    needs_fresh: bool = False


async def keep(database: Database, engine: Engine, policy: EnginePolicy) -> dict[str, Any]:
    """Take one turn: look, decide, ask the engine; return counts of what came of it."""
    report = PoolReport(
        provisioner=engine.kind,
        host=engine.name,
        usual_size=policy.usual_size,
        max_size=engine.max_size,
        block_size=engine.block_size,
        serves=None if engine.serves is None else engine.serves.text(),
    )
    try:
        turn = await _decide(database, engine, report)
        if turn.needs_fresh:
            turn = await _decide(database, engine, report, turn)
    except (EngineUnavailable, TimeoutError) as error:
        reason = str(error) or f"no answer within {CALL_SECONDS:.0f} s"
        await _record_outage(database, report, reason)
        return {"unavailable": reason}
    plan = turn.plan
    counts = {"target": plan.target, "members": len(turn.state.active), "drained": len(plan.drain)}
    if plan.drain_unplanned:
        log.warning("%s removes %d workers that nobody chose", engine.name, len(plan.drain_unplanned))
        counts["unplanned"] = len(plan.drain_unplanned)
    return {**counts, **await _ask(database, engine, report, policy, turn)}


async def _decide(database: Database, engine: Engine, report: PoolReport, first: _Turn | None = None) -> _Turn:
    """Decide by the state of the engine: after the `first` look, by a fresh one."""
    async with asyncio.timeout(CALL_SECONDS):
        state = await engine.state(fresh=first is not None)
    async with database.transaction() as connection:
        return await _plan(connection, engine, report, state, first)


async def _plan(
    connection: AsyncConnection, engine: Engine, report: PoolReport, state: EngineState, first: _Turn | None
) -> _Turn:
    await hosts.lock_pool(connection)
    workers = await engines.workers(connection, report.provisioner, report.host)
    staying = sum(not worker.leaving for worker in workers)
    pool = await engines.record_report(connection, report, staying, state.requested)
    plan = plan_engine(state, workers, pool.size, report.block_size)
    await engines.record_waits(connection, report, plan.waits)
    await _drain(connection, plan.drain, f"the pool is to have {pool.size} workers")
    await _drain(connection, plan.drain_unplanned, "its engine removes it")
    turn = _Turn(state=state, plan=plan, scaling_until=pool.scaling_until)
    # What another process is asking for must stay dismissed until it is done. And what it has asked for since the first
    # look the state may not show, so that both would ask for the same.
    if pool.is_scaling or (first is not None and first.scaling_until != pool.scaling_until):
        return turn
    chosen = engine.choose(state, plan.removable, plan.surplus) if plan.surplus else ()
    request = plan_request(state, plan, chosen)
    if first is None and not request.is_safe_when_late(pool.dismissed):
        return replace(turn, needs_fresh=True)
    awaited = {**request.awaited, ANY_MEMBER: None} if engine.admits_unseen else request.awaited
    await engines.record_members(connection, report, awaited, request.dismissed)
    if not request.is_needed:
        return turn
    await engines.begin_scaling(connection, report, _ALONE_SECONDS)
    return replace(turn, request=request)


async def _drain(connection: AsyncConnection, worker_ids: Sequence[WorkerId], reason: str) -> None:
    if worker_ids:
        await directives.direct(connection, WorkerSelector(ids=worker_ids), Directive.DRAIN, reason)


async def _ask(
    database: Database, engine: Engine, report: PoolReport, policy: EnginePolicy, turn: _Turn
) -> dict[str, Any]:
    """Ask the engine for what the turn has decided, if anything; return what came of it."""
    if (request := turn.request) is None:
        return {}
    try:
        async with asyncio.timeout(CALL_SECONDS):
            await engine.scale(turn.state, request.size, request.victims)
    except EngineChanged as error:
        # The next turn sees what it is now.
        result: dict[str, Any] = {"changed": str(error) or "meanwhile"}
    except (EngineUnavailable, TimeoutError) as error:
        result = {"unavailable": str(error) or f"no answer within {CALL_SECONDS:.0f} s"}
        log.warning("%s was not made %d members large: %s", engine.name, request.size, result["unavailable"])
    else:
        result = {"asked": request.size, "removed": len(request.victims)}
    async with database.transaction() as connection:
        await engines.end_scaling(connection, report, policy.rest_seconds if request.victims else 0.0)
    return result


async def _record_outage(database: Database, report: PoolReport, reason: str) -> None:
    """The pool keeps its place and its size; that nobody reaches its engine is why members do not come."""
    async with database.transaction() as connection:
        await hosts.lock_pool(connection)
        workers = await engines.workers(connection, report.provisioner, report.host)
        staying = sum(not worker.leaving for worker in workers)
        pool = await engines.record_report(connection, report, staying)
        wait = MemberWait(reason=reason, members=max(1, pool.size - staying), is_failure=True)
        await engines.record_waits(connection, report, [wait])
