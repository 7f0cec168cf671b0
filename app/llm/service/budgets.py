"""Budgets of agent types and API keys: set and removed by operators, each with an audit entry, and told of in time."""

from dataclasses import asdict
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.kernel.access import LAUNCHED
from app.kernel.agents import AgentType
from app.kernel.events import SystemEvent
from app.llm.errors import BudgetNotFound, BudgetOwnerNotFound
from app.llm.rules.spending import LOW_BUDGET_SHARE, BudgetOwner, BudgetScope
from app.llm.store import budgets
from app.llm.store.budgets import BudgetLimits
from app.queue.store import events


async def set_limits(
    connection: AsyncConnection, owner: BudgetOwner, limits: BudgetLimits, *, by: str, reason: str = ""
) -> None:
    """Set a budget, in force from the next permit on. Raises BudgetOwnerNotFound. Safe to repeat."""
    if not await _exists(connection, owner):
        raise BudgetOwnerNotFound
    former = await budgets.lock(connection, owner)
    if former == limits:
        return
    await budgets.write(connection, owner, limits)
    old_state = None if former is None else _fields(owner, former)
    new_state = _fields(owner, limits)
    audit.record(connection, "llm_budget.set", by=by, old_state=old_state, new_state=new_state, reason=reason)


async def remove(connection: AsyncConnection, owner: BudgetOwner, *, by: str, reason: str = "") -> None:
    """Limit an owner no longer, and forget what was counted. Raises BudgetNotFound."""
    former = await budgets.lock(connection, owner)
    if former is None:
        raise BudgetNotFound
    await budgets.remove(connection, owner)
    audit.record(connection, "llm_budget.remove", by=by, old_state=_fields(owner, former), reason=reason)


async def tell_of_low_budgets(connection: AsyncConnection) -> dict[str, Any]:
    """Write an event for each budget of which four fifths are used, once in a period; return their number."""
    rows = await budgets.note_low(connection, LOW_BUDGET_SHARE)
    for row in rows:
        ends_at = None if row["ends_at"] is None else row["ends_at"].isoformat()
        detail = {"scope": row["scope"], "name": row["name"], "share": row["share"], "until": ends_at}
        await events.append_system(connection, SystemEvent.BUDGET_LOW.value, detail)
    return {"low": len(rows)}


async def _exists(connection: AsyncConnection, owner: BudgetOwner) -> bool:
    if owner.scope is BudgetScope.AGENT:
        return owner.name in set(AgentType)
    return owner.name == LAUNCHED or await budgets.has_key(connection, owner.name)


def _fields(owner: BudgetOwner, limits: BudgetLimits) -> dict[str, Any]:
    return {**owner._asdict(), **asdict(limits)}
